"""What the states of Markov chains are worth: fewer draws than there are states, since they resemble each other."""

from __future__ import annotations

import math

from ppl_align.core.arviz_adapter import chain_ess
from ppl_align.posterior.estimates import numbers_of_sites
from ppl_align.posterior.once import once
from ppl_align.posterior.result import Posterior


@once
def effective_draws(run: Posterior) -> float:
    """Effective draws, all chains together, of the number that moves slowest; one a chain where none moved."""
    found = [chain_ess(values.numpy()) for values in numbers_of_sites(run).values() if bool(values.isfinite().all())]
    known = [ess for ess in found if not math.isnan(ess)]
    return min(known, default=float(len(run.log_weight)))
