"""An estimate with its error bar: standard error, degrees of freedom, skewness, and the interval that follows.

Weighted means of a few hundred draws are skewed, and the draws that would say how much are the rare ones. For an
estimate with influence values psi_i (``value - truth ~ mean of psi``), standard error s, skewness g of psi and
c = g / sqrt(n), the interval at quantile t is Hall's (1992, "On the removal of skewness by transformation")::

    (value - T(t) s, value - T(-t) s),    T(x) = (3 / c) (cbrt(1 + c (x - c / 6)) - 1)

which is value -+ t s at c = 0, and second-order correct on *each* side. t has the degrees of freedom that Satterthwaite
(1946) gives a variance whose psi have kurtosis k: 2 n / (k - 1), and no more than half of the effective draws.
How often such intervals hold is measured by ``make honesty``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from scipy import stats
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.core.printed import with_error

LEVEL = 0.95
FEWEST_PREDICTED = 40.0  # of fewer, KL misses what lies above it; E[r] and log Z do from 25 to 40
FEWEST_EFFECTIVE = 10.0
FEWEST_EXACT = 20
DRAWS_PER_DOF = 2.0  # effective draws to a degree of freedom


class _Pair(NamedTuple):
    value: float
    standard_error: float


class Estimate(_Pair):
    """``value, standard_error = estimate``; NaN where none can be had.

    ``dof``       degrees of freedom of the standard error; NaN where it is not to be trusted, so that no bar is stated
    ``skewness``  of the estimate's error, as its draws show it: c above

    >>> low, high = Estimate(1.0, 0.1).interval(0.95)
    >>> round(low, 3), round(high, 3), Estimate(1.0, 0.1, dof=3).interval(0.95)[1].__round__(3)
    (0.804, 1.196, 1.318)
    """

    dof: float = math.inf
    skewness: float = 0.0

    def __new__(cls, value: float, standard_error: float, dof: float = math.inf, skewness: float = 0.0) -> Estimate:
        """A bar is stated unless ``dof`` is NaN."""
        made = super().__new__(cls, value, standard_error)
        made.dof, made.skewness = dof, skewness
        return made

    def _replace(self, **parts: Any) -> Estimate:
        """Another value or standard error; the rest stays."""
        whole = {"value": self.value, "standard_error": self.standard_error, "dof": self.dof, "skewness": self.skewness}
        return Estimate(**whole | parts)

    @property
    def stated(self) -> bool:
        """Is there an error bar?"""
        return math.isfinite(self.value) and math.isfinite(self.standard_error) and not math.isnan(self.dof)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """``(low, high)``, not symmetric where draws are skewed; ``(nan, nan)`` where no bar can be stated.

        Raises ``InputError`` for a level that is no probability between 0 and 1."""
        if isinstance(level, (str, bool)) or not 0 < level < 1:
            raise InputError(f"interval(level) takes a probability between 0 and 1, as interval(0.95), got {level!r}")
        if not self.stated:
            return math.nan, math.nan
        t = quantile(0.5 + level / 2, self.dof)
        value, s = self.value, self.standard_error
        return value - _hall(t, self.skewness) * s, value - _hall(-t, self.skewness) * s

    def half_width(self, level: float = LEVEL) -> float:
        """The longer side of the interval; NaN where there is none."""
        low, high = self.interval(level)
        return max(high - self.value, self.value - low)

    def __str__(self) -> str:
        return with_error(self.value, self.standard_error if self.stated else math.nan)


def quantile(p: float, dof: float) -> float:
    """Of Student's t; of the normal where ``dof`` is infinite."""
    return float(stats.norm.ppf(p) if math.isinf(dof) else stats.t.ppf(p, dof))


def _hall(x: float, c: float) -> float:
    if abs(c) < 1e-6:
        return x
    return 3 / c * (math.copysign(abs(inner := 1 + c * (x - c / 6)) ** (1 / 3), inner) - 1)


def of_influence(value: float, psi: Tensor, effective: float, stated: bool) -> Estimate:
    """The estimate whose influence values over n independent draws are ``psi [n]``, mean 0."""
    n = psi.numel()
    squares = float((psi**2).mean())
    if n < 2 or squares <= 0:
        return Estimate(value, 0.0 if n > 1 else math.nan, math.nan)
    s = math.sqrt(squares)
    standard = psi / s
    skewness, kurtosis = float((standard**3).mean()), float((standard**4).mean())
    dof = min(max(2 * n / max(kurtosis - 1, 1e-9), 1.0), n - 1.0, max(effective / DRAWS_PER_DOF, 1.0))
    return Estimate(value, s / math.sqrt(n - 1), dof if stated else math.nan, skewness / math.sqrt(n))


def of_replicates(value: float, left_out: Tensor) -> Estimate:
    """Jackknife: ``left_out [R]``, the estimate without each replicate. t with R - 1 degrees of freedom."""
    count = len(left_out)
    error = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
    return Estimate(value, error, count - 1.0 if error > 0 else math.nan)


def standard_error(values: Tensor, independent: int | None = None) -> float:
    """sd / sqrt(n), of the mean of n draws [n]; ``independent``: of which so many are. NaN for a single one."""
    count = len(values) if independent is None else independent
    return float(values.std()) / math.sqrt(count) if count > 1 else math.nan


def of_draws(values: Tensor, independent: int | None = None) -> Estimate:
    """The mean of n draws [n]; ``independent``: of which so many are."""
    return Estimate(float(values.mean()), standard_error(values, independent))


def exceeds(gap: float, *estimates: Estimate, errors: float = 3.0) -> bool:
    """Is ``gap`` more than ``errors`` standard errors, as a normal has them, of the sum of these estimates?

    Welch's degrees of freedom: with four replicates, three standard errors are 9.2 times the stated one."""
    return gap > critical(*estimates, errors=errors)


def critical(*estimates: Estimate, errors: float = 3.0) -> float:
    """The smallest gap that :func:`exceeds`; NaN where an error is not known."""
    variances = [e.standard_error**2 for e in estimates]
    total = sum(variances)
    if not total > 0:
        return total
    spent = sum(v**2 / e.dof for v, e in zip(variances, estimates, strict=True) if v > 0 and math.isfinite(e.dof))
    dof = total**2 / spent if spent > 0 else math.inf
    return quantile(float(stats.norm.cdf(errors)), dof) * math.sqrt(total)
