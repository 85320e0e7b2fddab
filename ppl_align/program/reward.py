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
from ppl_align.rewards.calling import evaluate
from ppl_align.text import Texts


def reward(
    name: str,
    fn: Any,
    completion: Completion | Texts | Tensor | str,
    beta: float = 1.0,
    weight: float = 1.0,
    *,
    prefix_closed: bool = False,
) -> Tensor:
    """Multiply the target by ``exp(weight * r / beta)``, r in reward units; ``beta`` is the KL coefficient of RLHF.

    ``fn``: a TRL reward function, ``f(texts) -> floats``, a sequence-classification model or the name of a
    shipped reward; given a tensor instead of a completion, ``f(tensor) -> tensor``. ``-inf`` rejects; ``None``
    means "does not apply" and multiplies by 1. ``prefix_closed=True`` promises that a rejected prefix has no
    acceptable continuation, so that sequential engines may drop it at once.

    It is ``pyro.factor(name, weight * r / beta)`` that also remembers r. Returns r, ``[...]``.
    Raises ``InputError`` for ``beta <= 0``, ``RewardError`` when the reward misbehaves.
    """
    if not (isinstance(beta, (int, float)) and math.isfinite(beta) and beta > 0):
        raise InputError(f"reward {name!r}: beta must be positive and finite, got {beta!r}")
    if not (isinstance(weight, (int, float)) and math.isfinite(weight)):
        raise InputError(f"reward {name!r}: weight must be finite, got {weight!r}")
    r = evaluate(name, fn, completion)
    if not am_i_wrapped():  # the program is run by hand, outside any inference: there is nobody to tell
        return r
    applies = ~r.isnan()
    scale = weight / beta
    log_factor = torch.where(applies, r * scale, torch.zeros_like(r)) if scale != 0 else torch.zeros_like(r)
    # A reward that leaves torch (ids -> text -> float) has lost the trace of what it depends on, and Pyro's
    # TraceGraph_ELBO would then drop it without a word: its gradient is exactly zero. Attach the trace again.
    log_factor = track_provenance(log_factor, get_provenance(_tensor_of(completion)))
    unit = Unit(log_factor)
    notes: Any = {"reward": r, "scale": scale, "prefix_closed": prefix_closed}
    infer: Any = {"is_auxiliary": True, "ppl_align": notes}
    pyro.sample(name, unit, obs=unit.sample(), infer=infer)
    return r


def _tensor_of(completion: Completion | Texts | Tensor | str) -> Any:
    """What Pyro's provenance is tracked on: the tokens, where there are any."""
    return completion.tokens if isinstance(completion, Completion) else completion
