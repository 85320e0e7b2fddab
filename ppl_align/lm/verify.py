"""How must a network be read? A few tokens, against forwards without a cache, one by one.

Tried in order (:mod:`ppl_align.lm.plan`): one cache for prompts of different lengths, a cache for each length of
prompt, every text read anew. The first that agrees is the plan of a ``CausalLM``; where none does, it is refused.
Windows and chunks of attention are crossed where that is quick; where it is not, longer texts are read without the
cache.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ppl_align.core.cost import uncounted
from ppl_align.core.errors import PplAlignError, UnsupportedModelError, type_and_line
from ppl_align.lm.agreement import RAISED
from ppl_align.lm.kinds import both_ways
from ppl_align.lm.lengths import choices, turns, windows
from ppl_align.lm.network import base_of, call
from ppl_align.lm.plan import KINDS, RECOMPUTE, Plan
from ppl_align.lm.trial import Trial
from ppl_align.lm.verified import is_known, settings_of
from ppl_align.lm.warp import log_normalise

if TYPE_CHECKING:
    from ppl_align.lm.causal import CausalLM

MAX_SECONDS = 5.0  # for crossing one length
_BEGIN = 4  # tokens of the longer of two prompts
_SHORT = 16  # lengths up to this one are crossed along with all else
_TIMED = 64  # tokens of the forward that tells how long others take
_FOUND: dict[Hashable, Plan] = {}  # what was found for networks of the same settings, as long as the process lives


def plan_for(lm: CausalLM, verify: bool = True) -> Plan:
    """How ``lm`` is read rightly; ``verify=False`` takes it on trust that its cache is right.

    Warns, once, where that is without the cache. Raises ``UnsupportedModelError``, saying what differs and by how much
    (or what was raised), where no way of reading agrees with forwards one by one."""
    if not verify:
        return up_to_turns(lm, Plan())
    if is_known(lm.model):
        _refuse_no_numbers(lm)
        return up_to_turns(lm, Plan())
    key = settings_of(lm.model)
    plan = None if key is None else _FOUND.get(key)
    if plan is not None:
        _refuse_no_numbers(lm)
    else:
        plan = measured_plan(lm)
        if key is not None:
            _FOUND[key] = plan
    if plan.kind == RECOMPUTE:
        _warn(f"{type(base_of(lm.model)).__name__} runs without its cache, which is right but slow", plan.differs)
    return plan


def measured_plan(lm: CausalLM) -> Plan:
    """What :func:`plan_for` finds where nothing is known yet; on nobody's bill."""
    with uncounted(), torch.no_grad():
        return _Verification(lm).plan()


def _refuse_no_numbers(lm: CausalLM) -> None:
    """Settings may be known, weights are not: one look at what they say."""
    ids = torch.arange(min(4, lm.max_length or 4), device=lm.device)[None] % lm.vocab_size
    with uncounted(), torch.no_grad():
        if bool(log_normalise(call(lm, ids, ids.shape[1])[0]).isnan().any()):
            raise UnsupportedModelError(_no_numbers(type(base_of(lm.model)).__name__))


def _no_numbers(name: str) -> str:
    return f"{name} gives no probabilities: its logits are not finite"


def up_to_turns(lm: CausalLM, plan: Plan) -> Plan:
    """Texts that a network reads otherwise from their first token on are read anew, each beginning on its own."""
    at = min(turns(lm.model.config), default=None)
    if at is None:
        return plan
    if plan.kind == RECOMPUTE or at <= 1:
        return Plan(RECOMPUTE, whole=False, differs=plan.differs)
    return replace(plan, limit=at - 1 if plan.limit is None else min(plan.limit, at - 1), whole=False)


def _warn(what: str, differs: float | None) -> None:
    why = "its cache cannot be used here" if differs is None else f"with it, they are off by {differs:.2g} nats a token"
    text = f"{what}: every text is read again for every token of it ({why})"
    warnings.warn(text, UserWarning, stacklevel=4)  # where the CausalLM is made


