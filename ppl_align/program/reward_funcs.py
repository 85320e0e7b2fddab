"""``reward_funcs``: several TRL reward functions at once, with their weights and the columns of the data set.

TRL adds rewards up, r = sum over k of w_k r_k, and so does a product of likelihoods: prod over k of exp(w_k r_k / beta)
is exp(r / beta). Each function keeps a factor of its own, so that every table says which of them did what.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from ppl_align.core.errors import InputError
from ppl_align.core.runs import run_memory
from ppl_align.core.text import Texts
from ppl_align.lm.completions import Completion
from ppl_align.program.reward import reward
from ppl_align.program.sketch import sketching
from ppl_align.rewards.calling import as_reward, evaluate_all
from ppl_align.rewards.classifier import ClassifierReward, find_tokenizer


def reward_funcs(
    funcs: Any,
    completion: Completion | Texts | str,
    /,
    beta: float | Tensor = 1.0,
    weights: Sequence[float | Tensor] | None = None,
    prefix: str = "",
    **columns: Any,
) -> dict[str, Tensor]:
    """TRL's ``reward_funcs`` and ``reward_weights`` as likelihoods: one ``reward`` for each function.

    ``funcs``    a TRL reward function or a list of them: sync or async, a sequence-classification model or its name, a
                 shipped reward, a path ``module:function``. A model reads prompt + completion as TRL's trainers let it,
                 without special tokens
    ``beta``     the KL coefficient, ``GRPOConfig(beta=...)``; one for all
    ``weights``  one for each function, by default 1. Like ``beta`` each may be drawn: a tensor with one value for each
                 particle
    ``prefix``   begins the sites' names, where two completions of a program have the same rewards
    ``columns``  columns of the data set by name, one value for all completions or a batch of them. A column that is
                 called like one of these arguments is bound: ``ppl_align.rewards.columns(fn, beta=...)``

    A site is called like its function (``__name__``, a leading underscore aside), as TRL's metrics are; a second one of
    that name gets a number, ``length_2``. Returns r of each, ``[...]`` by site name.

    ``None`` multiplies by 1. A completion for which *every* function says ``None`` keeps its prior weight, and its
    rewards are recorded as NaN, whereas TRL leaves it out of the batch: an answer that none of them can judge is
    neither better nor worse than the prior says. Where that is not meant, return a number or ``-inf``.

    Raises ``InputError`` for weights that do not fit; otherwise as :func:`ppl_align.reward`.
    """
    listed = list(funcs) if isinstance(funcs, (list, tuple)) else [funcs]
    if not listed:
        raise InputError("reward_funcs([]): there is no reward function in the list")
    given = [1.0] * len(listed) if weights is None else [_plain(w) for w in weights]
    if len(given) != len(listed):
        raise InputError(f"reward_funcs: {len(given)} weights for {len(listed)} reward function(s)")
    fns = _named([_as_trl(fn) for fn in listed], prefix)
    with run_memory():
        waiting = {name: fn for name, fn in fns.items() if _is_async(fn)}
        if len(waiting) > 1 and not sketching():
            evaluate_all(waiting, completion, columns)  # all at the same time; below they are remembered
        return {
            name: reward(name, fn, completion, beta, weight, columns=columns)
            for (name, fn), weight in zip(fns.items(), given, strict=True)
        }


def _as_trl(fn: Any) -> Any:
    if isinstance(fn, nn.Module) and hasattr(fn, "config"):
        return ClassifierReward(fn, find_tokenizer(fn), add_special_tokens=False)
    return as_reward(fn if isinstance(fn, str) else _name(fn), fn)


def _named(fns: Sequence[Any], prefix: str) -> dict[str, Any]:
    """The functions by unique names."""
    named: dict[str, Any] = {}
    for fn in fns:
        plain, number = prefix + _name(fn), 2
        name = plain
        while name in named:
            name, number = f"{plain}_{number}", number + 1
        named[name] = fn
    return named


def _name(fn: Any) -> str:
    if isinstance(fn, partial):
        return _name(fn.func)
    name = getattr(fn, "__name__", type(fn).__name__)
    return name.lstrip("_") or name


def _is_async(fn: Any) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


def _plain(weight: Any) -> Any:
    """Trainers keep weights in a tensor; ``reward`` says what is wrong with anything else."""
    return weight.item() if isinstance(weight, Tensor) and weight.numel() == 1 else weight
