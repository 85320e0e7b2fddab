"""The columns of a comparison: one place says what each is called, how it is printed and what it means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ppl_align.core.printed import with_error


def is_missing(value: Any) -> bool:
    """None or NaN: the number has no meaning for that run."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(digits: int) -> Callable[[Any], str]:
    """Significant digits, without an exponent where one can do without."""

    def show(value: float) -> str:
        if math.isinf(value):
            return "-inf" if value < 0 else "inf"
        return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"

    return show


def fixed(decimals: int) -> Callable[[Any], str]:
    """A fixed number of decimals, so that a column can be read downwards."""
    return lambda value: number(1)(value) if math.isinf(value) else f"{value:,.{decimals}f}"


def whole(value: float) -> str:
    """1,234; a mean over replicates keeps one decimal."""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:,.1f}"


def whole_draws(value: float) -> str:
    """1,234: of effective draws nobody needs decimals, unless there are hardly any."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def percent(value: float) -> str:
    """A share to two digits: 48%, 1.6%, 0%."""
    return f"{100 * value:.2g}%" if value < 0.995 else "100%"


@dataclass(frozen=True)
class Column:
    """``key`` in the table, ``header`` on screen, the ``block`` it is shown in, and its meaning in one line.

    ``error`` is printed after the value, ``beside`` after a slash, ``interval`` (two keys) in brackets; ``bound`` puts
    a sign in front, and no error behind, where true."""

    key: str
    header: str
    block: str
    meaning: str
    show: Callable[[Any], str] = str
    error: str | None = None
    beside: str | None = None
    bound: str | None = None
    interval: tuple[str, str] | None = None

    def text(self, row: Mapping[str, Any]) -> str:
        """The cell of one row; a dash where the number has no meaning."""
        value: Any = row.get(self.key)
        if is_missing(value):
            return "-"
        bounded = self.bound is not None and bool(row.get(self.bound))
        if self.error is not None and not bounded:
            return with_error(value, row[self.error])
        shown = ("≥ " if bounded else "") + self.show(value)
        if self.interval is not None and not any(is_missing(row[key]) for key in self.interval):
            shown += " ({} to {})".format(*(self.show(row[key]) for key in self.interval))
        if self.beside is not None and not is_missing(row[self.beside]):
            shown += " / " + self.show(row[self.beside])
        return shown


ANSWER, TRUST, DIVERSITY, COST = "answer", "trust", "diversity", "cost"
BLOCKS = {
    ANSWER: "Estimates",
    TRUST: "Sampling diagnostics",
    DIVERSITY: "Diversity of its draws (run / posterior)",
    COST: "Cost",
}

COLUMNS = (
    Column(
        "log_evidence",
        "log Z",
        ANSWER,
        "pooled log of the mean Zhat over replicates, nats ± standard error",
        error="se[log Z]",
    ),
    Column(
        "decision_value",
        "J",
        ANSWER,
        "E[log-likelihood] - KL(policy||p0) with the world as it is, nats: what SVI and TreePlanner maximise",
        number(3),
        error="decision_value_error",
    ),
    Column(
        "kl_to_prior",
        "KL(p*||p0)",
        ANSWER,
        "nats the posterior lies from the prior ± standard error; ≥ where fewer than 10 draws carry the estimate",
        number(3),
        error="se[KL]",
        bound="kl_is_lower_bound",
    ),
    Column("elbo_gap", "ELBO gap", ANSWER, "best log Z of all runs - ELBO: estimates KL(guide||p*), nats", number(3)),
    Column("num_replicates", "R", TRUST, "independent replicates; of MCMC: chains", whole),
    Column("num_particles", "N", TRUST, "particles of each replicate; of MCMC: states of each chain", whole),
    Column("log_evidence_spread", "spread", TRUST, "standard deviation of log Zhat over replicates, nats", number(2)),
    Column("unique_ancestors", "ancestors", TRUST, "first particles with living descendants, per replicate", whole),
    Column("distinct_completions", "distinct", TRUST, "completions of positive weight, per replicate", whole),
    Column("ess", "ESS", TRUST, "effective draws by the weights, per replicate; sees only what was visited", fixed(1)),
    Column(
        "khat", "k-hat", TRUST, "Pareto tail index of the weights, good below 0.7; sees only what was visited", fixed(2)
    ),
    Column("largest_weight", "max w", TRUST, "largest normalised weight, per replicate", number(2)),
    Column(
        "ess_bulk",
        "bulk ESS",
        TRUST,
        "effective draws of Markov chains by their autocorrelation, all together (worst number); it takes 400",
        whole_draws,
    ),
    Column(
        "ess_tail",
        "tail ESS",
        TRUST,
        "the same of the 5% and 95% quantiles, the fewer of both (worst number); it takes 400",
        whole_draws,
    ),
    Column(
        "rhat",
        "R-hat",
        TRUST,
        "agreement of replicates on each E[r] (worst reward); of chains: rank-normalised, of halves of chains (worst "
        "number); 1 is agreement",
        fixed(3),
    ),
    Column(
        "acceptance",
        "accepts",
        TRUST,
        "share of the moves of chains that were accepted (particle Gibbs: that changed the state), after the warm-up",
        percent,
    ),
    Column(
        "unseen",
        "unseen",
        TRUST,
        "share of another run's exact draws that weigh more than anything this run visited: what it cannot know of",
        percent,
    ),
    Column(
        "entropy",
        "entropy",
        DIVERSITY,
        "of the completions in 100 equal-weight draws, nats / the most that 100 draws of the posterior can show",
        fixed(2),
        beside="entropy_posterior",
    ),
    Column(
        "distinct2",
        "distinct-2",
        DIVERSITY,
        "different token pairs / all pairs in the completions of 100 draws / the same for the best run",
        fixed(2),
        beside="distinct2_posterior",
    ),
    Column("lm_tokens", "LM tokens", COST, "rows decoded by the network, all replicates", whole),
    Column("scored_tokens", "scored", COST, "positions of teacher-forced scoring", whole),
    Column("lm_forwards", "forwards", COST, "calls of the network", whole),
    Column("reward_calls", "reward calls", COST, "texts a reward was asked about", whole),
    Column("environment_calls", "world calls", COST, "questions to functions that stand for the world", whole),
    Column("seconds", "seconds", COST, "wall time", fixed(1)),
    Column(
        "precision_per_1000_tokens",
        "precision/1k",
        COST,
        "1 / relative variance of one replicate's Zhat, per 1000 tokens (decoded + scored) of it (95% interval)",
        number(2),
        interval=("precision_per_1000_tokens_low", "precision_per_1000_tokens_high"),
    ),
)

CHAIN_COLUMNS = (
    Column("mean", "mean", TRUST, "over all states of all chains", number(4)),
    Column(
        "mcse", "MCSE", TRUST, "Monte Carlo standard error of the mean, by the autocorrelation of chains", number(2)
    ),
    Column("rhat", "R-hat", TRUST, "rank-normalised split R-hat; it takes 1.01 at most", fixed(3)),
    Column(
        "ess_bulk", "bulk ESS", TRUST, "effective draws of the bulk, all chains together; it takes 400", whole_draws
    ),
    Column("ess_tail", "tail ESS", TRUST, "of the 5% and 95% quantiles, the fewer of both; it takes 400", whole_draws),
)
"""Of each number of a run of Markov chains, as ArviZ has them (Vehtari et al. 2021, arXiv:1903.08008)."""
CHAINS = "Markov chains, number by number"


def reward_column(name: str, target: float | None = None) -> Column:
    """The column of one reward, and its target mean, if it has one."""
    wanted = "" if target is None else f", target: {target:g}"
    return Column(
        f"E[{name}]",
        f"E[{name}]" + ("" if target is None else f" → {target:g}"),
        ANSWER,
        f"posterior mean of the reward ± standard error{wanted}",
        number(3),
        error=f"se[{name}]",
    )


def guide_column(name: str) -> Column:
    """The same reward in the draws of a trained guide as they are; a dash for runs that train none."""
    return Column(
        f"E_q[{name}]",
        f"guide E[{name}]",
        ANSWER,
        "mean of the reward over the trained guide's own draws, without weights ± standard error: what you deploy",
        number(3),
        error=f"se_q[{name}]",
    )
