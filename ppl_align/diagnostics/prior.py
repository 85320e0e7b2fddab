"""Which run represents the prior best."""

from __future__ import annotations

from collections.abc import Iterable

from ppl_align.particles.weights import Weights
from ppl_align.posterior.prior import ENOUGH, prior_log_weight
from ppl_align.posterior.result import Posterior


def best_view_of_prior(posteriors: Iterable[Posterior]) -> Posterior | None:
    """The run whose particles represent the prior best: an exact one, else the one with the largest ESS for p0.

    Particles that were resampled on the way cannot: what the prior often writes and the likelihood dislikes has died
    out, and no weight says how much of it. None where no other run has ``ENOUGH`` effective draws."""
    best, most = None, ENOUGH
    for posterior in posteriors:
        if posterior.exact:
            return posterior
        if not posterior.independent:
            continue
        effective = float(Weights(prior_log_weight(posterior)).pooled.ess)
        if effective > most:
            best, most = posterior, effective
    return best
