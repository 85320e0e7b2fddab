"""``reward``: a likelihood, exp(weight * r / beta), written into a Pyro program."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_align.completions import Completion
from ppl_align.errors import InputError, RewardError
from ppl_align.program.factor import factor
from ppl_align.program.sketch import sketching
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
    columns: Mapping[str, Any] | None = None,
) -> Tensor:
    """Multiply the target by ``exp(weight * r / beta)``, r in reward units; ``beta`` is the KL coefficient of RLHF.

    ``fn``: a TRL reward function, ``f(texts) -> floats``, a sequence-classification model or the name of a
    shipped reward; given a tensor instead of a completion, ``f(tensor) -> tensor``. ``-inf`` rejects; ``None``
    means "does not apply" and multiplies by 1. ``prefix_closed=True`` promises that a rejected prefix has no
    acceptable continuation, so that sequential engines may drop it at once.

    ``upper``, ``lower``: known bounds of r in reward units, rejections (-inf) aside; by default those that ``fn``
    carries as attributes of these names (an infinite one: not known). ``Rejection`` needs the one that bounds
    ``weight * r / beta`` from above. They hold for whatever the reward is asked about, unfinished text included.

    ``columns``: columns of a data set that a TRL reward reads, by name: one value for all, or a batch (``Texts``, a
    tensor). Several TRL rewards at once: :func:`ppl_align.reward_funcs`.

    It is ``pyro.factor(name, weight * r / beta)`` that also remembers r. Returns r, ``[...]``.
    Raises ``InputError`` for ``beta <= 0`` and for a reward that was made for another beta (its attribute ``for_beta``
    says for which ``beta / weight``), ``RewardError`` when the reward misbehaves, leaves its bounds, or rejects (-inf)
    under a negative weight.
    """
    if not (isinstance(beta, (int, float)) and math.isfinite(beta) and beta > 0):
        raise InputError(f"reward {name!r}: beta must be positive and finite, got {beta!r}")
    if not (isinstance(weight, (int, float)) and math.isfinite(weight)):
        raise InputError(f"reward {name!r}: weight must be finite, got {weight!r}")
    called, scale = as_reward(name, fn), weight / beta
    bounds = bounds_of(name, called, upper, lower)
    _check_beta(name, getattr(called, "for_beta", None), scale)
    if sketching():
        r = _unasked(completion)
    else:
        r = evaluate(name, fn, completion, columns)
        bounds.check(name, r, scale, completion)
        if scale < 0 and bool(r.isneginf().any()):
            raise RewardError(
                f"reward {name!r} rejects (-inf), and weight={weight:g} would turn that into +inf: let the reward "
                f"return what is to be weighed, with its own sign"
            )
    applies = ~r.isnan()
    log_factor = torch.where(applies, r * scale, torch.zeros_like(r)) if scale != 0 else torch.zeros_like(r)
    notes: Any = {"reward": r, "scale": scale, "prefix_closed": prefix_closed, "fn": fn}
    notes["log_upper"], notes["log_lower"] = bounds.log_upper(scale), bounds.log_lower(scale)
    factor(name, log_factor, _tensor_of(completion), notes)
    return r


def _check_beta(name: str, meant: Any, scale: float) -> None:
    """A reward whose values hold at one ``beta / weight`` says so; at weight 0 they do not matter."""
    if not isinstance(meant, (int, float)) or scale == 0 or math.isclose(scale * meant, 1.0, rel_tol=1e-6):
        return
    raise InputError(
        f"reward {name!r} was made for beta / weight = {meant:g}, and here it is {1 / scale:g}: give both the same beta"
    )


def _unasked(completion: Completion | Texts | Tensor | str) -> Tensor:
    """Zeros of the batch shape (``nan`` would say that the reward does not apply)."""
    if isinstance(completion, Tensor):
        return torch.zeros(completion.shape[:-1], dtype=torch.float64)
    return torch.zeros(getattr(completion, "shape", ()), dtype=torch.float64)


def _tensor_of(completion: Completion | Texts | Tensor | str) -> Any:
    """What Pyro's provenance is tracked on: the tokens, where there are any."""
    return completion.tokens if isinstance(completion, Completion) else completion
