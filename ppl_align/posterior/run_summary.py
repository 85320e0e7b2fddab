"""Every number about one run, computed once: tables, advice, JSON, reports and the command line read this."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor

from ppl_align.core.estimate import Estimate
from ppl_align.particles.weights import Weights
from ppl_align.posterior import diversity, evidence, policy
from ppl_align.posterior.chains import acceptance, chain_numbers, effective_draws, furthest_apart
from ppl_align.posterior.doubts import doubts
from ppl_align.posterior.lineage import ancestors_by_replicate, by_ancestor
from ppl_align.posterior.once import once
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.unstated import unstated

_Number = TypeVar("_Number")


def _of(function: Callable[[Posterior], _Number]) -> cached_property[_Number]:
    """A function of the run, computed when somebody asks."""
    return cached_property(lambda summary: function(summary.run))


def _of_weights(function: Callable[[Weights], float | None]) -> cached_property[float | None]:
    """The same of its weights; None for the whole support, and where weights do not estimate Z."""
    return _of(lambda run: None if run.exact or not run.kind.has_evidence else function(run.importance_weights))


class RunSummary:
    """What one finished run says, and how far to trust it; None (of an estimate: NaN) where it has no meaning.

    Nats unless said otherwise; numbers of weights are per replicate, averaged over replicates."""

    def __init__(self, run: Posterior) -> None:
        self.run = run

    # -- estimates, with their error bars ------------------------------------------------------------------------------

    log_z = _of(evidence.log_z)
    log_evidence = _of(evidence.log_evidence)
    standard_error = _of(evidence.standard_error)
    spread = _of(evidence.spread)
    kl = _of(evidence.kl)
    kl_is_lower_bound = _of(lambda run: evidence.kl_to_prior(run).lower_bound)
    rewards = _of(lambda run: {name: run.mean(name) for name in run.rewards})
    own_rewards = _of(lambda run: {name: policy.own_mean(run, name) for name in run.rewards})
    """E_q[r] of a trained guide by itself, reward units."""
    elbo = _of(evidence.elbo)
    decision_value = _of(policy.decision_value)

    # -- sampling diagnostics ------------------------------------------------------------------------------------------

    ess = _of_weights(lambda weights: float(weights.ess.mean()))
    """For SMC: of the weights gathered since the last resampling only."""
    largest_weight = _of_weights(lambda weights: float(weights.largest.mean()))
    effective_draws = _of(
        lambda run: effective_draws(run) if run.kind.is_ordered else float(run.importance_weights.pooled.ess)
    )
    """Weight ESS of all replicates together; of chains, what their autocorrelation leaves."""
    perplexity = _of(lambda run: float(run.importance_weights.pooled.perplexity))
    """Draws that carry the weight, all replicates together."""
    pareto_k = _of(lambda run: None if run.exact else _mean_of_known(run.importance_weights.pareto_k))
    rhats = _of(lambda run: {name: r for name in run.rewards if (r := evidence.rhat(run, name)) is not None})
    chains = _of(chain_numbers)
    """Of Markov chains, by reward, latent and so on: mean and MCSE, R-hat, bulk and tail ESS. Else empty."""
    acceptance = _of(acceptance)
    """Share of the moves of Markov chains that were accepted after the warm-up."""
    unique_ancestors = _of(diversity.unique_ancestors)
    ancestors = _of(ancestors_by_replicate)
    """First particles with living descendants, per replicate; None where nothing descends."""
    ancestral_weights = _of(lambda run: by_ancestor(run, run.weights))
    """Normalised weights, [R, N]; what descends from one first particle is one draw, and adds up its weight."""
    distinct_completions = _of(diversity.distinct_completions)
    entropy = _of(diversity.entropy_of_draws)
    distinct_ngrams = _of(diversity.distinct_ngrams)
    posterior_entropy = _of(diversity.posterior_entropy)
    """Of the completions under p*, as this run sees it."""
    posterior_entropy_is_lower_bound = _of(diversity.is_bounded)
    attainable_entropy = _of(diversity.attainable_entropy)
    """What :attr:`entropy` can show at most."""
    precision = _of(evidence.precision_per_1000_tokens)
    """1 / relvar of Zhat per 1000 LM tokens."""
    precision_interval = _of(evidence.precision_interval)
    doubts = _of(doubts)
    """Why it may have seen too little; gravest first."""
    unstated = _of(unstated)
    """Errors that cannot be stated, and why."""

    @property
    def worst_rhat(self) -> float | None:
        """Of the reward that replicates agree on least; of Markov chains, of the number that they agree on least."""
        apart = furthest_apart(self.run)
        return max(self.rhats.values(), default=None) if apart is None else apart[1]

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
            "rhat": self.worst_rhat,
            "ess_bulk": _smallest(number.stats.bulk for number in self.chains.values()),
            "ess_tail": _smallest(number.stats.tail for number in self.chains.values()),
            "acceptance": self.acceptance,
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

    @property
    def chain_rows(self) -> dict[str, dict[str, float]]:
        """Of Markov chains, by number: mean, mcse, rhat, ess_bulk and ess_tail; NaN where nothing can be told."""
        return {
            name: {
                "mean": number.mean.value,
                "mcse": number.stats.mcse,
                "rhat": number.stats.rhat,
                "ess_bulk": number.stats.bulk,
                "ess_tail": number.stats.tail,
            }
            for name, number in self.chains.items()
        }


@once
def summary_of(run: Posterior) -> RunSummary:
    """The summary of a run, the same object each time."""
    return RunSummary(run)


def _mean_of_known(values: Tensor) -> float | None:
    """Of the replicates that have a tail to fit; None where none has."""
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else None


def _smallest(values: Iterable[float]) -> float | None:
    return min((value for value in values if not math.isnan(value)), default=None)


def _with_bar(key: str, error: str, estimate: Estimate) -> dict[str, float]:
    """A number, its standard error where one can be stated, and its 95% interval."""
    low, high = estimate.interval()
    stated = estimate.standard_error if estimate.stated else math.nan
    return {key: estimate.value, error: stated, f"{key}_low": low, f"{key}_high": high}
