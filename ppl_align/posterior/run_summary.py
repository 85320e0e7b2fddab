"""Every number about one run, computed once: tables, advice, JSON, reports and the command line read this."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ppl_align.core.estimate import Estimate
from ppl_align.posterior import diversity, evidence, policy, weights
from ppl_align.posterior.decision import decision_value
from ppl_align.posterior.doubts import Doubt, doubts
from ppl_align.posterior.once import once
from ppl_align.posterior.unstated import unstated

if TYPE_CHECKING:
    from ppl_align.posterior import Posterior


class RunSummary:
    """What one finished run says, and how far to trust it; None where a number has no meaning for its kind.

    Nats unless said otherwise; weight numbers are per replicate, averaged over replicates."""

    def __init__(self, run: Posterior) -> None:
        self.run = run

    # -- estimates -----------------------------------------------------------------------------------------------------

    @cached_property
    def log_z(self) -> Estimate:
        """The pooled log Z with its error bar; NaN for a policy or a chain."""
        return evidence.log_z(self.run)

    @property
    def log_evidence(self) -> float:
        """log of the mean of Zhat over replicates."""
        return evidence.log_evidence(self.run)

    @cached_property
    def spread(self) -> float | None:
        """Standard deviation of log Zhat over replicates."""
        return evidence.spread(self.run)

    @cached_property
    def standard_error(self) -> float | None:
        """Of the pooled log Z, by the delta method."""
        return evidence.standard_error(self.run)

    @cached_property
    def kl(self) -> Estimate:
        """KL(p* || p0) with its error bar."""
        return evidence.kl(self.run)

    @property
    def kl_is_lower_bound(self) -> bool:
        return evidence.kl_to_prior(self.run).lower_bound

    @cached_property
    def rewards(self) -> dict[str, Estimate]:
        """E[r] by reward, reward units."""
        return {name: self.run.mean(name) for name in self.run.rewards}

    @cached_property
    def own_rewards(self) -> dict[str, Estimate | None]:
        """E_q[r] of a trained guide by itself, reward units."""
        return {name: policy.own_mean(self.run, name) for name in self.run.rewards}

    @cached_property
    def elbo(self) -> float | None:
        """Mean log-weight of a trained guide's draws."""
        return evidence.elbo(self.run)

    @cached_property
    def decision_value(self) -> Estimate | None:
        """J of a policy."""
        return decision_value(self.run)

    # -- sampling diagnostics ------------------------------------------------------------------------------------------

    @property
    def _weighted(self) -> bool:
        return not self.run.exact and self.run.kind.has_evidence

    @cached_property
    def ess(self) -> float | None:
        """Weight ESS."""
        return weights.ess(self.run) if self._weighted else None

    @property
    def effective_draws(self) -> float:
        """Weight ESS of all replicates together."""
        return float(self.run.importance_weights.pooled.ess)

    @cached_property
    def pareto_k(self) -> float | None:
        return weights.pareto_k(self.run)

    @cached_property
    def largest_weight(self) -> float | None:
        return weights.largest(self.run) if self._weighted else None

    @cached_property
    def rhats(self) -> dict[str, float]:
        """R-hat of each reward that has one."""
        found = {name: evidence.rhat(self.run, name) for name in self.run.rewards}
        return {name: r for name, r in found.items() if r is not None}

    @cached_property
    def unique_ancestors(self) -> float | None:
        return diversity.unique_ancestors(self.run) if self._weighted else None

    @cached_property
    def distinct_completions(self) -> float | None:
        return diversity.distinct_completions(self.run)

    @cached_property
    def entropy(self) -> float | None:
        """Of the completions of a number of draws."""
        return diversity.entropy_of_draws(self.run)

    @cached_property
    def distinct_ngrams(self) -> float | None:
        return diversity.distinct_ngrams(self.run)

    @cached_property
    def precision(self) -> float | None:
        """1 / relvar of Zhat per 1000 LM tokens."""
        return evidence.precision_per_1000_tokens(self.run)

    @cached_property
    def precision_interval(self) -> tuple[float, float] | None:
        return evidence.precision_interval(self.run)

    @cached_property
    def doubts(self) -> list[Doubt]:
        """Why it may have seen too little; gravest first."""
        return doubts(self.run)

    @cached_property
    def unstated(self) -> list[str]:
        """Errors that cannot be stated, and why."""
        return unstated(self.run)

    # -- as a row of a table -------------------------------------------------------------------------------------------

    def row(self) -> dict[str, Any]:
        """By the keys of :mod:`ppl_align.diagnostics.columns`."""
        row: dict[str, Any] = {"engine": self.run.engine}
        for name, mean in self.rewards.items():
            row |= _with_bar(f"E[{name}]", f"se[{name}]", mean)
            row[f"E_q[{name}]"], row[f"se_q[{name}]"] = self.own_rewards[name] or (None, None)
        sampled, shape, cost = not self.run.exact, self.run.log_weight.shape, self.run.cost
        row["decision_value"], row["decision_value_error"] = self.decision_value or (None, None)
        low, high = self.precision_interval or (None, None)
        return row | {
            **_with_bar("log_evidence", "se[log Z]", self.log_z),
            "log_evidence_spread": self.spread,
            **_with_bar("kl_to_prior", "se[KL]", self.kl),
            "kl_is_lower_bound": self.kl_is_lower_bound,
            "elbo": self.elbo,
            "num_replicates": shape[0] if sampled else None,
            "num_particles": shape[1] if sampled else None,
            "unique_ancestors": self.unique_ancestors,
            "distinct_completions": self.distinct_completions,
            "ess": self.ess,
            "khat": self.pareto_k,
            "largest_weight": self.largest_weight,
            "rhat": max(self.rhats.values(), default=None),
            "entropy": self.entropy,
            "distinct2": self.distinct_ngrams,
            "lm_tokens": cost.lm_tokens,
            "scored_tokens": cost.scored_tokens,
            "lm_forwards": cost.lm_forwards,
            "reward_calls": cost.reward_calls,
            "environment_calls": cost.environment_calls,
            "seconds": cost.seconds,
            "precision_per_1000_tokens": self.precision,
            "precision_per_1000_tokens_low": low,
            "precision_per_1000_tokens_high": high,
        }


@once
def summary_of(run: Posterior) -> RunSummary:
    """The summary of a run, the same object each time."""
    return RunSummary(run)


def _with_bar(key: str, error: str, estimate: Estimate) -> dict[str, float]:
    """A number, its standard error where one can be stated, and its 95% interval."""
    low, high = estimate.interval()
    stated = estimate.standard_error if estimate.stated else math.nan
    return {key: estimate.value, error: stated, f"{key}_low": low, f"{key}_high": high}
