"""What judges a randomised algorithm: each test returns the probability of a deviation this large by chance.

A check that is right with probability 0.95 is useless in a suite of hundreds. All of these are compared with a
family-wise rate (1e-3 by default) divided by the number of tests (Bonferroni), so their tails must be honest far out:
scores are corrected for skewness, and denominators that were estimated are accounted for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from scipy import stats
from torch import Tensor

from ppl_align.lm.completions import tensor_of
from ppl_align.posterior import Posterior

RATE = 1e-3
"""How often a whole family of tests of correct code may fail, over seeds."""
MAX_SPREAD = 0.6
"""Relative standard deviation of Zhat above which a z-test of its mean misleads at affordable sizes."""
ROUNDING = 1e-6
"""Relative error of float32 log-probabilities: a deviation this small proves nothing, whatever its z."""
_CELLS = 12  # most probable assignments looked at one by one; the rest is pooled
_VISITS = 20  # replicates that should have visited a cell: below, its mean is not normal


class Judgement(NamedTuple):
    """``statistic`` (the worst |z|, or G), its ``freedom`` (how many z-scores, or degrees of freedom), ``p_value``."""

    statistic: float
    freedom: int
    p_value: float


def bonferroni_z(tests: int, rate: float = RATE) -> float:
    """The |z| that one of ``tests`` correct two-sided z-tests exceeds with probability ``rate`` at most.

    >>> round(bonferroni_z(1, 0.05), 2), round(bonferroni_z(250), 2)
    (1.96, 4.61)
    """
    return float(stats.norm.isf(rate / tests / 2))


def two_sided(z: float, repeats: int) -> float:
    """p-value of a z-score whose standard error was estimated from ``repeats`` values (Student's t)."""
    return float(2 * stats.t.sf(abs(z), repeats - 1))


def say_p(p: float) -> str:
    """A p-value in words that stay true where it underflows.

    >>> say_p(3.21e-5), say_p(0.0)
    ('p = 3.2e-05', 'p < 1e-300')
    """
    return "p < 1e-300" if p < 1e-300 else f"p = {p:.1e}"


def mean_z(values: Tensor, expected: Tensor | float, rounding: float = 0.0) -> Tensor:
    """z-score of the mean of independent ``values [R, ...]`` against ``expected [...]``, corrected for skewness.

    Student's t of a skewed sample is itself skewed, which at z = 4.5 changes its p-value fifty-fold; with g the sample
    skewness and W the unscaled t, ``sqrt(R) (W + g W^2 / 3 + g^2 W^3 / 27 + g / (6 R))`` is normal to the next order
    (Hall 1992, "On the removal of skewness by transformation", J. R. Stat. Soc. B 54). ``rounding`` is added to the
    standard error, for values that may not vary at all.
    """
    size = len(values)
    centred = values - values.mean(0)
    sd = values.std(0)
    skewness = (centred.pow(3).mean(0) / sd.pow(3)).nan_to_num(0.0, 0.0, 0.0)
    w = (values.mean(0) - expected) / (sd.square() + size * rounding**2).sqrt().clamp_min(1e-300)
    return math.sqrt(size) * (w + skewness * w**2 / 3 + skewness**2 * w**3 / 27 + skewness / (6 * size))


def evidence_z(posterior: Posterior, log_z: float) -> tuple[float, float]:
    """``(z, spread)``: z-score of E[Zhat] = Z over replicates, and the standard deviation of Zhat over its mean.

    The z-score is to be trusted where the spread is below :data:`MAX_SPREAD`. A dead replicate is Zhat = 0."""
    ratio = (posterior.log_evidence - log_z).double().exp()
    return float(mean_z(ratio, 1.0, ROUNDING)), float(ratio.std() / ratio.mean())


def key_rows(posterior: Posterior) -> tuple[list[tuple[Any, ...]], tuple[int, int]]:
    """One hashable row per particle, all its latents in the order of their names; and the shape [R, N]."""
    replicates, particles = posterior.log_weight.shape
    values = [tensor_of(posterior.particles[name]) for name in sorted(posterior.particles)]
    columns = [value.reshape(replicates * particles, -1).tolist() for value in values]
    rows = [tuple(itertools.chain.from_iterable(parts)) for parts in zip(*columns, strict=True)]
    return rows, (replicates, particles)


def probabilities(posterior: Posterior) -> dict[tuple[Any, ...], float]:
    """The weighted empirical distribution over whole assignments, replicates pooled by their evidence."""
    rows, _ = key_rows(posterior)
    total: dict[tuple[Any, ...], float] = {}
    for row, weight in zip(rows, posterior.weights.reshape(-1).tolist(), strict=True):
        total[row] = total.get(row, 0.0) + weight
    return total


def weighting_test(posterior: Posterior, exact: Posterior) -> Judgement:
    """Proper weighting, E[Zhat sum_i W_i 1(x_i = x)] = Z p*(x) (Naesseth et al. 2019, arXiv:1903.04797, section 2).

    One z-score for each of the most probable assignments x and one for all others together; the worst of them, its
    p-value times their number. (Hotelling's T^2 of all at once was tried: with 300 replicates its p-values below 1e-3
    came four to nine times too often, because rare cells are skewed; these do not.)
    """
    law = probabilities(exact)
    rows, (replicates, particles) = key_rows(posterior)
    cells = [row for row, p in sorted(law.items(), key=lambda item: -item[1]) if p > 0.02][:_CELLS]
    where = {row: i for i, row in enumerate(cells)}
    expected = torch.tensor([law[row] for row in cells], dtype=torch.float64)
    expected = torch.cat([expected, 1 - expected.sum(0, keepdim=True)])
    weight = (posterior.log_weight.double() - float(exact.log_evidence[0])).exp() / particles
    observed = torch.zeros(replicates, len(expected), dtype=torch.float64)
    at = torch.tensor([where.get(row, len(cells)) for row in rows]).reshape(replicates, particles)
    observed.scatter_add_(1, at, weight)
    observed, expected = _pooled(observed, expected, particles)
    return worst(mean_z(observed, expected, ROUNDING), replicates)


def _pooled(observed: Tensor, expected: Tensor, particles: int) -> tuple[Tensor, Tensor]:
    """Cells ``[R, C]`` that were visited too rarely for a normal limit join the last one; so does that one, the next.

    A cell that *ought* to have been visited stays, visited or not: independent particles have N s^2 >= p^2 / q - 1 for
    a cell of probability p that is proposed with probability q, where s^2 is the variance of Zhat / Z; hence at least
    R N p^2 / (1 + N s^2) visits are due."""
    size = len(observed) * particles
    spread = 1 + particles * float(observed.sum(-1).var())

    def usable(values: Tensor, p: Tensor) -> bool:
        return int((values > 0).sum()) >= _VISITS or size * float(p) ** 2 / spread >= _VISITS

    often: list[tuple[Tensor, Tensor]] = []
    rest = observed[:, -1], expected[-1]
    for values, p in zip(observed.T[:-1], expected[:-1], strict=True):
        if usable(values, p):
            often.append((values, p))
        else:
            rest = rest[0] + values, rest[1] + p
    if often and not usable(*rest):
        values, p = often.pop()
        rest = rest[0] + values, rest[1] + p
    cells = [*often, rest]
    return torch.stack([values for values, _ in cells], 1), torch.stack([p for _, p in cells])


def worst(z: Tensor, repeats: int) -> Judgement:
    """The largest of several z-scores of ``repeats`` values each; its p-value times their number (Bonferroni)."""
    largest = float(z.abs().max())
    return Judgement(largest, len(z), min(1.0, len(z) * two_sided(largest, repeats)))


def g_test(counts: Mapping[Any, int], law: Mapping[Any, float], fewest: float = 5.0) -> Judgement:
    """Do independent draws follow a known law? The likelihood-ratio test G = 2 sum n log(n / (N p)).

    ``counts`` by outcome, ``law`` its exact probability by outcome. Outcomes that fewer than ``fewest`` draws are
    expected of are pooled into one. A draw outside of the law's support has p-value 0.

    >>> g_test({"a": 50, "b": 50}, {"a": 0.5, "b": 0.5})
    Judgement(statistic=0.0, freedom=1, p_value=1.0)
    """
    total = sum(counts.values())
    if any(n and not law.get(outcome) for outcome, n in counts.items()):
        return Judgement(math.inf, len(law) - 1, 0.0)
    often = [outcome for outcome, p in law.items() if p * total >= fewest]
    observed = [counts.get(outcome, 0) for outcome in often]
    expected = [law[outcome] * total for outcome in often]
    rest = total - math.fsum(expected)
    if rest > ROUNDING * total:
        observed.append(total - sum(observed))
        expected.append(rest)
    if len(expected) < 2:
        return Judgement(0.0, 0, 1.0)
    scale = total / math.fsum(expected)
    found = stats.power_divergence(observed, [e * scale for e in expected], lambda_="log-likelihood")
    return Judgement(float(found.statistic), len(expected) - 1, float(found.pvalue))


def gradient_test(estimates: Tensor, gradient: Tensor) -> Judgement:
    """Is the mean of independent gradient estimates ``[K, D]`` the true ``gradient [D]``?

    The worst z-score among the coordinates and the projection on the true gradient, where noise is smallest.
    Coordinates whose noise is below a tenth of the largest belong to prefixes that are hardly ever visited and have no
    normal limit at any affordable K: they are left to the projection.
    """
    error = estimates.std(0)
    often = error > 0.1 * error.max()
    along = estimates @ (gradient / gradient.norm())
    z = torch.cat([mean_z(estimates, gradient)[often], mean_z(along, gradient.norm())[None]])
    return worst(z, len(estimates))
