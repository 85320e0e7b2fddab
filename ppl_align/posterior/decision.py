"""J, the value of a policy: what a run that decides gets in a world left as it is."""

from __future__ import annotations

from ppl_align.core.estimate import of_draws
from ppl_align.posterior.estimates import Estimate
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.totals import log_likelihood, log_prior


def decision_value(posterior: Posterior) -> Estimate | None:
    """J in nats: of the policy of a run that decides; of the agent that conditions, where it is known."""
    if posterior.target == "posterior":
        known = None if posterior.optimism is None else posterior.optimism.value
        return None if known is None else Estimate(known, 0.0)
    if posterior.log_proposal is None:
        return None
    each = (log_prior(posterior) + log_likelihood(posterior) - posterior.log_proposal).reshape(-1)
    return of_draws(each)
