"""Will importance sampling do? What keeps the draws of a pool from being believed, by the measures of comparisons.

A pool is a run of importance sampling that nobody has paid for yet, so it has to pass what a run has to
(:mod:`ppl_align.posterior.doubts`): every reward has varied, bars of log Z and of each E[r] are small, weights are
not too skewed for them, and declared bounds leave no room for more. Where rewards hardly move the target at all, how
far they move E[r] is not asked: it would take thousands of draws to see, and more engines would see no more.
"""

from __future__ import annotations

import torch

from ppl_align.inspection.pool import Pool
from ppl_align.inspection.strengths import Strength
from ppl_align.posterior.doubts import LOG_Z, OF_THE_SHIFT, ROOM, shift_level, skewed, too_wide

UNNOTICED = 0.05  # nats


def doubt(pool: Pool, written: Strength) -> str | None:
    """Why importance sampling with as many draws as the pool has would not do; None: it will."""
    if pool.unmet:
        return f"nothing was learned of {', '.join(map(repr, pool.unmet))}: {_what_could_hide(pool)}"
    w, upper = pool.weighted(pool.psi), pool.log_evidence_upper
    if not written.enough:
        return f"{pool.num_draws} draws are worth {written.ess:.1f}"
    if upper is not None and upper - w.log_evidence.value > ROOM:
        return f"by the bounds of its factors log Z may lie {upper - w.log_evidence.value:.1f} nats higher (95%)"
    means = {name: w.mean(r) for name, r in pool.particles.rewards.items()}
    worst = max([abs(mean.skewness) for mean in means.values()], default=abs(w.log_evidence.skewness))
    found = [too_wide("log Z", w.log_evidence, LOG_Z, f"{LOG_Z:g} nats"), skewed(w.predicted, w.num_draws, worst)]
    hardly = written.kl.interval()[1] < UNNOTICED
    for name, mean in means.items():
        if not hardly and not _constant(pool.particles.rewards[name]):
            moved = abs(mean.value - pool.base.mean(pool.particles.rewards[name]).value)
            goal = f"{OF_THE_SHIFT:.0%} of what it moves"
            found.append(too_wide(f"E[{name}]", mean, OF_THE_SHIFT * moved, goal, level=shift_level(pool.num_draws)))
    return next((each.reason for each in found if each is not None), None)


def _constant(r: torch.Tensor) -> bool:
    return bool((r == r[0]).all())


def _what_could_hide(pool: Pool) -> str:
    """Of a reward that was the same on all draws: how much it may still do."""
    said = f"the same on all draws, it may differ on {100 * pool.hidden:.2g}% of what they are from (95%)"
    upper = pool.log_evidence_upper
    if upper is None:
        return f"{said}, and without declared bounds that may be all of the posterior"
    lowest = pool.weighted(pool.psi).log_evidence.value
    if upper - lowest <= ROOM:
        return f"{said}; by its bounds that moves log Z by {upper - lowest:.2g} nats at most"
    return f"{said}, and by its bounds log Z may be as high as {upper:.3g} (it looks like {lowest:.3g})"
