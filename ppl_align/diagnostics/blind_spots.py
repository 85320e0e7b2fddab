"""A reward that is the same on every draw of one run, and not in another: the first missed part of the target.

Such a run looks perfect from within. Its weights are even, its replicates agree, its error bars are zero. Only another
run can tell. Let B have found other values of the reward on a share m of its weight. The mass that it saw there, Z_B m,
is estimated without bias however badly B did elsewhere, and beside what the run A itself has found it is the share

    s = Z_B m / (Z_B m + Z_A)

of the target (the odds Z_B m / Z_A less three standard errors). n draws of the target all miss it with probability
(1 - s)^n; with n effective draws in A and that below one in a thousand, A cannot reach it. Draws of weight zero count
for neither: a reward is rightly constant where everything else is ruled out, and a few draws that weigh next to nothing
are a share of next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ppl_align.particles.weights import effective_sample_size
from ppl_align.posterior.constant import constant_reward, same
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.run_summary import summary_of

SIGNIFICANT = 3.0  # standard errors
SURPRISING = 1e-3


@dataclass(frozen=True)
class BlindSpot:
    """``reward`` is ``value`` (NaN: does not apply) on every draw that counts, but not on a ``share`` of the target
    that ``witness`` has seen. ``share`` is what it saw at least, three standard errors taken off."""

    reward: str
    value: float
    witness: str
    share: float

    def __str__(self) -> str:
        said = (
            "does not apply to any of its draws" if math.isnan(self.value) else f"is {self.value:.3g} on all its draws"
        )
        share = min(self.share, 0.99)  # "or more" says the rest
        much = f"{share:.0%}" if share >= 0.01 else f"{100 * share:.1g}%"
        return (
            f"the reward {self.reward!r} {said}, but {self.witness} found other values on {much} of the posterior or "
            "more: it misses part of the target"
        )


def blind_spot(run: Posterior, runs: Mapping[str, Posterior]) -> BlindSpot | None:
    """The gravest of a run, seen by the others; None where there is none, and for a run that cannot have one."""
    if run.exact or run.draws_are_exact or not bool(run.log_evidence.isfinite().any()):
        return None
    draws = float(effective_sample_size(summary_of(run).ancestral_weights.reshape(-1)))
    found = []
    for name in run.rewards:
        value = constant_reward(run, name)
        if value is None:
            continue
        for witness, other in runs.items():
            odds = -math.inf if other is run else _log_odds(run, other, name, value)
            if draws * _softplus(odds) > -math.log(SURPRISING):  # (1 - s)^n, and s may be 1 in floating point
                found.append(BlindSpot(name, value, witness, math.exp(-_softplus(-odds))))
    return max(found, key=lambda spot: spot.share, default=None)


def _log_odds(run: Posterior, other: Posterior, reward: str, value: float) -> float:
    """log s / (1 - s) of the module's docstring: the least that ``other`` saw of other values, -inf for nothing."""
    elsewhere = ~same(other.rewards[reward].double(), torch.tensor(value, dtype=torch.float64))
    seen, error = other.mean(lambda particles: elsewhere.double())
    noise = summary_of(run).standard_error, summary_of(other).standard_error
    if None in noise or not seen > 0 or math.isnan(error):  # it saw nothing, or nobody knows how much
        return -math.inf
    gap = summary_of(other).log_evidence - summary_of(run).log_evidence
    return math.log(seen) + gap - SIGNIFICANT * math.hypot(error / seen, *(each or 0.0 for each in noise))


def _softplus(x: float) -> float:
    """log(1 + exp(x))."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
