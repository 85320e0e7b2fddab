"""The lines that close an inspection: between which betas to choose, and what stands in the way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from ppl_align.inspection.pool import Pool
from ppl_align.inspection.predictive import PriorReward
from ppl_align.inspection.strengths import SLIGHT, Strength, useful_range
from ppl_align.inspection.weighted import ENOUGH, Weighted
from ppl_align.inspection.within import Within
from ppl_align.posterior.estimates import with_error


def advise(
    pool: Pool,
    written: Strength,
    grid: Sequence[Strength],
    rewards: Sequence[PriorReward],
    beta: float | None,
    within: Within | None = None,
) -> list[str]:
    """The recommendation first. ``beta``: of the only reward, to speak of it rather than of multiples; ``within``:
    draws from within the hard constraints."""
    return [_range(pool, grid, beta), _as_written(pool, written, beta, within), *_beware(pool, rewards)]


def _range(pool: Pool, grid: Sequence[Strength], beta: float | None) -> str:
    if not pool.chosen:
        return "There is no reward with a beta of its own, so none to choose."
    found = useful_range(list(grid))
    n = pool.num_draws
    if found is None:
        if not any(s.enough for s in grid):
            return (
                f"At no beta do {n} draws of the prior carry {ENOUGH:.0f} effective ones: draw more, or rare by design."
            )
        return f"At no beta do the rewards move the prior by {SLIGHT:g} nats while {n} draws still carry it."
    low, high = found
    span = (
        f"beta between {low * beta:.3g} and {high * beta:.3g}" if beta else f"{low:.3g} to {high:.3g} times the betas"
    )
    return f"{span}: the reward acts ({SLIGHT:g} nats or more) and {n} draws of the prior carry it (ESS {ENOUGH:.0f})."


def _as_written(pool: Pool, written: Strength, beta: float | None, within: Within | None) -> str:
    at = f"at beta {beta:.3g}" if beta else "as written"
    if pool.constraints and not written.enough:
        meets = float(torch.stack([pool.factors[name].isfinite() for name in pool.constraints]).all(0).double().mean())
        line = f"{at}, {100 * meets:.2g}% of the prior's draws meet the constraints: engines draw from within them."
        if within is None:
            return line
        drawn = Weighted(within.log_weight)
        log_evidence = drawn.log_evidence
        found = with_error(*log_evidence) if drawn.enough else f"at least {log_evidence.value:.2f}"
        return f"{line} {within.num_draws} such draws are worth {drawn.ess:.0f}; log Z is {found}."
    if written.ess == 0:
        return f"{at}, all {pool.num_draws} draws of the prior are rejected: what is asked for is rare."
    if written.enough:
        return f"{at}, KL is {written.kl.value:.2f} nats and the ESS {written.ess:.0f}: importance sampling will do."
    return (
        f"{at}, KL is at least {written.kl.value:.2f} nats and {pool.num_draws} draws are worth {written.ess:.1f}: "
        "steer (SMC, a trained guide) or raise beta."
    )


def _beware(pool: Pool, rewards: Sequence[PriorReward]) -> Iterator[str]:
    for reward in rewards:
        if reward.applies == 0:
            yield f"{reward.name} applies to none of the draws."
        elif reward.sd == 0:
            yield f"{reward.name} is {reward.mean.value:.3g} on every draw: it does not tell them apart."
        elif reward.ties >= 0.5 and math.isfinite(reward.ties):
            yield f"{reward.name} has the same value on {100 * reward.ties:.0f}% of the draws."
    if pool.environment:
        names = ", ".join(map(repr, pool.environment))
        yield f"the world answers at {names}: conditioning bends that too, so log Z and KL include its optimism."
