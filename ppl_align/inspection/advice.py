"""The lines that close an inspection: between which betas to choose, and what stands in the way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ppl_align.inspection.doubt import doubt
from ppl_align.inspection.pool import Pool
from ppl_align.inspection.predictive import PriorReward
from ppl_align.inspection.strengths import SLIGHT, Strength, useful_range
from ppl_align.inspection.trials import Trials
from ppl_align.inspection.weighted import ENOUGH


def advise(
    pool: Pool, written: Strength, grid: Sequence[Strength], rewards: Sequence[PriorReward], trials: Trials = Trials()
) -> list[str]:
    """The recommendation first. ``trials``: which engines would run at all."""
    return [_range(pool, grid), _as_written(pool, written, trials), *_beware(pool, rewards)]


def _range(pool: Pool, grid: Sequence[Strength]) -> str:
    if not pool.chosen:
        return "There is no reward with a beta of its own, so none to choose."
    found, draws = useful_range(list(grid)), _draws(pool)
    if not pool.told_apart:
        return f"At no beta do the rewards prefer one of the {draws} to another: they reject, or say the same of all."
    if found is None:
        if not any(s.enough for s in grid):
            return f"At no beta do {draws} carry {ENOUGH:.0f} effective ones: draw more, or it is rare by design."
        return f"At no beta do the rewards move the target by {SLIGHT:g} nats while {draws} still carry it."
    low, high = found
    beta = pool.beta
    span = (
        f"beta between {low * beta:.3g} and {high * beta:.3g}" if beta else f"{low:.3g} to {high:.3g} times the betas"
    )
    return f"{span}: the reward acts ({SLIGHT:g} nats or more) and {draws} carry it (ESS {ENOUGH:.0f})."


def _draws(pool: Pool) -> str:
    return f"{pool.num_draws} draws " + ("from within" if pool.confined else "of the prior")


def _as_written(pool: Pool, written: Strength, trials: Trials) -> str:
    at = f"at beta {pool.beta:.3g}" if pool.beta else "as written"
    if written.ess == 0:
        rest = "end dead" if pool.confined else "are rejected: what is asked for is rare"
        return f"{at}, all {_draws(pool)} {rest}."
    if pool.confined:
        meets = pool.base.log_evidence
        of_prior = "a share not known" if math.isinf(meets.value) else f"{100 * math.exp(meets.value):.2g}%"
        at = f"{at}, {of_prior} of the prior meets the constraints, and engines draw from within them: there"
    why = doubt(pool, written)
    if pool.unmet:
        return f"{at}, {why}."
    known = f"KL is {written.kl.value:.2f} nats and the ESS {written.ess:.0f}"
    if why is None:
        return f"{at}, {known}: importance sampling will do."
    if written.enough:
        return f"{at}, {known}, but {why}: draw more to tell."
    return (
        f"{at}, KL is about {written.kl.value:.2f} nats and {pool.num_draws} draws are worth {written.ess:.1f}: "
        f"{_remedies(pool, trials)}."
    )


def _remedies(pool: Pool, trials: Trials) -> str:
    """What is there to be done, by engines that would run."""
    trains = trials.svi is None and not bool(pool.log_weight.isneginf().any()) and not pool.particles.environment
    steering = [how for how, works in (("SMC", trials.resamples), ("a trained guide", trains)) if works]
    listed = ["draw more", *([f"steer ({', '.join(steering)})"] if steering else [])]
    listed += ["raise beta"] if pool.told_apart else []
    return ", ".join(listed[:-1]) + f" or {listed[-1]}" if len(listed) > 1 else listed[0]


def _beware(pool: Pool, rewards: Sequence[PriorReward]) -> Iterator[str]:
    for reward in rewards:
        if reward.applies == 0:
            yield f"{reward.name} applies to none of the draws."
        elif reward.sd == 0 and reward.rejected:
            yield f"{reward.name} is {reward.mean.value:.3g} wherever it does not reject: its beta changes nothing."
        elif reward.sd == 0:
            yield f"{reward.name} is {reward.mean.value:.3g} on every draw: it does not tell them apart."
        elif reward.ties >= 0.5 and math.isfinite(reward.ties):
            yield f"{reward.name} has the same value on {100 * reward.ties:.0f}% of the draws."
    if pool.particles.environment:
        names = ", ".join(map(repr, pool.particles.environment))
        yield f"the world answers at {names}: conditioning bends that too, so log Z and KL include its optimism."
