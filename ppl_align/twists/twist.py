"""The one protocol for all that is known of an unfinished completion.

A twist psi_t(x_<=t) stands in for the true potential while a completion is being written (Zhao et al. 2024,
arXiv:2404.17546). Any finite twist leaves E[Zhat] = Z; the best one, log psi_t = log E_p0[w | x_<=t], the *soft
value*, leaves no variance at all when it also proposes the tokens.

* One that knows a value for each next token (:meth:`Twist.next_token`) proposes with it, q ∝ p0 psi, and weighs with
  the entry of the token that was drawn: a head on hidden states, a value function, an automaton's look-ahead.
* One that can only judge what is there (:meth:`Twist.prefix`) weighs: the program asked about unfinished text, a
  process reward model, a function.
* Sums of twists are twists. Where a program has a hard constraint c and rewards r,

      log E_p0[1[c] e^r | x_<=t] = log P_p0(c | x_<=t) + log E_p0[e^r | c, x_<=t],

  so what looks ahead to the constraint stands for the first term and a judgement of the text for the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ppl_align.core.errors import InputError, RunError
from ppl_align.core.validation import one_of
from ppl_align.lm.base import Ids
from ppl_align.lm.decoding import Rows
from ppl_align.lm.leaning import Leaning
from ppl_align.lm.restriction import Restriction
from ppl_align.particles.particles import Particles, Site
from ppl_align.runner.prefixes import asked_about_prefixes


class Prefixes(NamedTuple):
    """What a twist sees of m unfinished completions of one site, after a token was drawn.

    ``site``     the name of the completion
    ``tokens``   [m, t] ids so far ([m, plates..., t] inside a plate)
    ``prompts``  the prompt ids of each
    ``values``   upstream latents and completions by name, [m, ...]
    ``log_potential``  [m] what the factors before this site said, nats
    ``said``     the m particles with what the program says of the text so far, for twists that ask for it
    ``running``  bool [m, plates...]: the texts still being written (inside a plate, others may have ended)
    ``ids``      those, flat, on the host
    """

    site: str
    tokens: Tensor
    prompts: list[Ids]
    values: Mapping[str, Tensor]
    log_potential: Tensor
    said: Particles | None = None
    running: Tensor | None = None
    ids: list[Ids] | None = None


class Scene(NamedTuple):
    """A completion that is about to be decoded: where a twist may find out what it will know.

    ``restriction``: the hard constraints on it, None where there are none."""

    site: Site
    restriction: Restriction | None


class Twist:
    """Knowledge of unfinished completions: override :meth:`next_token` or :meth:`prefix`. Log psi in nats, below +inf.

    ``defensive``    the share of tokens that is drawn from the prior, whatever ``next_token`` says
    ``asks_program``  it wants to know what the program says of the text so far (``Prefixes.said``)
    ``by_ids``       of rows and prefixes it needs their tokens, and no hidden states, prompts or log-probabilities
    ``of_constraints``  it knows of hard constraints only: then texts that have ended are not compared by rewards
    """

    defensive: ClassVar[float] = 0.0
    asks_program: ClassVar[bool] = False
    of_constraints: ClassVar[bool] = False
    by_ids: ClassVar[bool] = False
    names_its_errors: ClassVar[bool] = False  # else what it raises is an error of the twist, on unfinished texts

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def at(self, scene: Scene) -> Twist | None:
        """What it knows of this completion; None: nothing (then it takes no part in it)."""
        return self

    def next_token(self, rows: Rows) -> Tensor | None:
        """log psi ``[rows, V]`` of each prefix extended by each next token, or bool (allowed or not)."""
        return None

    def prefix(self, prefixes: Prefixes) -> Tensor | None:
        """log psi ``[m]`` of prefixes; None: the entry of ``next_token`` for the token that was drawn weighs."""
        return None

    # -- what decoding and SMC ask -------------------------------------------------------------------------------------

    @property
    def proposes(self) -> bool:
        """Does it know a value for each next token?"""
        return type(self).next_token is not Twist.next_token

    @property
    def table_weighs(self) -> bool:
        """Is that value its judgement of the prefix, too?"""
        return self.proposes and type(self).prefix is Twist.prefix

    def leaning(self, rows: Rows) -> Leaning:
        """For the decoding: what the next tokens of each row lean to."""
        found = self.next_token(rows)
        if found is None:
            return Leaning()
        shape = tuple(rows.log_probs.shape)
        if tuple(found.shape) != shape:
            raise RunError(f"the twist's next_token returned shape {list(found.shape)} for rows of {list(shape)}")
        if found.dtype == torch.bool:
            return Leaning(allowed=found)
        return Leaning(log_psi=found, weighs=found if self.table_weighs else None, defensive=self.defensive)


class FromFunction(Twist):
    """A function ``Prefixes -> log psi [m]``: what the program is expected to say of the finished text."""

    def __init__(self, fn: Callable[[Prefixes], Tensor]) -> None:
        self.fn = fn

    def prefix(self, prefixes: Prefixes) -> Tensor:
        return self.fn(prefixes)


class Sum(Twist):
    """Several twists, added."""

    names_its_errors = True

    def __init__(self, parts: Sequence[Twist]) -> None:
        self.parts = tuple(parts)

    def at(self, scene: Scene) -> Twist | None:
        parts = [found for part in self.parts if (found := part.at(scene)) is not None]
        return Sum(parts) if parts else None

    @property
    def proposes(self) -> bool:
        return any(part.proposes for part in self.parts)

    @property
    def table_weighs(self) -> bool:
        return any(part.table_weighs for part in self.parts)

    @property
    def asks_program(self) -> bool:  # type: ignore[override]
        return any(part.asks_program for part in self.parts)

    @property
    def of_constraints(self) -> bool:  # type: ignore[override]
        return all(part.of_constraints for part in self.parts)

    @property
    def by_ids(self) -> bool:  # type: ignore[override]
        return all(part.by_ids for part in self.parts)

    def leaning(self, rows: Rows) -> Leaning:
        known = [part.leaning(rows) for part in self.parts if part.proposes]
        return Leaning(
            _all(found.allowed for found in known),
            _total(found.log_psi for found in known),
            _total(found.weighs for found in known),
            max((found.defensive for found in known), default=0.0),
        )

    def prefix(self, prefixes: Prefixes) -> Tensor | None:
        return _total(_judgement(part, prefixes) for part in self.parts)


def evaluate(twist: Twist, prefixes: Prefixes) -> Tensor:
    """``log psi [m]`` of prefixes, float64 on the CPU; raises ``RunError`` for a wrong shape, NaN or +inf."""
    found = _judgement(twist, prefixes)
    return torch.zeros(len(prefixes.log_potential), dtype=torch.float64) if found is None else found


def _judgement(twist: Twist, prefixes: Prefixes) -> Tensor | None:
    named = (
        nullcontext()
        if twist.names_its_errors
        else asked_about_prefixes(prefixes.site, prefixes.tokens.shape[-1], "the twist")
    )
    with named:
        found = twist.prefix(prefixes)
        return None if found is None else _checked(found, prefixes)


def _checked(found: Any, prefixes: Prefixes) -> Tensor:
    size = len(prefixes.log_potential)
    log_psi = torch.as_tensor(found).detach().to("cpu", torch.float64)
    if log_psi.shape != (size,):
        raise RunError(f"the twist returned shape {list(log_psi.shape)} for {size} prefixes: it must be [{size}]")
    if bool((log_psi.isnan() | (log_psi == torch.inf)).any()):
        raise RunError(f"the twist returned NaN or +inf for a prefix of {prefixes.site!r}: it must be below +inf")
    return log_psi


def _total(parts: Any) -> Tensor | None:
    total = None
    for part in parts:
        if part is not None:
            total = part if total is None else total + part
    return total


def _all(parts: Any) -> Tensor | None:
    total = None
    for part in parts:
        if part is not None:
            total = part if total is None else total & part
    return total


def parts_of(twist: Any, named: Mapping[str, Callable[[], Twist]]) -> list[Twist]:
    """What ``SMC(twist=)`` was given: None, a name, a twist, a function of ``Prefixes``, or a tuple (their sum).

    Raises ``InputError`` for anything that is no twist, and for one that is there twice."""
    given = list(twist) if isinstance(twist, (tuple, list)) else [] if twist is None else [twist]
    for part in given:
        if isinstance(part, str):
            one_of("twist", part, [None, *named])
        if not isinstance(part, (str, Twist)) and not callable(part):
            raise InputError(
                f"twist must be None, {', '.join(map(repr, named))}, a Twist, a function of Prefixes that returns [m] "
                f"nats, or a tuple of them (their sum), got {type(part).__name__}"
            )
    if len({id(part) for part in given}) < len(given):
        raise InputError("a sum of twists counts each of them once: one is there twice")
    return [
        named[part]() if isinstance(part, str) else part if isinstance(part, Twist) else FromFunction(part)
        for part in given
    ]