class _Verification:
    """``said``: what was raised last, in one line; ``off``: by how much the cache is off, as far as it was tried."""

    def __init__(self, lm: CausalLM) -> None:
        self.lm = lm
        self.name = type(base_of(lm.model)).__name__
        self.off: float | None = None
        self.said = ""
        changes = windows(lm.model.config, lm.max_length)
        turn = min(turns(lm.model.config), default=None)
        if turn is not None:  # beyond it there is no cache to try
            changes = [at for at in changes if at + 4 < turn]
        self.short = [at for at in changes if at <= _SHORT]
        self.long = [at for at in changes if at > _SHORT]
        self.turns_early = turn is not None and turn < _BEGIN + 3

    def plan(self) -> Plan:
        if self.lm.vocab_size < 2 or (self.lm.max_length or 4) < 4:
            return Plan(RECOMPUTE)  # nothing to try, and nothing to gain
        trial = self._trial([1, _BEGIN, *(at for length in self.short for at in (length - 1, length + 2))])
        chosen = min(choices(self.lm.model.config), default=None)
        if chosen is not None and chosen < _BEGIN + 3:
            raise UnsupportedModelError(
                f"{self.name} is not supported: each token attends to {chosen} others, and rounding decides which; one "
                f"text read whole and by its beginnings differs by {trial.unsteady():.2g} nats a token"
            )
        kinds = (RECOMPUTE,) if self.turns_early else KINDS
        for kind in kinds:
            plan = Plan(kind, whole=trial.whole)
            error = self._error(trial, plan)
            if error is not None and error <= trial.tolerance:
                return self._crossing(
                    up_to_turns(self.lm, replace(plan, differs=self.off if kind == RECOMPUTE else None))
                )
            if kind != RECOMPUTE and error is not None:
                self.off = error if self.off is None else min(self.off, error)
        if self.said and error is None:
            raise UnsupportedModelError(f"{self.name} cannot be read token by token ({self.said})")
        raise UnsupportedModelError(
            f"{self.name} is not supported: rows read together differ by {error:.2g} nats a token from forwards of "
            f"each on its own, with a cache and without"
        )

    def _trial(self, sizes: list[int]) -> Trial:
        """Raises ``UnsupportedModelError`` for a network that reads texts to their end, or not at all."""
        room = self.lm.max_length
        try:
            trial = Trial(
                self.lm,
                not self.turns_early,
                sizes if room is None else [max(1, min(size, room - 3)) for size in sizes],
            )
        except RAISED as error:
            raise UnsupportedModelError(
                f"{self.name} cannot be read token by token ({type_and_line(error)[:140]})"
            ) from error
        if not trial.finite:
            raise UnsupportedModelError(_no_numbers(self.name))
        if trial.looks_ahead > trial.tolerance:
            raise UnsupportedModelError(both_ways(self.lm.model, trial.looks_ahead))
        return trial

    def _error(self, trial: Trial, plan: Plan) -> float | None:
        """Nats a token; None where the network cannot be read in this way."""
        try:
            return trial.error(plan)
        except PplAlignError:
            raise
        except RAISED as error:
            self.said = type_and_line(error)[:140]
            return None

    def _crossing(self, plan: Plan) -> Plan:
        """The plan, up to the length at which its cache goes wrong or which takes too long to cross."""
        if plan.kind == RECOMPUTE:
            return plan
        second = None
        for length in self.long:
            if second is None:
                second = self._seconds_a_token()
            affordable = 4 * length * second * max(1.0, length / 2048) <= MAX_SECONDS
            if affordable:
                trial = self._trial([length - 1, length + 2])
                error = self._error(trial, plan)
                if error is not None and error <= trial.tolerance:
                    continue
                beyond = self._error(trial, Plan(RECOMPUTE, whole=trial.whole))
                if beyond is None or not beyond <= trial.tolerance:
                    raise UnsupportedModelError(
                        f"{self.name} is not supported: texts of more than {length} tokens differ by "
                        f"{float('inf') if beyond is None else beyond:.2g} nats a token from forwards one by one"
                    )
                return replace(plan, limit=length - 1, whole=plan.whole and trial.whole)
            return replace(plan, limit=length - 1)
        return plan

    def _seconds_a_token(self) -> float:
        ids = torch.zeros(1, min(_TIMED, self.lm.max_length or _TIMED), dtype=torch.long, device=self.lm.device)
        started = time.perf_counter()
        found: Any = self.lm.model(input_ids=ids).logits
        float(found[0, -1, 0])  # waits for the device
        return (time.perf_counter() - started) / ids.shape[1]
