"""Several runs of one engine on one target as one run: what more particles, drawn later, add to those that are there.

Replicate r of the pool is the union of the r-th replicates, and no weight changes::

    Zhat_r = sum_k N_k Zhat_kr / sum_k N_k

is the mean weight of its particles, as that of any replicate. Each Zhat_kr is unbiased, so this is, for N_k that were
fixed before; replicates stay independent and alike, so that all that is read off them
(:mod:`ppl_align.posterior.lineage`) holds as it did. Populations that were resampled remain what they were: islands,
that count by their Zhat. Whoever stops when the pool looks good has chosen by what it shows, and the mean over such
pools is no longer exactly Z: how much that matters is measured (``make honesty``).

Markov chains are put beside each other, never one after the other: the pool has the chains of all runs, each in its own
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.cost import Cost
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.pooled_chains import beside, joined
from ppl_align.posterior.result import Posterior

_BY_STEP = ("ess", "resampled", "step")
# Of tempering and rejuvenation: each run has its own.
_LEVELS = ("exponent", "num_moves", "move_accepted", "move_correlation", "moved")
_OF_ONE_POPULATION = (*_BY_STEP, *_LEVELS, "ancestors", "log_evidence_increment")
_BY_PARTICLE = ("rewards", "scales", "factors", "log_upper", "log_prior")


def pooled(runs: Sequence[Posterior], died: int = 0) -> Posterior:
    """The pool of ``runs`` of equally many replicates; what is the same for all of them is taken from the first.

    ``died``: particles of each replicate in runs of which every particle had weight zero, and which gave no posterior:
    an estimate of Z as good as any, namely 0. ``history["rounds"]`` says how many particles each part has brought.

    ``died`` says nothing of chains, for they estimate no Z; see :mod:`ppl_align.posterior.pooled_chains`."""
    if runs[0].kind.is_ordered:
        return beside(runs)
    runs = [*runs, *([_dead(runs[0], died)] if died else [])]
    first = runs[0]
    if len(runs) == 1:
        return first
    kinds = [run.kind for run in runs]
    by_particle: dict[str, Any] = {
        field: {name: _cat([getattr(run, field)[name] for run in runs]) for name in getattr(first, field)}
        for field in _BY_PARTICLE
    }
    whole = replace(
        first,
        log_weight=torch.cat([run.log_weight for run in runs], 1),
        particles={name: joined([run.particles[name] for run in runs], 1) for name in first.particles},
        log_proposal=None if first.log_proposal is None else _cat([run.log_proposal for run in runs]),
        cost=sum((run.cost for run in runs[1:]), first.cost),
        kind=Kind.RESAMPLED if Kind.RESAMPLED in kinds else first.kind,
        history=_history(runs) | {"rounds": torch.tensor([run.log_weight.shape[1] for run in runs])},
        **by_particle,
    )
    return _exact_draws(whole, runs) if first.draws_are_exact else whole


def _dead(run: Posterior, particles: int) -> Posterior:
    """A run that drew ``particles`` a replicate and kept none: what they were is not known, nor of any weight, neither
    for the posterior nor as draws of the prior."""
    rows = len(run.log_weight)
    nothing = torch.full((rows, particles), -torch.inf, dtype=torch.float64)
    blank = run.take(torch.zeros(rows, particles, dtype=torch.long))
    return replace(
        blank,
        log_weight=nothing,
        kind=run.kind,
        log_prior=dict.fromkeys(run.log_prior, nothing),
        log_proposal=None if run.log_proposal is None else torch.zeros_like(nothing),
        factors=dict.fromkeys(run.factors, nothing),
        rewards={name: torch.full_like(nothing, torch.nan) for name in run.rewards},
        cost=Cost(),
    )


def _exact_draws(whole: Posterior, runs: Sequence[Posterior]) -> Posterior:
    """Draws that were waited for: n = n_1 + n_2 + ... until N = N_1 + N_2 + ... were accepted, and
    Zhat = e^B (N - 1) / (n - 1)."""
    last = runs[-1]
    assert last.tries is not None
    assert whole.tries is not None
    log_bound = last.log_evidence - _log_share(last.log_weight.shape[1], last.tries)
    log_evidence = log_bound + _log_share(whole.log_weight.shape[1], whole.tries)
    return replace(whole, log_weight=log_evidence[:, None].expand(whole.log_weight.shape).clone())


def _log_share(accepted: int, tries: Tensor) -> Tensor:
    return ((accepted - 1) / (tries - 1).double()).log()


def _history(runs: Sequence[Posterior]) -> dict[str, Any]:
    first, shape = runs[0], runs[0].log_weight.shape
    history: dict[str, Any] = {}
    for name, value in first.history.items():
        if name in _OF_ONE_POPULATION:
            continue
        by_particle = isinstance(value, Tensor) and value.shape[:2] == shape
        if by_particle and all(name in run.history for run in runs):
            history[name] = _cat([run.history[name] for run in runs])
        else:
            history[name] = value
    history |= _steps(runs)
    if any(run.lineage is not None for run in runs):
        history["lineage"] = _lineage(runs)
    if first.tries is not None:
        history["num_draws"] = sum(run.tries for run in runs if run.tries is not None)
    if "lasting" in first.history:
        history["lasting"] = max(float(run.history.get("lasting", 0.0)) for run in runs)
    if "answers" in first.history:
        said = [run.history.get("answers", {}) for run in runs]
        names = first.history["answers"]
        history["answers"] = {name: _answers([each.get(name) for each in said], runs) for name in names}
    warnings = list(dict.fromkeys(line for run in runs for line in run.warnings))
    return history | ({"warnings": warnings} if warnings else {})


def _steps(runs: Sequence[Posterior]) -> dict[str, Any]:
    """ESS of the union each time that the weights were looked at, 1 / sum_k v_k^2 / ess_k, where run k holds the share
    v_k of the weight; of a run that was looked at less often, its last. A run that was never looked at has all of its
    particles until the end."""
    seen = [run for run in runs if run.ess_by_step is not None and len(run.ess_by_step)]
    if not seen:
        return {name: runs[0].history[name] for name in _BY_STEP if name in runs[0].history}
    longest = max(seen, key=lambda run: len(torch.as_tensor(run.ess_by_step)))
    steps = len(torch.as_tensor(longest.ess_by_step))
    mass = torch.stack([run.log_weight.logsumexp(1) for run in runs])
    share = torch.softmax(mass.where(mass.isfinite(), -1e300), 0)  # [K, R]
    ess = torch.stack([_each_step(run.ess_by_step, run, steps).double() for run in runs])  # [K, S, R]
    history: dict[str, Any] = {"ess": 1 / (share[:, None] ** 2 / ess.clamp_min(1e-300)).sum(0)}
    resampled = [_each_step(run.resampled, run, steps, 0).bool() for run in seen if run.resampled is not None]
    if resampled:
        history["resampled"] = torch.stack(resampled).any(0)
    return history | ({"step": longest.history["step"]} if "step" in longest.history else {})


def _each_step(values: Tensor | None, run: Posterior, steps: int, after: int | None = None) -> Tensor:
    """``[S, R]`` at as many steps; ``after``: what stands where there were fewer, instead of the last."""
    if values is None or not len(values):
        return torch.full((steps, len(run.log_weight)), run.log_weight.shape[1])
    last = values[-1:] if after is None else torch.full_like(values[-1:], after)
    return torch.cat([values, last.expand(steps - len(values), -1)])


def _lineage(runs: Sequence[Posterior]) -> Tensor:
    """First particles are numbered one run after the other; where nothing descends, each is its own."""
    found: list[Tensor] = []
    before = 0
    for run in runs:
        rows, particles = run.log_weight.shape
        own = torch.arange(particles).expand(rows, -1) if run.lineage is None else run.lineage
        found.append(own + before)
        before += particles
    return torch.cat(found, 1)


def _answers(parts: Sequence[Any], runs: Sequence[Posterior]) -> list[Any]:
    """One for each particle, flat, replicate by replicate; None of those that died."""
    found: list[Any] = []
    for r in range(len(runs[0].log_weight)):
        for part, run in zip(parts, runs, strict=True):
            each = run.log_weight.shape[1]
            found += [None] * each if part is None else part[r * each : (r + 1) * each]
    return found


def _cat(parts: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([part for part in parts if part is not None], 1)


__all__ = ["pooled"]
