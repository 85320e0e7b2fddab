"""The lines that close an inspection: between which betas to choose, and what stands in the way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ppl_align.inspection.costs import Trials
from ppl_align.inspection.pool import Pool
from ppl_align.inspection.predictive import PriorReward
from ppl_align.inspection.strengths import SLIGHT, Strength, useful_range
from ppl_align.inspection.weighted import ENOUGH
from ppl_align.posterior.doubts import LOG_Z, OF_THE_SHIFT, ROOM, shift_level, skewed, too_wide

UNNOTICED = 0.05  # nats


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


def doubt(pool: Pool, written: Strength) -> str | None:
    """Why importance sampling with as many draws as the pool has would not do; None: it will. What keeps them from
    being believed is told by the measures of comparisons.

    A pool is a run of importance sampling that nobody has paid for yet, so it has to pass what a run has to
    (:mod:`ppl_align.posterior.doubts`): every reward has varied, bars of log Z and of each E[r] are small, weights are
    not too skewed for them, and declared bounds leave no room for more. Where rewards hardly move the target at all,
    how far they move E[r] is not asked: it would take thousands of draws to see, and more engines would see no
    more."""
    if pool.unmet:
        return f"nothing was learned of {', '.join(map(repr, pool.unmet))}: {_what_could_hide(pool)}"
    w, upper = pool.weighted(pool.psi), pool.log_evidence_upper
    if not written.enough:
        return f"{pool.num_draws} draws are worth {written.ess:.1f}"
    if upper is not None and upper - w.log_evidence.value > ROOM:
        return f"by the bounds of its factors log Z may lie {upper - w.log_evidence.value:.1f} nats higher (95%)"
    means = {name: w.mean(r) for name, r in pool.particles.rewards.items()}
    worst = max([abs(mean.skewness) for mean in means.values()], default=abs(w.log_evidence.skewness))
    found = [too_wide("log Z", w.log_evidence, LOG_Z, f"{LOG_Z:g} nats"), skewed(w.predicted, w.num_draws, worst)]
    hardly = written.kl.interval()[1] < UNNOTICED
    for name, mean in means.items():
        r = pool.particles.rewards[name]
        if not hardly and not bool((r == r[0]).all()):
            moved = abs(mean.value - pool.base.mean(r).value)
            goal = f"{OF_THE_SHIFT:.0%} of what it moves"
            found.append(too_wide(f"E[{name}]", mean, OF_THE_SHIFT * moved, goal, level=shift_level(pool.num_draws)))
    return next((each.reason for each in found if each is not None), None)


def _what_could_hide(pool: Pool) -> str:
    """Of a reward that was the same on all draws: how much it may still do."""
    said = f"the same on all draws, it may differ on {100 * pool.hidden:.2g}% of what they are from (95%)"
    upper = pool.log_evidence_upper
    if upper is None:
        return f"{said}, and without declared bounds that may be all of the posterior"
    lowest = pool.weighted(pool.psi).log_evidence.value
    if upper - lowest <= ROOM:
        return f"{said}; by its bounds that moves log Z by {upper - lowest:.2g} nats at most"
    return f"{said}, and by its bounds log Z may be as high as {upper:.3g} (it looks like {lowest:.3g})"


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
