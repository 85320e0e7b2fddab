"""``reward``: a likelihood, exp(weight * r / beta), written into a Pyro program."""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from pyro.distributions import Unit
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ppl_align.completions import Completion
from ppl_align.errors import InputError
from ppl_align.rewards.bounds import bounds_of
from ppl_align.rewards.calling import as_reward, evaluate
from ppl_align.text import Texts


def reward(
    name: str,
    fn: Any,
    completion: Completion | Texts | Tensor | str,
    beta: float = 1.0,
    weight: float = 1.0,
    *,
    upper: float | None = None,
    lower: float | None = None,
    prefix_closed: bool = False,
) -> Tensor:
    """Multiply the target by ``exp(weight * r / beta)``, r in reward units; ``beta`` is the KL coefficient of RLHF.

    ``fn``: a TRL reward function, ``f(texts) -> floats``, a sequence-classification model or the name of a
    shipped reward; given a tensor instead of a completion, ``f(tensor) -> tensor``. ``-inf`` rejects; ``None``
    means "does not apply" and multiplies by 1. ``prefix_closed=True`` promises that a rejected prefix has no
    acceptable continuation, so that sequential engines may drop it at once.

    ``upper``, ``lower``: known bounds of r in reward units, rejections (-inf) aside; by default those that ``fn``
    carries as attributes of these names (an infinite one: not known). ``Rejection`` needs the one that bounds
    ``weight * r / beta`` from above. They hold for whatever the reward is asked about, unfinished text included.

    It is ``pyro.factor(name, weight * r / beta)`` that also remembers r. Returns r, ``[...]``.
    Raises ``InputError`` for ``beta <= 0``, ``RewardError`` when the reward misbehaves or leaves its bounds.
    """
    if not (isinstance(beta, (int, float)) and math.isfinite(beta) and beta > 0):
        raise InputError(f"reward {name!r}: beta must be positive and finite, got {beta!r}")
    if not (isinstance(weight, (int, float)) and math.isfinite(weight)):
        raise InputError(f"reward {name!r}: weight must be finite, got {weight!r}")
    bounds, scale = bounds_of(name, as_reward(name, fn), upper, lower), weight / beta
    r = evaluate(name, fn, completion)
    bounds.check(name, r, scale, completion)
    if not am_i_wrapped():  # the program is run by hand, outside any inference: there is nobody to tell
        return r
    applies = ~r.isnan()
    log_factor = torch.where(applies, r * scale, torch.zeros_like(r)) if scale != 0 else torch.zeros_like(r)
    # A reward that leaves torch (ids -> text -> float) has lost the trace of what it depends on, and Pyro's
    # TraceGraph_ELBO would then drop it without a word: its gradient is exactly zero. Attach the trace again.
    log_factor = track_provenance(log_factor, get_provenance(_tensor_of(completion)))
    unit = Unit(log_factor)
    notes: Any = {"reward": r, "scale": scale, "prefix_closed": prefix_closed, "fn": fn}
    notes["log_upper"] = bounds.log_upper(scale)
    infer: Any = {"is_auxiliary": True, "ppl_align": notes}
    pyro.sample(name, unit, obs=unit.sample(), infer=infer)
    return r


def _tensor_of(completion: Completion | Texts | Tensor | str) -> Any:
    """What Pyro's provenance is tracked on: the tokens, where there are any."""
    return completion.tokens if isinstance(completion, Completion) else completion
