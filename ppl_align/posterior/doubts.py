"""What keeps a run that nothing speaks against from being believed: how it could still be wrong, and what would tell.

A run without a complaint may have seen too little to have one. A green light takes more than silence:

1. every reward has taken more than one value (a reward that is the same on all draws has not been met);
2. errors of log Z and of each E[r] can be stated, and are small: E[r] to 30% of what conditioning has moved (a 90%
   interval, which is exceeded on either side by 5%; 95% of fewer than ``FULL`` draws), log Z to half a nat;
3. weights are not too skewed for stated errors: ``PREDICTED`` effective draws, as foretold by the square roots of the
   weights, and |c| (:mod:`ppl_align.core.estimate`) of at most ``SKEWED``, and of at most the share of ``FULL``
   draws (of all, where there are fewer) that these are: of what is far, the draws that would show how skewed it is are
   not there. Of a population that was resampled: ``PREDICTED`` effective draws at its narrowest place, for all that
   comes after descends from these;
   Of Markov chains: an R-hat of at most 1.01, and 400 effective draws of bulk and tails by their autocorrelation
   (:mod:`ppl_align.posterior.chains`);
   Of tempered particles: moves that make log-weights forget half of what they were (a correlation of ``LASTING``);
4. with declared bounds: n draws leave no room for a log Z that is a nat above the estimate.

A run that took more draws until it passed (:mod:`ppl_align.posterior.pooling`) has been looked at several times. It
passes most easily while E[r] is overestimated, for then it seems to have moved far: of it E[r] is to be known (95%) to
30% of the least that it may have moved, 23% of what it seems to. And while more draws than are due have met what is
rare: with ``PREDICTED`` of them a third too many are two standard errors, so it takes twice as many.

The thresholds were chosen in simulations of known truth; ``make honesty`` counts the green lights that stay false.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ppl_align.core.estimate import LEVEL, Estimate
from ppl_align.core.printed import say_draws
from ppl_align.particles.weights import Weights
from ppl_align.posterior import evidence
from ppl_align.posterior.bounded import log_evidence_upper
from ppl_align.posterior.chains import ENOUGH_EFFECTIVE, MIXED_RHAT, furthest_apart, slowest
from ppl_align.posterior.constant import constant_reward, never_met
from ppl_align.posterior.estimates import heavy_tail
from ppl_align.posterior.lineage import more_ancestors
from ppl_align.posterior.once import once
from ppl_align.posterior.prior import ENOUGH, prior_log_weight, prior_mean
from ppl_align.posterior.result import Posterior

PREDICTED = 50.0
SKEWED = 0.4
FULL = 1024  # draws, as many as `make honesty` judges
OF_THE_SHIFT, OF_THE_SHIFT_LEVEL = 0.3, 0.9  # 95% on each side
LOG_Z = 0.5  # nats
LASTING = 0.5  # correlation of log-weights of tempered particles before and after all moves at an exponent
ROOM = 1.0  # nats
MOST = 700.0  # nats: exp of more overflows


@dataclass(frozen=True)
class Doubt:
    """``reason``: how the run may be wrong. ``factor``: times as many draws would tell; None: nobody knows how many."""

    reason: str
    factor: float | None = None


@once
def doubts(run: Posterior) -> list[Doubt]:
    """Empty for a run that may be believed, and for an exact one. Gravest first."""
    if run.exact or run.target == "decision":
        return []
    found = [_never_met(run, name) for name in run.rewards] if not run.draws_are_exact else []
    if run.kind.has_evidence:
        found += [_room(run), too_wide("log Z", evidence.log_z(run), LOG_Z, f"{LOG_Z:g} nats", more(run))]
    found += [*(_mean(run, name) for name in run.rewards), _skewed(run), _narrow(run)]
    found += [_unmixed(run), _slow(run), _lasting(run)]
    return [doubt for doubt in found if doubt is not None]


def _never_met(run: Posterior, name: str) -> Doubt | None:
    value = never_met(run, name)
    if value is None:
        return None
    most = 1 - 0.05 ** (1 / run.log_weight.numel())
    return Doubt(
        f"the reward {name!r} is {value:.3g} on all of its {run.log_weight.numel():,} draws: texts that are rewarded "
        f"otherwise may hold {100 * most:.2g}% of what it drew from, and any share of the posterior"
    )


def _room(run: Posterior) -> Doubt | None:
    upper = log_evidence_upper(run)
    if upper is None:
        return None
    room = upper - evidence.log_evidence(run)
    if room <= ROOM:
        return None
    return Doubt(
        f"by the bounds of its rewards log Z may lie {room:.1f} nats higher (95%): the draws leave room for it",
        math.expm1(min(room, MOST)) / math.expm1(ROOM),
    )


def _mean(run: Posterior, name: str) -> Doubt | None:
    if constant_reward(run, name) is not None:
        return None
    found = shift_of(run, name)
    if found is None:
        return None
    moved, in_words = found
    level, share = shift_level(run.log_weight.numel()), OF_THE_SHIFT
    if _was_looked_at(run):
        level, share = LEVEL, OF_THE_SHIFT / (1 + OF_THE_SHIFT)
    return too_wide(f"E[{name}]", run.mean(name), share * moved, f"{share:.0%} of {in_words}", more(run), level)


def shift_level(total: int) -> float:
    """Of the interval of E[r] that is to be narrow. Of fewer than ``FULL`` draws, those runs that can tell E[r] at all
    can barely tell it: the nearer a run is to the limit, the more of the green lights there are false."""
    return OF_THE_SHIFT_LEVEL if total >= FULL else LEVEL


def too_wide(
    what: str,
    estimate: Estimate,
    goal: float,
    goal_in_words: str,
    unknown: float | None = None,
    level: float = LEVEL,
) -> Doubt | None:
    """Is an interval wider than ``goal`` on either side? ``unknown``: times as many draws for a bar at all."""
    width = estimate.half_width(level)
    if math.isnan(width):
        return Doubt(f"{what} has no error bar", unknown)
    if width <= goal:
        return None
    enough_digits = next((digits for digits in (2, 3, 4) if float(f"{width:.{digits}g}") > goal), 5)
    return Doubt(
        f"{what} is known to ± {width:.{enough_digits}g} ({level:.0%}), not to {goal_in_words}",
        (width / goal) ** 2 if goal else None,
    )


def more(run: Posterior) -> float | None:
    """By what the draws of a run have to grow for an error bar. None: nobody knows, and of weights without a variance
    (:func:`~ppl_align.posterior.estimates.heavy_tail`) no number of draws will do."""
    if heavy_tail(run) is not None:
        return None
    if run.kind.is_ordered:
        found = slowest(run)
        return None if found is None else max(ENOUGH_EFFECTIVE / found[1], 2.0)
    if not run.independent:
        return more_ancestors(run)
    return max(PREDICTED / max(float(run.importance_weights.pooled.foretold_ess), 1e-6), 2.0)


def shift_of(run: Posterior, name: str) -> tuple[float, str] | None:
    """|E[r] - E_p0[r]|, and what to call it; or the least that it can be: KL(p*||p0) + KL(p0||p*) is the sum of scale
    times shift."""
    prior = prior_log_weight(run)
    if run.independent and float(Weights(prior).pooled.ess) >= ENOUGH:
        before = prior_mean(run, run.rewards[name])
        if before is not None:
            return abs(run.mean(name).value - before), "what it has moved"
    if len(run.factors) > 1 or not run.kind.has_evidence:
        return None
    scale = float(torch.as_tensor(run.scales[name]).double().abs().mean())
    if not scale:
        return None
    moved = max(evidence.kl_to_prior(run).value, 0.0) / scale
    return moved, f"the least that it may have moved, {moved:.2g}"


def _skewed(run: Posterior) -> Doubt | None:
    if not run.independent or run.draws_are_exact:
        return None
    worst = max([abs(run.mean(name).skewness) for name in run.rewards], default=abs(evidence.log_z(run).skewness))
    predicted = float(run.importance_weights.pooled.foretold_ess)
    return skewed(predicted, run.log_weight.numel(), worst, _enough(run))


def _enough(run: Posterior) -> float:
    """Draws that it takes to believe a run."""
    return 2 * PREDICTED if _was_looked_at(run) else PREDICTED


def _was_looked_at(run: Posterior) -> bool:
    """Did it take more draws until it passed?"""
    return "rounds" in run.history


def _narrow(run: Posterior) -> Doubt | None:
    """Few particles carried the weight when a population was resampled, or carry it now: a run in which more of them
    happened to be good looks better than one in which as many were as there should be."""
    if run.independent or run.draws_are_exact or not run.kind.has_evidence:
        return None
    now = run.importance_weights.ess
    resampled = now[None] if run.ess_by_step is None else run.ess_by_step.double()
    narrowest = float(torch.cat([resampled, now[None]]).amin(0).sum())
    enough = min(_enough(run), run.log_weight.numel() / 2)
    if narrowest >= enough:
        return None
    return Doubt(
        f"at its narrowest place {narrowest:.0f} particles carry the weight of all, it takes {enough:.0f} to believe "
        f"what descends from them",
        enough / max(narrowest, 1e-6),
    )


def _slow(run: Posterior) -> Doubt | None:
    """Chains whose states resemble each other say as much as that many draws."""
    found = slowest(run)
    if not run.kind.is_ordered or (found is not None and found[1] >= ENOUGH_EFFECTIVE):
        return None
    if found is None:
        return Doubt("its chains are too short, or vary too little, for an effective sample size")
    name, ess = found
    return Doubt(
        f"its chains are worth {say_draws(ess)} of {name} (bulk or tail ESS), it takes {ENOUGH_EFFECTIVE:.0f} to "
        f"believe them",
        ENOUGH_EFFECTIVE / ess,
    )


def _lasting(run: Posterior) -> Doubt | None:
    """Particles that moves leave where they were are no draws of what lies between prior and posterior: those that
    were there first stand for all."""
    correlation = float(run.history.get("lasting", 0.0))
    if correlation <= LASTING:
        return None
    return Doubt(
        f"its moves leave log-weights much as they were (correlation {correlation:.2f} at the worst of its exponents): "
        f"raise max_moves, or take another kernel"
    )


def _unmixed(run: Posterior) -> Doubt | None:
    """Chains that differ more than their states do have not forgotten where they began."""
    found = furthest_apart(run)
    if found is None or found[1] <= MIXED_RHAT:
        return None
    name, rhat = found
    grows = (rhat**2 - 1) / (MIXED_RHAT**2 - 1)  # R-hat^2 - 1 falls as chains grow
    return Doubt(
        f"its chains have not mixed: R-hat {rhat:.3f} of {name}, it takes {MIXED_RHAT:g} to believe them",
        grows if math.isfinite(grows) else None,
    )


def skewed(predicted: float, total: int, skewness: float, enough: float = PREDICTED) -> Doubt | None:
    """Are weights too skewed for the errors that they state? ``predicted`` effective draws of ``total``."""
    enough, allowed = min(enough, total / 2), min(SKEWED, predicted / min(total, FULL))
    if predicted >= enough and skewness <= allowed:
        return None
    factor = max(enough / max(predicted, 1e-6), _until_even(predicted / total, total, skewness))
    if predicted < enough:
        return Doubt(
            f"its weights foretell {say_draws(predicted)}, it takes {enough:.0f} to believe what they show", factor
        )
    return Doubt(f"its few largest weights say most of what it says (skewness {skewness:.2f})", factor)


def _until_even(share: float, total: int, skewness: float) -> float:
    """Times as many draws f at which skewness / sqrt(f) <= min(SKEWED, share max(1, f total / FULL))."""
    share = max(share, 1e-6)
    grows = (skewness * FULL / (share * total)) ** (2 / 3)
    return max((skewness / SKEWED) ** 2, min((skewness / share) ** 2, grows))
