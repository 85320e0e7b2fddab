"""A fitted moment constraint: lambda from a pool of weighted draws, with its errors.

lambda solves  sum_i w_i(lambda) g_i = 0,  g = phi - mu,  w_i(lambda) proportional to W_i exp(lambda . g_i). To first
order its error is that of the mean of  -H^-1 g  under the tilted weights, H the covariance of g there (delta method);
so every error here is that of a posterior mean, for whatever kind of draws the pool consists of.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_align.core.printed import with_error
from ppl_align.moments.solve import check, solve
from ppl_align.posterior import Posterior
from ppl_align.posterior.estimates import Estimate

FEW = 10.0  # effective draws below which a fit is not to be trusted


@dataclass(frozen=True)
class MomentFit:
    """What was fitted, and how well. Mappings are by feature.

    ``weights``     lambda ± standard error, nats per unit of the feature
    ``targets``     mu
    ``before``      E[phi] without the constraint ± standard error
    ``after``       E[phi] under p_lambda: mu on this pool, ± how far it may be from mu in truth
    ``ess``         effective draws of the pool, weighted by p_lambda; ``num_draws`` of them in all
    ``kl``          KL(p_lambda||p), nats: what the constraint costs
    ``pool``        the engine that drew the pool, and of which program; ``exact``: it holds every value there is
    ``noticed``     what the run that drew the pool noticed of the program, one line each
    """

    weights: Mapping[str, Estimate]
    targets: Mapping[str, float]
    before: Mapping[str, Estimate]
    after: Mapping[str, Estimate]
    ess: float
    num_draws: int
    kl: Estimate
    pool: str
    exact: bool = False
    noticed: tuple[str, ...] = ()

    @property
    def few_draws(self) -> str | None:
        """What to do where so few draws carry the fit that it is not to be trusted; None where it is."""
        if self.ess >= FEW or self.exact:
            return None
        fitted = ", ".join(f"lambda = {with_error(*weight)} for {name!r}" for name, weight in self.weights.items())
        return (
            f"moment constraint: {self.ess:.1f} effective draws of {self.num_draws:,} carry the fit ({fitted}): draw "
            "a larger pool (num_pool=), or bring one that is nearer to the targets, fit(pool=posterior)"
        )

    def __str__(self) -> str:
        rows = [("feature", "before", "wanted", "after", "lambda")]
        for name, target in self.targets.items():
            before, after, weight = (str(part[name]) for part in (self.before, self.after, self.weights))
            rows.append((name, before, f"{target:g}", after, weight))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        size = f"{self.num_draws:,} values" if self.exact else f"{self.ess:.1f} effective of {self.num_draws:,} draws"
        lines.append(f"KL(p_lambda||p) = {self.kl} nats; {size}, {self.pool}")
        lines += [f"Warning: {line}." for line in (self.few_draws, *self.noticed) if line is not None]
        return "\n".join(lines)


def fit(pool: Posterior, targets: Mapping[str, float]) -> MomentFit:
    """Fit on a pool whose ``rewards`` hold the features and whose weights stand for the base measure.

    Raises ``InputError`` for targets that the pool cannot meet; warns where few draws carry the fit."""
    names = list(targets)
    mu = torch.tensor([targets[name] for name in names], dtype=torch.float64)
    phi = torch.stack([pool.rewards[name].double() for name in names], -1)
    alive = pool.log_weight > -math.inf
    check(names, phi[alive], mu)
    g = (phi - mu).nan_to_num(0.0)
    weights = solve(g[alive], pool.log_weight[alive])
    tilted = replace(pool, log_weight=pool.log_weight + g @ weights)
    w = tilted.weights
    half = torch.linalg.cholesky(torch.einsum("rn,rnj,rnk->jk", w, g, g))
    white = torch.linalg.solve_triangular(half, g[..., None], upper=False)[..., 0]  # of unit covariance
    influence = torch.linalg.solve_triangular(half.T, white[..., None], upper=True)[..., 0]
    errors, noise = _errors(tilted, influence), _errors(tilted, white)
    gain = pool.mean(lambda particles: (g @ weights).exp())
    second = math.sqrt(0.75) * sum(e**2 for e in noise)  # root mean square of a quadratic form of that trace, at most
    kl_error = math.hypot(gain.standard_error / gain.value, second)
    found = MomentFit(
        weights={n: Estimate(float(v), e) for n, v, e in zip(names, weights, errors, strict=True)},
        targets=dict(targets),
        before={name: pool.mean(name) for name in names},
        after={name: tilted.mean(name) for name in names},
        ess=float(tilted.importance_weights.pooled.ess),
        num_draws=int(alive.sum()),
        kl=Estimate(max(0.0, -math.log(gain.value)), kl_error),
        pool=pool.engine + (f" of {pool.model}" if pool.model else ""),
        exact=pool.exact,
    )
    if found.few_draws is not None:
        warnings.warn(found.few_draws, UserWarning, stacklevel=2)
    return found


def _errors(tilted: Posterior, values: Tensor) -> list[float]:
    """Standard errors of the means of values [R, N, K], one for each k."""

    def error(column: Tensor) -> float:
        return tilted.mean(lambda particles: column).standard_error

    return [error(column) for column in values.unbind(-1)]
