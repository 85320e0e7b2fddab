"""One run in one paragraph, by its summary."""

from __future__ import annotations

from ppl_align.posterior import policy
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.run_summary import RunSummary, summary_of


def title(posterior: Posterior, of_what: str = "") -> str:
    """What it is, of what program, by what engine, and how much of it; ``of_what``: what the draws are of."""
    draws = {Kind.POLICY: "episodes", Kind.CHAIN: "states of Markov chains"}.get(posterior.kind, "weighted draws")
    what = "Posterior" if posterior.kind.of_posterior else "Decision"
    of = f" of {posterior.model}" if posterior.model else ""
    by = f" ({posterior.lm})" if posterior.lm else ""
    replicates, particles = posterior.log_weight.shape
    return f"{what}{of} by {posterior.engine}: {replicates} x {particles} {draws}{of_what}{by}"


def paragraph(posterior: Posterior) -> str:
    """See :meth:`ppl_align.Posterior.summary`."""
    told = summary_of(posterior)
    what = ", ".join(posterior.completions) or "latents"
    parts = [f"{title(posterior, f' of {what}')}."]
    if posterior.kind is Kind.POLICY:
        parts.append(f"J = {told.decision_value} nats, the world as it is.")
    if posterior.kind.has_evidence:
        spread = "." if told.spread is None else f", spread {told.spread:.2g} over replicates."
        parts.append(f"log Z = {told.log_evidence:.4g}{spread}")
    parts += [f"E[{name}] = {mean}." for name, mean in told.rewards.items()]
    if posterior.kind.of_posterior and policy.is_trained(posterior):
        own = ", ".join(f"E[{name}] = {mean}" for name, mean in told.own_rewards.items())
        parts += [f"The guide by itself has {own}."] if own else []
    parts += _sampled(posterior, told)
    parts += [f"± ?: {line}." for line in told.unstated]
    parts += [f"Warning: {line}." for line in posterior.warnings]
    if posterior.optimism is not None:
        parts.append(f"It conditions the world as well: {posterior.optimism}.")
    parts.append(f"Cost: {posterior.cost}.")
    if posterior.provenance is not None:
        parts.append(f"Made with {posterior.provenance.line}.")
    return " ".join(parts)


def _sampled(posterior: Posterior, told: RunSummary) -> list[str]:
    """What it has drawn, and how its weight is spread over it."""
    distinct = told.distinct_completions
    if posterior.exact:
        listed = posterior.config.get("candidates") is not None  # then the rest was not looked at
        count = posterior.log_weight.isfinite().sum() if distinct is None else distinct
        return [
            f"Exact: {'the' if listed else 'all'} {count:.0f} {'listed ' if listed else ''}"
            f"{'values' if distinct is None else 'completions'} of positive probability."
        ]
    if told.ess is None:
        return [] if distinct is None else [f"{distinct:.1f} distinct completions per replicate."]
    end = "." if distinct is None else f", {distinct:.1f} distinct completions per replicate."
    particles = posterior.log_weight.shape[1]
    return [f"Weight ESS {told.ess:.1f} of {particles}, largest weight {told.largest_weight:.2g}{end}"]
