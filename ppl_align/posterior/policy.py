"""A policy by itself: J, its value, and what its draws are like before any weight corrects them.

The expectations of a run are those of the posterior: draws of the guide, weighted by p*/q. Whoever ships the guide
(an adapter, say) ships the draws without the weights: these get deployed.
"""

from __future__ import annotations

import math

from ppl_align.core.estimate import of_draws
from ppl_align.posterior.estimates import Estimate
from ppl_align.posterior.prior import log_likelihood, log_prior
from ppl_align.posterior.result import Posterior


def is_trained(posterior: Posterior) -> bool:
    """Are the particles draws of a guide that this run has trained?"""
    return posterior.losses is not None and posterior.independent


def own_mean(posterior: Posterior, reward: str) -> Estimate | None:
    """E_q[r] of a trained guide q, reward units: r averaged over all R * N draws as they are. None for other runs.

    The draws are independent, those of all replicates of one guide: the error is sd / sqrt(R N). Draws to which the
    reward does not apply (NaN) do not count; -inf in one of them is -inf in the mean."""
    if not is_trained(posterior):
        return None
    r = posterior.rewards[reward].double().reshape(-1)
    r = r[~r.isnan()]
    if not len(r):
        return Estimate(math.nan, math.nan)
    if bool(r.isinf().any()):
        return Estimate(float(r.mean()), math.nan)
    found = of_draws(r)
    return found if found.standard_error > 0 else found._replace(dof=math.nan)  # equal draws do not tell their error


def decision_value(posterior: Posterior) -> Estimate | None:
    """J in nats, what is got in a world left as it is: of the policy of a run that decides; of the agent that
    conditions, where it is known."""
    if posterior.target == "posterior":
        known = None if posterior.optimism is None else posterior.optimism.value
        return None if known is None else Estimate(known, 0.0)
    if posterior.log_proposal is None:
        return None
    return of_draws((log_prior(posterior) + log_likelihood(posterior) - posterior.log_proposal).reshape(-1))
