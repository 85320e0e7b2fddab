"""One execution of a program: the handler that gives values to its latents and collects what its sites say."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_align.core.errors import ModelError
from ppl_align.core.pyro_stack import handlers
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.particles.particles import Particles, Site
from ppl_align.program.explain import ROOM
from ppl_align.program.log_bounds import log_lower_of, log_upper_of
from ppl_align.program.notes import notes_of
from ppl_align.program.plates import PARTICLES, plates_of, with_room
from ppl_align.program.refusals import (
    refuse_changed_prior,
    refuse_no_density,
    refuse_no_number,
    refuse_subsample,
    refuse_unconditioned_factor,
)

LatentProposal = Callable[[str, Any], Any]
"""``(name, prior) -> distribution`` to draw an ordinary latent from."""


class Stop(BaseException):
    """Unwinds the user's program; a BaseException, so that ``except Exception`` in it does not swallow us."""


class Deeper(BaseException):
    """The program has more plates than the particle plate leaves room for."""


class Execute(Messenger):
    """Gives values to latents, collects what observed sites and factors say.

    ``particles``: the given ones, with what was drawn and what the program says now; a record of its own, which is
    filled here until it is handed out."""

    def __init__(
        self, given: Particles, nesting: int, draw: bool, propose: LatentProposal | None, score: Collection[str]
    ) -> None:
        super().__init__()
        self.given, self.nesting, self.draw, self.propose, self.score = given, nesting, draw, propose, score
        self.order: list[str] = []
        drawn = (given.values, given.log_prior, given.log_proposal)
        values, log_prior, log_proposal = (dict(group) for group in drawn)
        self.particles = Particles(
            given.size, values, log_prior, log_proposal, dict(given.token_log_proposal), nesting=nesting
        )

    def _pyro_sample(self, msg: Any) -> None:
        refuse_subsample(msg)
        if is_bookkeeping(msg):
            return
        name, fn = msg["name"], msg["fn"]
        make_room(msg, self.nesting)
        if isinstance(fn, CompletionDistribution):
            self._check_batch(msg)
        self.order.append(name)
        if msg["is_observed"]:
            return
        refuse_unconditioned_factor(msg)
        refuse_changed_prior(msg)
        world = is_environment(msg)
        if world:
            self.particles = self.particles.replace(environment=(*self.particles.environment, name))
        now = self.particles
        now.plates[name] = plates_of(msg)
        if name in now.values:
            msg["value"] = with_room(now.values[name], len(fn.batch_shape) + len(fn.event_shape))
            if isinstance(fn, CompletionDistribution):
                now.sources[name] = fn
            if name in self.score:
                now.log_prior[name] = self._log_prior(msg, msg["value"])
        elif isinstance(fn, CompletionDistribution) or not self.draw:
            self.particles = now.replace(pending=Site(name, fn, world))
            raise Stop
        else:
            proposal = fn if self.propose is None else self.propose(name, fn)
            value = proposal.sample().detach()
            msg["value"] = now.values[name] = value
            now.log_prior[name] = self._log_prior(msg, value)
            now.log_proposal[name] = self._per_particle(msg, proposal.log_prob(value))
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_bookkeeping(msg) or not msg["is_observed"]:
            return
        name, now, notes = msg["name"], self.particles, notes_of(msg)
        log_prob = msg["fn"].log_prob(msg["value"]) * msg["scale"]
        if msg["mask"] is not None:
            log_prob = torch.where(torch.as_tensor(msg["mask"]), log_prob, torch.zeros_like(log_prob))
        refuse_no_number(name, log_prob)
        now.factors[name] = self._per_particle(msg, log_prob)
        upper = log_upper_of(msg, log_prob.shape, self.nesting)
        now.log_upper[name] = self._per_particle(msg, upper) if isinstance(upper, Tensor) else upper
        batch = log_prob.shape[-self.nesting :] if self.nesting else ()
        now.log_lower[name] = log_lower_of(msg, math.prod(batch))
        now.prefix_closed[name] = notes.prefix_closed
        scale = notes.scale
        if notes.reward is not None and scale is not None:
            now.rewards[name] = self._per_particle(msg, notes.reward)
            now.scales[name] = self._per_element(msg, scale).mean(-1) if isinstance(scale, Tensor) else scale
        if notes.target is not None:
            now.targets[name] = notes.target
        if notes.constrains is not None and notes.matcher is not None:
            now.constraints.setdefault(notes.constrains, []).extend(notes.matcher.parts)

    def _check_batch(self, msg: Any) -> None:
        """Every dimension of a completion's batch is a plate's."""
        shape, plates = msg["fn"].batch_shape, {frame.dim for frame in msg["cond_indep_stack"]}
        stray = [d for d in range(-len(shape), 0) if shape[d] != 1 and d not in plates]
        if stray:
            what = f"completion {msg['name']!r} is a batch of {list(shape)}"
            remedy = ROOM if len(shape) > 1 + self.nesting else f"write it under pyro.plate(..., {shape[stray[0]]})"
            raise ModelError(f"{what}, but no plate declares its dimension {stray[0]}: {remedy}")

    def _log_prior(self, msg: Any, value: Tensor) -> Tensor:
        log_p = msg["fn"].log_prob(value)
        refuse_no_density(msg["name"], log_p)
        return self._per_particle(msg, log_p)

    def _per_particle(self, msg: Any, value: Tensor) -> Tensor:
        """[P, plates...] (or less) -> [P]: plates of the program are summed, the particle plate is kept."""
        return self._per_element(msg, value).sum(-1)

    def _per_element(self, msg: Any, value: Tensor) -> Tensor:
        """[P, plates...] (or less) -> [P, K], float64 on the CPU."""
        size, nesting = self.given.size, self.nesting
        value = value.detach().double().cpu()
        plates = {frame.dim for frame in msg["cond_indep_stack"]}
        stray = [d for d in range(-value.dim(), 0) if value.shape[d] != 1 and d not in plates]
        if stray:
            raise ModelError(
                f"site {msg['name']!r} has shape {list(value.shape)}, but no plate declares its dimension {stray[0]}: "
                f"sum it out, or keep a dimension of size 1 for each of the {nesting} plate(s) of the program"
            )
        if value.dim() != 1 + nesting or value.shape[0] != size:
            value = value.expand(torch.broadcast_shapes(value.shape, (size, *(1,) * nesting)))
        return value.reshape(size, -1)


def make_room(msg: Any, nesting: int) -> None:
    """Start anew (:class:`Deeper`) if a site lies in more plates than there is room for."""
    if any(f.dim is not None and f.dim < -nesting for f in msg["cond_indep_stack"] if f.name != PARTICLES):
        raise Deeper


def is_bookkeeping(msg: Any) -> bool:
    """Sites of Pyro's own: subsampling of plates, deterministic values."""
    return site_is_subsample(msg) or bool(msg["infer"].get("_deterministic"))


def note_answers(name: str, answers: list[Any]) -> None:
    """Tell the execution that is under way, if there is one, what the world said to each particle."""
    for handler in handlers():
        if isinstance(handler, Execute) and handler.given.size == len(answers):
            handler.particles.answers[name] = answers
            return


def is_environment(msg: Any) -> bool:
    """The world answers at this site, nobody chooses."""
    return notes_of(msg).environment
