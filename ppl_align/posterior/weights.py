"""What the weights of one run say about it: computed per replicate and averaged.

What each number is: :mod:`ppl_align.particles.weights`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppl_align.posterior import Posterior


def ess(posterior: Posterior) -> float:
    """Weight ESS, mean over replicates. For SMC: of the weights gathered since the last resampling only."""
    return float(posterior.importance_weights.ess.mean())


def largest(posterior: Posterior) -> float:
    """The largest normalised weight, mean over replicates."""
    return float(posterior.importance_weights.largest.mean())


def pareto_k(posterior: Posterior) -> float | None:
    """k-hat, mean over the replicates that have a tail to fit; None where none has, and for the whole support."""
    if posterior.exact:
        return None
    found = posterior.importance_weights.pareto_k
    known = ~found.isnan()
    return float(found[known].mean()) if bool(known.any()) else None
