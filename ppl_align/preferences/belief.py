"""Bayesian logistic regression on comparisons, by three methods that can be held against each other.

    w ~ Normal(0, prior_scale^2 I),    P(better beats worse) = sigmoid(w . d),    d = phi(better) - phi(worse)

``laplace``  Newton's method to the mode, which is unique (the log-posterior is strictly concave), and the inverse of
             the Hessian there: exact optimisation in float64, milliseconds. The default.
``svi``      the Gaussian of smallest KL(q || posterior): Pyro's SVI with ``AutoMultivariateNormal``
``nuts``     draws from the posterior itself (Hoffman & Gelman 2014, arXiv:1111.4246): Pyro's MCMC
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from ppl_align.core.errors import InputError, RunError
from ppl_align.core.pyro_stack import apart
from ppl_align.core.seeds import isolated, mix
from ppl_align.core.validation import one_of
from ppl_align.program.observe import prefers

METHODS = ("laplace", "svi", "nuts")
FEWEST_EFFECTIVE = 100  # draws of NUTS: with fewer, the covariance of some dozens of weights is noise


@dataclass(frozen=True, eq=False)
class Belief:
    """What is known of the weights: ``mean [k]``, ``covariance [k, k]``, and ``draws [S, k]`` where NUTS made them."""

    mean: Tensor
    covariance: Tensor
    draws: Tensor | None = None


def comparisons(differences: Tensor) -> None:
    """The program, in units of the prior: weights ``[k]`` and what was seen, as ``differences [n, k]``."""
    w = pyro.sample("w", dist.Normal(torch.zeros(differences.shape[1], dtype=torch.float64), 1.0).to_event(1))
    prefers("preferred", (differences * w[..., None, :]).sum(-1), 0.0)


def infer(differences: Tensor, prior_scale: float, method: str, seed: int) -> Belief:
    """The belief after ``differences [n, k]``, preferred minus other, float64.

    The global random numbers and Pyro's parameter store are untouched; no handler that is at work sees any of it.
    Raises ``InputError`` for settings out of range, ``RunError`` where NUTS does not mix."""
    one_of("method", method, list(METHODS))
    if not 0 < prior_scale < math.inf:
        raise InputError(f"prior_scale must be positive and finite, got {prior_scale!r}")
    with apart(), isolated(mix(seed, f"preferences, {method}")), torch.enable_grad():
        unit = {"laplace": _laplace, "svi": _svi, "nuts": _nuts}[method](differences * prior_scale)
    draws = None if unit.draws is None else unit.draws * prior_scale
    return Belief(unit.mean * prior_scale, unit.covariance * prior_scale**2, draws)


def log_density(w: Tensor, d: Tensor) -> Tensor:
    """log p(w, comparisons) of the program, up to a constant."""
    return torch.nn.functional.logsigmoid(d @ w).sum() - w @ w / 2


def _laplace(d: Tensor) -> Belief:
    def hessian(w: Tensor) -> Tensor:
        p = torch.sigmoid(d @ w)
        return (d * (p * (1 - p))[:, None]).T @ d + torch.eye(len(w), dtype=torch.float64)

    w = torch.zeros(d.shape[1], dtype=torch.float64)
    for _ in range(100):
        gradient = (d * torch.sigmoid(-(d @ w))[:, None]).sum(0) - w
        step = torch.linalg.solve(hessian(w), gradient)
        if float(gradient @ step) < 1e-20:  # twice the gain that is left, nats
            break
        size, here = 1.0, log_density(w, d)
        while log_density(w + size * step, d) < here and size > 1e-9:  # a full step may overshoot
            size /= 2
        w = w + size * step
    return Belief(w, torch.linalg.inv(hessian(w)))


def _svi(d: Tensor, num_steps: int = 500, num_particles: int = 16) -> Belief:
    def program() -> None:
        comparisons(d)

    start = _laplace(d).mean
    guide = AutoMultivariateNormal(program, init_loc_fn=lambda site: start.clone(), init_scale=0.1)
    optimiser = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.02 ** (1 / num_steps)})
    svi = SVI(program, guide, optimiser, Trace_ELBO(num_particles, max_plate_nesting=0, vectorize_particles=True))
    for _ in range(num_steps):
        svi.step()
    q = guide.get_posterior()
    return Belief(q.mean.detach().double(), q.covariance_matrix.detach().double())


def _nuts(d: Tensor, num_samples: int = 1000, warmup_steps: int = 300) -> Belief:
    start = {"w": _laplace(d).mean}
    kernel = NUTS(potential_fn=lambda values: -log_density(values["w"], d))
    sampler = MCMC(
        kernel, num_samples=num_samples, warmup_steps=warmup_steps, initial_params=start, disable_progbar=True
    )
    sampler.run()
    draws = sampler.get_samples()["w"].double()
    effective = float(effective_sample_size(draws[None]).min())
    r_hat = float(split_gelman_rubin(draws[None]).max())
    if effective < FEWEST_EFFECTIVE or r_hat > 1.05:
        raise RunError(
            f"NUTS did not mix ({effective:.0f} effective of {len(draws)} draws, R-hat {r_hat:.3f}): keep fewer "
            'components=, or use method="laplace"'
        )
    return Belief(draws.mean(0), draws.T.cov().reshape(d.shape[1], d.shape[1]), draws)
