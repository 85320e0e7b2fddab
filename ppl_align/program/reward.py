"""``reward``: a likelihood, exp(weight * r / beta), written into a Pyro program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.errors import InputError, RewardError
from ppl_align.core.text import Texts
from ppl_align.lm.completions import Completion
from ppl_align.program.notes import Notes, factor
from ppl_align.program.scale import Scale, check_fit, fixed, scale_of
from ppl_align.program.sketch import sketching
from ppl_align.rewards.bounds import bounds_of
from ppl_align.rewards.calling import as_reward, evaluate
from ppl_align.rewards.registry import labelled


def reward(
    name: str,
    fn: Any,
    completion: Completion | Texts | Tensor | str,
    beta: float | Tensor = 1.0,
    weight: float | Tensor = 1.0,
    *,
    upper: float | None = None,
    lower: float | None = None,
    prefix_closed: bool = False,
    label: str | int | None = None,
    output: str | None = None,
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

    ``label``: of a classifier with several labels (its folder, its hub name or the model itself) the one that is
    wanted, by name or number; ``output``: its ``"log_odds"``, log p / (1 - p) in nats (the default), or its
    ``"probability"``.

    ``beta`` and ``weight`` may be drawn, ``weight=pyro.sample("strictness", dist.Gamma(2., 1.))``, or computed from
    what was drawn: tensors with one value for each particle (inside of a plate, for each of its elements as well), or
    without dimensions. r stays what the reward says. ``Rejection`` then needs a weight that has a largest value.

    ``columns``: columns of a data set that a TRL reward reads, by name: one value for all, or a batch (``Texts``, a
    tensor). Several TRL rewards at once: :func:`ppl_align.reward_funcs`.

    It is ``pyro.factor(name, weight * r / beta)`` that also remembers r. Returns r, ``[...]``.
    Raises ``InputError`` for ``beta <= 0``, a tensor that does not fit the batch, and for a reward that was made for
    another beta (its attribute ``for_beta`` says for which ``beta / weight``), ``RewardError`` when the reward
    misbehaves, leaves its bounds, or rejects (-inf) under a negative weight.
    """
    fn = labelled(name, fn, label, output)
    called = as_reward(name, fn)
    bounds = bounds_of(name, called, upper, lower)
    scale = scale_of(name, weight, beta)
    told = fixed(scale)
    _check_beta(name, getattr(called, "for_beta", None), told)
    r = _unasked(completion) if sketching() else evaluate(name, fn, completion, columns)
    check_fit(f"reward {name!r}: weight / beta", scale, r.shape)
    if not sketching():
        bounds.check(name, r, told, completion)
        _check_rejections(name, r, weight)
    notes = Notes(
        reward=r,
        scale=told,
        prefix_closed=prefix_closed,
        fn=fn,
        log_upper=bounds.log_upper(told),
        log_lower=None if isinstance(told, Tensor) else bounds.log_lower(told),
    )
    traced = completion.tokens if isinstance(completion, Completion) else completion
    factor(name, _weighed(r, scale), traced, notes)
    return r


def _weighed(r: Tensor, scale: Scale) -> Tensor:
    """scale * r in nats; 0 where the reward does not apply, or does not count (0 * -inf)."""
    silent = r.isnan() | (r.isneginf() & (torch.as_tensor(scale) == 0))
    return torch.where(silent, 0.0, r) * scale


def _check_rejections(name: str, r: Tensor, weight: float | Tensor) -> None:
    given = torch.as_tensor(weight).detach().cpu()
    if bool((r.isneginf() & (given < 0)).any()):
        raise RewardError(
            f"reward {name!r} rejects (-inf), and weight={float(given.min()):g} would turn that into +inf: let the "
            f"reward return what is to be weighed, with its own sign"
        )


def _check_beta(name: str, meant: Any, scale: Scale) -> None:
    """A reward whose values hold at one ``beta / weight`` says so; at weight 0 they do not matter."""
    if not isinstance(meant, (int, float)):
        return
    product = torch.as_tensor(scale, dtype=torch.float64).reshape(-1) * meant
    wrong = product[(product != 0) & ((product - 1).abs() > 1e-6)]
    if len(wrong):
        here = meant / float(wrong[0])
        raise InputError(
            f"reward {name!r} was made for beta / weight = {meant:g}, and here it is {here:g}: give both the same beta"
        )


def _unasked(completion: Completion | Texts | Tensor | str) -> Tensor:
    """Zeros of the batch shape (``nan`` would say that the reward does not apply)."""
    if isinstance(completion, Tensor):
        return torch.zeros(completion.shape[:-1], dtype=torch.float64)
    return torch.zeros(getattr(completion, "shape", ()), dtype=torch.float64)
