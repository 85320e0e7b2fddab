"""A sketch of a program: run once on made-up values, with nothing evaluated, to see what it consists of.

What comes after a completion is known only when the program has been run beyond it, and an engine wants to know some
of it before it writes the first token: which constraints will be put on the completion. So the program is run on a
single particle whose completions are empty. Rewards are not asked, nothing is scored, no network is called.

A survey does the same on given latents: how large may the program's factors get?
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from ppl_align.core.context import having
from ppl_align.core.runs import remembered
from ppl_align.core.seeds import cuda_devices
from ppl_align.lm.base import LM
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.matcher import Matcher
from ppl_align.particles.particles import Particles
from ppl_align.program.compiled import Program
from ppl_align.program.execute import Execute, is_bookkeeping, make_room
from ppl_align.program.names import SameNameError
from ppl_align.program.notes import notes_of

STAND_INS: tuple[str | int, ...] = ("", 0)
"""What the world may seem to answer; which of the two kinds it does is not known before it is asked."""
_open: ContextVar[str | int | None] = ContextVar("ppl_align_sketching", default=None)


def sketching() -> bool:
    """Is the program only being looked at? Then rewards return zeros, and constraints check nothing."""
    return _open.get() is not None


def stand_in() -> str | int:
    """What to take for the world's answer in a sketch."""
    found = _open.get()
    return "" if found is None else found


@dataclass(frozen=True)
class Sketch:
    """``matchers``: the constraints on each completion site.  ``completions``: these sites, as far as they were met;
    ``tokens``: what each may hold at most with its prompt, in a plate all of its texts, earlier completions left out;
    ``lms``: who writes them.
    ``nesting``: plates inside one another.  ``stopped``: what the program raised on the made-up values, None if it ran
    to its end; what it says after that is not known."""

    matchers: dict[str, list[Matcher]] = field(default_factory=dict)
    completions: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    lms: list[LM] = field(default_factory=list)
    nesting: int = 0
    stopped: Exception | None = None

    @property
    def num_constraints(self) -> int:
        return sum(map(len, self.matchers.values()))


def sketch(program: Program) -> Sketch:
    """Look at a program; the random numbers are left as they are. Raises ``ModelError`` for two sites of one name.

    A run looks once at each of its programs."""
    kept: dict[Any, tuple[Any, Sketch]] | None = remembered("sketches", dict)
    if kept is None:
        return _sketch(program)
    held = program.model, program.args, tuple(program.kwargs.items())  # kept too: an id is another's once it is free
    key = id(program.model), *map(id, program.args), *((name, id(value)) for name, value in held[2])
    if key not in kept:
        kept[key] = held, _sketch(program)
    return kept[key][1]


def _sketch(program: Program) -> Sketch:
    seen = _look(program, STAND_INS[0])
    for answer in STAND_INS[1:] if seen.stopped is not None else ():
        other = _look(program, answer)
        if other.stopped is None or other.num_constraints > seen.num_constraints:
            seen = other
    return seen


def _look(program: Program, answer: str | int) -> Sketch:
    single, seen, stopped = copy.copy(program), Sketch(), None
    with torch.random.fork_rng(devices=cuda_devices()), looking(answer):
        try:
            single.execute(lambda nesting: _Look(nesting, seen), 1)
        except SameNameError:
            raise
        except Exception as error:
            stopped = error
    return replace(seen, nesting=single.nesting, stopped=stopped)


@contextmanager
def looking(answer: str | int) -> Iterator[None]:
    """A context in which programs are only looked at: no reward is asked, the world answers ``answer``."""
    with having(_open, answer):
        yield


class _Look(Messenger):
    """Completions are empty, other latents are drawn, observed sites are left alone."""

    def __init__(self, nesting: int, seen: Sketch) -> None:
        super().__init__()
        self.nesting, self.seen = nesting, seen
        seen.matchers.clear()  # the program is run again from its beginning when it turns out to have plates
        seen.completions.clear()
        seen.tokens.clear()
        seen.lms.clear()

    def _pyro_sample(self, msg: Any) -> None:
        if is_bookkeeping(msg):
            return
        make_room(msg, self.nesting)
        notes = notes_of(msg)
        everywhere = msg["mask"] is None or msg["mask"] is True  # a masked constraint holds for some draws only
        if notes.constrains is not None and notes.matcher is not None and everywhere:
            self.seen.matchers.setdefault(notes.constrains, []).extend(notes.matcher.parts)
        if not msg["is_observed"]:
            fn = msg["fn"]
            if isinstance(fn, CompletionDistribution):
                self.seen.completions.append(msg["name"])
                self.seen.lms.append(fn.lm)
                longest = max(map(len, fn.prompts), default=0)
                self.seen.tokens.append(fn.index.numel() * (longest + fn.max_new_tokens))
                msg["value"] = torch.full(fn.shape(), fn.pad_id, dtype=torch.long, device=fn.lm.device)
            else:
                msg["value"] = fn.sample().detach()
            msg["done"] = True


# -- a program run on given latents with empty texts, nothing asked and nothing scored ---------------------------------


def survey(program: Program, particles: Particles) -> Particles:
    """What the rewards of a program with these latents say of ``log_upper`` and ``scales``; their values are not known.

    Stops (``pending``) at the first latent without a value that is no completion."""
    try:
        with looking(STAND_INS[0]):
            return _run(program, particles)
    except (TypeError, ValueError):  # as where the program computes with an answer of the world
        with looking(STAND_INS[1]):
            return _run(program, particles)


def _run(program: Program, particles: Particles) -> Particles:
    return program.execute(lambda nesting: _Survey(particles, nesting, False, None, ()), particles.size).particles


class _Survey(Execute):
    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if not msg["is_observed"] and isinstance(fn, CompletionDistribution):
            self.particles.values[msg["name"]] = torch.full(
                fn.shape(), fn.pad_id, dtype=torch.long, device=fn.lm.device
            )
        super()._pyro_sample(msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        if notes_of(msg).scale is not None:
            super()._pyro_post_sample(msg)
