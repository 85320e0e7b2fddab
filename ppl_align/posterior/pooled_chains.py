"""Runs of Markov chains as one run: the chains of all of them beside each other, each in its own order.

A chain that is continued by another one is no chain, and its autocorrelation means nothing. So nothing is put one after
the other: what is pooled has to have as many states a chain, after the same warm-up and with the same thinning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.core.text import Texts
from ppl_align.lm.completions import Completion
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.posterior.result import Posterior

_BY_MOVE = ("cut", "accepted")
_ALIKE: dict[str, Callable[[Posterior], Any]] = {
    "kinds": lambda run: run.kind,
    "states a chain": lambda run: run.log_weight.shape[1],
    "steps of warm-up": lambda run: run.history.get("num_warmup"),
    "steps from state to state": lambda run: run.config.get("thinning"),
    "moves": lambda run: run.history.get("move_site"),
}
_BY_STATE = ("rewards", "scales", "factors", "log_upper", "log_prior")


def beside(runs: Sequence[Posterior]) -> Posterior:
    """The pool of ``runs`` of chains; what is the same for all of them is taken from the first.

    Raises ``InputError`` for chains of other lengths, warm-ups or thinning, or whose moves are others."""
    first = runs[0]
    if len(runs) == 1:
        return first
    for run in runs[1:]:
        _check_alike(first, run)
    by_state: dict[str, Any] = {
        field: {name: torch.cat([getattr(run, field)[name] for run in runs]) for name in getattr(first, field)}
        for field in _BY_STATE
    }
    total = sum(len(run.log_weight) for run in runs)
    return replace(
        first,
        log_weight=torch.cat([run.log_weight for run in runs]),
        particles={name: joined([run.particles[name] for run in runs], 0) for name in first.particles},
        log_proposal=None,
        config=dict(first.config) | ({"num_chains": total} if "num_chains" in first.config else {}),
        cost=sum((run.cost for run in runs[1:]), first.cost),
        history=_history(runs),
        **by_state,
    )


def _check_alike(one: Posterior, other: Posterior) -> None:
    for what, setting in _ALIKE.items():
        mine, theirs = setting(one), setting(other)
        if mine != theirs:
            shown = "" if what == "moves" else f" ({mine} and {theirs})"
            raise InputError(
                f"only chains that are alike can be pooled, and these have other {what}{shown}: compare them as runs"
            )


def _history(runs: Sequence[Posterior]) -> dict[str, Any]:
    history = dict(runs[0].history)
    for name in _BY_MOVE:
        if name in history:
            history[name] = torch.cat([torch.as_tensor(run.history[name]) for run in runs], 1)
    if "answers" in history:
        said = [run.history["answers"] for run in runs]
        history["answers"] = {name: [one for each in said for one in each[name]] for name in history["answers"]}
    warnings = list(dict.fromkeys(line for run in runs for line in run.warnings))
    return history | ({"warnings": warnings} if warnings else {})


def joined(parts: Sequence[Completion | Tensor], dim: int) -> Completion | Tensor:
    """Values of one site of several runs, along the replicates (0) or the particles (1)."""
    first = parts[0]
    if not isinstance(first, Completion):
        return torch.cat([part for part in parts if isinstance(part, Tensor)], dim)
    sites = [part for part in parts if isinstance(part, Completion)]
    tokens = torch.cat([site.tokens for site in sites], dim)
    sources = [site.source.expand(site.shape) for site in sites if site.source is not None]
    if len(sources) == len(sites):
        return Completion(tokens, CompletionDistribution.joined(sources, dim))
    text, prompt = (_texts([site._given[which] for site in sites], dim) for which in ("text", "prompt"))
    return Completion(tokens, text=text, prompt=prompt, terminal=first._terminal)


def _texts(parts: Sequence[Texts | None], dim: int) -> Texts | None:
    known = [part.array for part in parts if part is not None]
    return Texts(np.concatenate(known, dim)) if len(known) == len(parts) else None


__all__ = ["beside", "joined"]
