"""Estimates from weighted draws, each with a standard error by its influence function.

Draws x_i ~ q, i = 1..N, weights w_i = exp(psi_i) p0(x_i) / q(x_i), normalised to mean 1: u_i = w_i / mean(w). Without
hard constraints q is the prior p0, with them it is the prior confined to what they allow, step by step. A smooth
function of means has the error of the mean of its influence function (Hampel 1974; Owen, *Monte Carlo theory*, ch. 9):

    log Z    = log mean(w)             IF_i = u_i - 1
    E_p*[f]  = mean(u f)               IF_i = u_i (f_i - E[f])
    1 + chi2 = mean(u^2)               IF_i = u_i^2 - mean(u^2) - 2 mean(u^2) (u_i - 1)
    KL(p*||p0) = E_p*[psi] - log Z     by the jackknife, which tells more of what a heavy tail does

How the bar follows from the influences, skewed as they are: :mod:`ppl_align.core.estimate`.

From N draws of the prior KL is at most log N: it is log N minus the entropy of the weights. With few effective draws
log Z and KL are too low in expectation (log Zhat because E[Zhat] = Z), and no error can be stated.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from ppl_align.core.estimate import of_influence, of_replicates, standard_error
from ppl_align.core.printed import is_rounding
from ppl_align.particles.weights import Weights
from ppl_align.posterior.estimates import Estimate

ENOUGH = 64.0
"""Effective draws below which no error is printed: those that are read off fewer are too small, and the estimates that
look best have missed most (tests/inspection/test_inspection.py holds them to enumeration). Of a small pool, half of it.

As many are to be foretold by the square roots of the weights: of pools that have fewer, those reach it by the weights
alone which have missed the heavy ones."""
PLENTY = 4 * ENOUGH
"""So many are enough whatever is foretold, which is too pessimistic where weights have few values."""
FEWEST = 32
"""Draws of a small pool."""


class Weighted:
    """N draws with psi [N] in nats, -inf allowed, and ``log_ratio`` [N], log p0/q of what they were drawn from.

    ``met``: every factor was seen to vary, so that draws can tell of its spread; else no error can be stated."""

    def __init__(self, psi: Tensor, log_ratio: Tensor | float = 0.0, met: bool = True) -> None:
        self.met = met
        self.psi = psi.double()
        self.log_weight = self.psi + log_ratio
        self.num_draws = len(psi)
        self.top = float(self.log_weight.max())
        self.alive = math.isfinite(self.top)
        self.scaled = (self.log_weight - self.top).exp() if self.alive else torch.zeros_like(self.log_weight)
        self.relative = self.scaled / self.scaled.mean() if self.alive else self.scaled

    @cached_property
    def ess(self) -> float:
        """1 / sum of squared normalised weights, between 1 and N; 0 if every draw is rejected."""
        return float(Weights(self.log_weight).ess)

    @cached_property
    def predicted(self) -> float:
        """Effective draws as the square roots of the weights foretell them."""
        return float(Weights(self.log_weight).foretold_ess)

    @property
    def enough(self) -> bool:
        """Are there draws enough to state an error?"""
        if not self.met:
            return False
        if self.num_draws >= FEWEST and self.ess >= self.num_draws / 2:
            return True
        return self.ess >= ENOUGH and (self.predicted >= ENOUGH or self.ess >= PLENTY)

    @cached_property
    def log_evidence(self) -> Estimate:
        if not self.alive:
            return Estimate(-math.inf, math.nan)
        return self._estimate(self.top + math.log(float(self.scaled.mean())), self.relative - 1)

    @cached_property
    def kl(self) -> Estimate:
        """KL(p* || p0), nats."""
        if not self.alive:
            return Estimate(math.nan, math.nan)
        w = self.scaled
        weighted = w * torch.where(w > 0, self.psi, 0.0)
        total, moment, n = w.sum(), weighted.sum(), self.num_draws
        value = max(float(moment / total) - self.log_evidence.value, 0.0)
        if not self.enough:
            return Estimate(value, math.nan)
        rest = total - w
        left_out = (moment - weighted) / rest - (rest / (n - 1)).log() - self.top
        error = of_replicates(value, left_out).standard_error
        return self._bar(value, left_out.mean() - left_out, error)

    @cached_property
    def draws_per_effective(self) -> Estimate:
        """1 + chi2(p* || q) = N / ESS: draws that it takes for one effective draw."""
        if not self.alive:
            return Estimate(math.inf, math.nan)
        squares = self.relative.square()
        value = float(squares.mean())
        return self._estimate(value, squares - value - 2 * value * (self.relative - 1))

    def mean(self, f: Tensor) -> Estimate:
        """E_p*[f]; where f is NaN (a reward that does not apply) the mean is over the rest."""
        counts = f.isfinite() & (self.relative > 0)
        u = torch.where(counts, self.relative, 0.0)
        if not bool(counts.any()):
            return Estimate(math.nan, math.nan)
        u, f = u / u.mean(), torch.where(counts, f.double(), 0.0)
        value = float((u * f).mean())
        return self._estimate(value, u * (f - value))

    def quantiles(self, f: Tensor, levels: Tensor) -> Tensor:
        """Of f under p*, at ``levels``; where f is not finite a draw does not count."""
        counts = f.isfinite() & (self.relative > 0)
        f, order = f[counts].sort()
        share = self.relative[counts][order].cumsum(0)
        return f[torch.searchsorted(share, levels.double() * share[-1]).clamp_max(len(f) - 1)]

    def covariance(self, f: Tensor, g: Tensor) -> Estimate:
        """Cov_p*(f, g), over the draws where both are finite."""
        counts = f.isfinite() & g.isfinite() & (self.relative > 0)
        if not bool(counts.any()):
            return Estimate(math.nan, math.nan)
        u = torch.where(counts, self.relative, 0.0)
        u, f, g = u / u.mean(), torch.where(counts, f, 0.0), torch.where(counts, g, 0.0)
        product = (f - (u * f).mean()) * (g - (u * g).mean())
        value = float((u * product).mean())
        return self._estimate(value, u * (product - value))

    def gain(self, part: Tensor, less: Weighted) -> Estimate:
        """KL(p* || p*_-) = E_p*[part] - (log Z - log Z_-), nats: how far one log-factor ``part`` [N] moves the target.

        ``less``: the same draws weighted for p*_-, the target without it."""
        if not self.alive:
            return Estimate(math.nan, math.nan)
        part = torch.where(self.relative > 0, part, 0.0)
        mean = float((self.relative * part).mean())
        value = max(mean - self.log_evidence.value + less.log_evidence.value, 0.0)
        return self._estimate(value, self.relative * (part - mean) - self.relative + less.relative)

    def _estimate(self, value: float, influence: Tensor) -> Estimate:
        if not self.enough:
            return Estimate(value, math.nan)
        return self._bar(value, influence, standard_error(influence))

    def _bar(self, value: float, influence: Tensor, error: float) -> Estimate:
        """``error`` with the degrees of freedom and the skewness of the influences [N]; 0 is 0."""
        if is_rounding(error, value):
            return Estimate(value, error)
        shape = of_influence(value, influence - influence.mean(), self.ess, True)
        if math.isnan(shape.dof):
            return Estimate(value, error)
        return Estimate(value, error, shape.dof, shape.skewness)
