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

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from operator import add, and_
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ppl_align.core.errors import InputError, RunError
from ppl_align.core.runs import on_run_end
from ppl_align.core.text import Texts
from ppl_align.core.validation import one_of
from ppl_align.lm.base import Ids
from ppl_align.lm.completions import Completion
from ppl_align.lm.decoding import Rows
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.leaning import Leaning
from ppl_align.lm.restriction import Restriction
from ppl_align.particles.particles import Particles, Site
from ppl_align.runner.prefixes import asked_about_prefixes


class Prefixes(NamedTuple):
    """What a twist sees of m unfinished completions of one site, after a token was drawn.

    ``site``     the name of the completion
    ``tokens``   [m, t] ids so far ([m, plates..., t] inside a plate: K texts of each particle)
    ``prompts``  the prompt ids of each text, m * K of them, flat; [] for twists that read ids alone (``by_ids``)
    ``values``   upstream latents and completions by name, [m, ...]
    ``log_potential``  [m] what the factors before this site said, nats
    ``said``     the m particles with what the program says of the text so far, for twists that ask for it
    ``running``  bool [m, K]: the texts still being written (inside a plate, others may have ended)
    ``ids``      those, flat, on the host; None unless a part of the twist is of constraints
    ``source``   the prior of the completion
    ``log_prior``  [m] log p0 of all texts of a particle so far, nats, as they were drawn
    """

    site: str
    tokens: Tensor
    prompts: list[Ids]
    values: Mapping[str, Tensor]
    log_potential: Tensor
    said: Particles | None = None
    running: Tensor | None = None
    ids: list[Ids] | None = None
    source: CompletionDistribution | None = None
    log_prior: Tensor | None = None

    def texts(self) -> Texts:
        """The texts so far, [m, K], as the program reads them: without what ends them."""
        if self.source is None:
            raise InputError("these prefixes do not know what they were drawn from: there is no text to show")
        flat = Completion(self.tokens, self.source).texts()
        return Texts(flat, (len(self.tokens), len(flat) // len(self.tokens)))


class Scene(NamedTuple):
    """A completion that is about to be decoded: where a twist may find out what it will know.

    ``restriction``: the hard constraints on it, None where there are none."""

    site: Site
    restriction: Restriction | None


class Twist:
    """Knowledge of unfinished completions: override :meth:`next_token` or :meth:`prefix`. Log psi in nats, below +inf.

    ``defensive``    the share of tokens that is drawn from the prior, whatever ``next_token`` says
    ``asks_program``  it wants to know what the program says of the text so far (``Prefixes.said``)
    ``by_ids``       it reads ids alone: its rows have no hidden states, its rows and prefixes no prompts
    ``of_constraints``  it knows of hard constraints only: then texts that have ended are not compared by rewards
    ``certain``      its log psi of -inf is true: whatever comes after has weight zero. Else -inf is remarked on
    ``only_once``    a sum of two of them would count the same thing twice
    """

    defensive: ClassVar[float] = 0.0
    asks_program: ClassVar[bool] = False
    of_constraints: ClassVar[bool] = False
    by_ids: ClassVar[bool] = False
    certain: ClassVar[bool] = False
    only_once: ClassVar[bool] = False
    names_its_errors: ClassVar[bool] = False  # else what it raises is an error of the twist, on unfinished texts

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def at(self, scene: Scene) -> Twist | None:
        """What it knows of this completion; None: nothing (then it takes no part in it).

        Several completions may be asked about before any is decoded: return a copy rather than change yourself."""
        return self

    def next_token(self, rows: Rows) -> Tensor | None:
        """log psi ``[rows, V]`` of each prefix extended by each next token, or bool (allowed or not)."""
        return None

    def prefix(self, prefixes: Prefixes) -> Tensor | None:
        """log psi ``[m]`` of prefixes; None: the entry of ``next_token`` for the token that was drawn weighs.

        Asked of particles that are still writing, one number for all texts of a plate together. It is what is expected
        beyond ``log_potential``: the program itself judges what has ended, and psi is forgotten then."""
        return None

    def ended(self, prefixes: Prefixes) -> Tensor | None:
        """log psi ``[m]`` to add to what the program says of texts that have ended, so that they and unfinished ones
        are compared by the same measure; asked again after every token until it is None: there is nothing to add."""
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
        with _asked(self, None, rows.prefixes.shape[-1]), torch.no_grad():
            found = self.next_token(rows)
            if found is None:
                return Leaning()
            found = _checked_table(found, rows)
        if found.dtype == torch.bool:
            return Leaning(allowed=found)
        bad = _not_below_infinity(found, "the twist's next_token")
        if not self.certain and found.device.type == "cpu" and bool(found.amin().isneginf()):
            on_run_end("-inf of a twist", lambda: lambda: _UNCERTAIN)
        log_psi = found if bad is None else found.masked_fill(bad, 0.0)
        weighs = None if not self.table_weighs else found if bad is None else found.masked_fill(bad, torch.nan)
        return Leaning(log_psi=log_psi, weighs=weighs, defensive=self.defensive)


class FromFunction(Twist):
    """A function ``Prefixes -> log psi [m]``: what the program is expected to say of the finished text."""

    def __init__(self, fn: Callable[[Prefixes], Tensor]) -> None:
        self.fn = fn

    def prefix(self, prefixes: Prefixes) -> Tensor:
        return self.fn(prefixes)


class PrefixReward(Twist):
    """The twist ``"prefix"``: what the rest of the program says of the text so far, as if it were the whole.

    The program executed on unfinished texts; its prefix-closed factors, hard constraints among them, may reject.

    ``floor``: what any other factor of -inf is worth on a prefix, nats (at the end it is -inf). The lower, the more
    eagerly prefixes that have not succeeded yet are given up, and the heavier the tail of Zhat."""

    asks_program = True
    by_ids = True
    certain = True
    only_once = True
    names_its_errors = True

    def __init__(self, floor: float = -2.0) -> None:
        self.floor = floor

    def prefix(self, prefixes: Prefixes) -> Tensor:
        assert prefixes.said is not None
        return prefixes.said.prefix_potential(self.floor) - prefixes.log_potential.clamp_min(-1e300)


class Sum(Twist):
    """Several twists, added."""

    names_its_errors = True

    def __init__(self, parts: Sequence[Twist | Callable[[Prefixes], Tensor]]) -> None:
        self.parts = tuple(as_twist(part) for part in parts)

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

    @property
    def certain(self) -> bool:  # type: ignore[override]
        return True  # each part has spoken for itself

    def leaning(self, rows: Rows) -> Leaning:
        known = [part.leaning(rows) for part in self.parts if part.proposes]
        return Leaning(
            _joined(and_, (found.allowed for found in known)),
            _joined(add, (found.log_psi for found in known)),
            _joined(add, (found.weighs for found in known)),
            max((found.defensive for found in known), default=0.0),
        )

    def prefix(self, prefixes: Prefixes) -> Tensor | None:
        return _joined(add, (judgement(part.prefix, part, prefixes) for part in self.parts))

    def ended(self, prefixes: Prefixes) -> Tensor | None:
        return _joined(add, (judgement(part.ended, part, prefixes) for part in self.parts))


def evaluate(twist: Twist, prefixes: Prefixes) -> Tensor:
    """``log psi [m]`` of prefixes, float64 on the CPU; raises ``RunError`` for a wrong shape, NaN or +inf."""
    found = judgement(twist.prefix, twist, prefixes)
    return torch.zeros(len(prefixes.log_potential), dtype=torch.float64) if found is None else found


def judgement(ask: Callable[[Prefixes], Tensor | None], twist: Twist, prefixes: Prefixes) -> Tensor | None:
    """What ``twist`` says when it is asked by one of its methods, checked as :func:`evaluate` does."""
    with _asked(twist, prefixes.site, prefixes.tokens.shape[-1]), torch.no_grad():
        found = ask(prefixes)
        if found is None:
            return None
        log_psi = _checked(found, prefixes)
    if not twist.certain and bool(log_psi.isneginf().any()):
        on_run_end("-inf of a twist", lambda: lambda: _UNCERTAIN)
    return log_psi


def _asked(twist: Twist, site: str | None, length: int) -> AbstractContextManager[None]:
    """Around a call of the twist: what it raises is an error of the twist, unless it names its own."""
    return nullcontext() if twist.names_its_errors else asked_about_prefixes(site, length, "the twist")


def _checked(found: Any, prefixes: Prefixes) -> Tensor:
    size = len(prefixes.log_potential)
    try:
        log_psi = torch.as_tensor(found).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"the twist returned a {type(found).__name__}: it must be log psi, one number for each of {size} prefixes"
        ) from error
    if log_psi.shape != (size,):
        raise RunError(f"the twist returned shape {list(log_psi.shape)} for {size} prefixes: it must be [{size}]")
    if bool((log_psi.isnan() | (log_psi == torch.inf)).any()):
        raise RunError(f"the twist returned NaN or +inf for a prefix of {prefixes.site!r}: it must be below +inf")
    return log_psi


_UNCERTAIN = (
    "the twist gave log psi = -inf: such a prefix is never continued, so log Z is too low wherever it could still have "
    "gone well; give a finite value, or say certain = True where it cannot"
)


def _checked_table(found: Any, rows: Rows) -> Tensor:
    shape = tuple(rows.log_probs.shape)
    if not isinstance(found, Tensor):
        raise RunError(f"the twist's next_token returned a {type(found).__name__}: a tensor {list(shape)} is needed")
    if tuple(found.shape) != shape:
        raise RunError(f"the twist's next_token returned shape {list(found.shape)} for rows of {list(shape)}")
    return found if found.dtype == torch.bool or found.is_floating_point() else found.float()


def _not_below_infinity(found: Tensor, who: str) -> Tensor | None:
    """Rows [rows, 1] with NaN or +inf, where nobody may wait for the device; on the CPU they are an error."""
    most = found.amax(-1, keepdim=True)  # NaN where there is one
    bad = most.isnan() | (most == torch.inf)
    if found.device.type != "cpu":
        return bad
    if bool(bad.any()):
        raise RunError(f"{who} returned NaN or +inf: log psi must be below +inf")
    return None


def _joined(join: Callable[[Any, Any], Any], parts: Iterable[Tensor | None]) -> Tensor | None:
    """Those that there are, one with the other."""
    known = [part for part in parts if part is not None]
    return reduce(join, known) if known else None


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
    parts = [named[part]() if isinstance(part, str) else as_twist(part) for part in given]
    alone = [type(part) for part in parts if part.only_once]
    if len({id(part) for part in given}) < len(given) or len(set(alone)) < len(alone):
        raise InputError("a sum of twists counts each of them once: one is there twice")
    return parts


def as_twist(part: Any) -> Twist:
    """A twist, or a function of prefixes as one. Raises ``InputError`` for anything else."""
    if isinstance(part, type):
        raise InputError(f"a twist is an object, not a class: write {part.__name__}(...)")
    if not isinstance(part, Twist):
        if not callable(part):
            raise InputError(f"a sum is of twists and functions of Prefixes, got {part!r}")
        return FromFunction(part)
    if not 0 <= part.defensive <= 1:
        raise InputError(f"{part!r}: defensive is a share of the tokens, between 0 and 1, got {part.defensive}")
    return part
