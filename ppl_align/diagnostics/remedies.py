"""What to do next, in numbers: how many particles, at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ppl_align.core.estimate import FEWEST_EXACT
from ppl_align.diagnostics import decisions
from ppl_align.posterior.chains import chain_settings, stuck_chains
from ppl_align.posterior.doubts import Doubt, more
from ppl_align.posterior.estimates import MIN_REPLICATES
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.run_summary import summary_of
from ppl_align.posterior.unstated import BETTER_PROPOSAL

CHAINS_ALONE = (
    "Chains cannot show that they have reached every mode: run an engine that estimates log Z beside them, or others "
    "that begin elsewhere (init=)."
)
HOPELESS = 1e4  # times as many draws: nobody will


def what_to_do(best: Posterior) -> str:
    """Where no run can be trusted, with the best of them."""
    replicates, particles = best.log_weight.shape
    if best.draws_are_exact:
        return f"Draw more: it takes {FEWEST_EXACT} exact draws for error bars (num_particles times num_replicates)."
    if best.kind is Kind.CHAIN:
        return _for_chains(best)
    if best.losses is not None:
        return (
            f"Train it longer than num_steps={len(best.losses)}, or with a lower learning_rate, and draw more "
            f"than num_particles={particles}; or run importance sampling or SMC beside it."
        )
    told = summary_of(best)
    kl = told.kl.value
    far = math.isfinite(kl) and told.kl_is_lower_bound
    if far and best.independent and not best.steered and kl > math.log(best.log_weight.numel()) - 1:
        return (
            f"The posterior lies at least {kl:.1f} nats from the prior: it takes well over {_exp(kl)} "
            f"draws of the prior, and this run has {best.log_weight.numel():,}. Raise beta, or use a twist or a "
            "trained guide as proposal."
        )
    if not best.independent and replicates < MIN_REPLICATES:
        return f"Take num_replicates={MIN_REPLICATES} or more."
    factor = more(best)
    if factor is None or factor > HOPELESS:
        return "Use a twist, or a trained guide as proposal."
    tokens = factor * (best.cost.lm_tokens + best.cost.scored_tokens)
    price = f" ({tokens:,.0f} LM tokens)" if tokens else ""
    return f"Take num_particles={math.ceil(factor * particles):,}{price}, or a twist, or a guide as proposal."


def _for_chains(run: Posterior) -> str:
    chains, states = chain_settings(run)
    if stuck_chains(run):
        return (
            "Take a kernel that changes less at a time (BlockSuffixMH, InfillMH), a Cycle of several, or other states "
            "to begin in (init=)."
        )
    if len(run.log_weight) < MIN_REPLICATES:
        return f"Take {chains}={MIN_REPLICATES} or more."
    return (
        f"Run longer chains than {states}={run.log_weight.shape[1]}, with a longer warm-up, or take a kernel that "
        "moves further."
    )


def _exp(nats: float) -> str:
    """e^nats, as far as anybody would read it."""
    return f"{math.exp(nats):,.0f}" if nats < math.log(1e9) else f"e^{nats:.0f}"


def what_would_tell(runs: Mapping[str, Posterior], doubted: Mapping[str, list[Doubt]]) -> str:
    """The cheapest way to an answer, in numbers: how many particles, at what cost."""
    prices = {}
    for name, found in doubted.items():
        factors = [doubt.factor for doubt in found]
        if not any(factor is None for factor in factors):
            cost = runs[name].cost
            factor = max(factor for factor in factors if factor is not None)
            prices[name] = factor * (cost.lm_tokens + cost.scored_tokens), factor
    cheapest = min(prices, key=lambda name: prices[name][0], default=None)
    if cheapest is None or prices[cheapest][1] > HOPELESS:
        steered = all(runs[name].steered for name in doubted)
        other = BETTER_PROPOSAL if steered else "use another twist, or a trained guide as proposal"
        return f"More draws of these engines would not tell: {other}."
    tokens, factor = prices[cheapest]
    draws = math.ceil(factor * runs[cheapest].log_weight.numel())
    price = f" ({tokens:,.0f} LM tokens)" if tokens else ""
    number, size = ("num_replicates", "num_particles")
    if runs[cheapest].kind is Kind.CHAIN:
        number, size = chain_settings(runs[cheapest])
    return f"About {draws:,} draws of {cheapest} in all would tell{price}: raise {size}, not only {number}."


def what_would_vouch(believed: Sequence[Posterior]) -> str:
    """Where runs have seen enough, and nothing independent of them says the same."""
    if any(run.steered for run in believed):
        return (
            f"Run an engine without a proposal beside it, with num_replicates={MIN_REPLICATES} or more: what a guide "
            "never writes, no run with this guide sees."
        )
    if all(run.kind is Kind.CHAIN for run in believed):
        return CHAINS_ALONE
    return f"Run another engine, or num_replicates={MIN_REPLICATES} or more."


def what_would_confirm(decided: Mapping[str, Posterior]) -> str:
    """Where a decision stands alone, or rests on too few episodes."""
    leader = decisions.best(decided)
    episodes = decisions.lacking(decided[leader])
    if episodes is not None:
        return f"About {episodes:,} episodes of {leader} would tell its J: raise num_particles."
    return "Another engine that decides (SVI, TreePlanner) would confirm it."
