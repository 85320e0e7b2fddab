"""A reward with an unknown parameter, summed out inside the exponential.

Where r depends on a latent theta, the posterior of the texts is p0(x) E_theta[exp(r_theta(x)/beta)]: texts are paid for
being uncertain. The bonus over the mean reward is, to second order, Var(r) / (2 beta^2) nats, and never negative
(Jensen); an over-optimist by construction. See the claim ``reward-uncertainty``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ppl_align.lints.finding import Finding
from ppl_align.lints.prior_sample import PriorSample
from ppl_align.particles.particles import Particles
from ppl_align.particles.weights import log_mean_exp

REPEATS = 16
"""Values of the latent that each completion is judged by."""
NEGLIGIBLE = 1e-6  # nats


def marginalised_parameter(sample: PriorSample) -> Iterator[Finding]:
    """Draw each latent anew with all else held fixed: does a reward of the same text change?

    A latent that a prompt depends on steers the text, and is left alone; so is what the world answers."""
    for latent in sample.latents:
        given = {name: value for name, value in sample.values.items() if name != latent}
        # A reward that reads the latent is another function each time, any other need not be asked again.
        runs = [sample.ask(given, draw=True, known=sample.answers) for _ in range(REPEATS)]
        if any(_prompts_differ(sample, run) for run in runs):
            continue
        for name in sample.particles.rewards:
            if not _moves(torch.stack([run.rewards[name] for run in runs])):
                continue  # a weight that is drawn is no parameter of r: how strict the judge is, is inferred
            log_factors = torch.stack([run.factors[name] for run in runs])
            bonus, moves = _bonus(log_factors)
            if moves:
                yield Finding(
                    "marginalised reward parameter",
                    "warning",
                    f"reward {name!r} depends on the latent {latent!r}, which is summed out inside exp(r / beta): a "
                    f"bonus for uncertainty of {bonus:.2g} nats a text on average, over the prior of {latent!r}",
                    "take the mean of r over it first, or a lower quantile",
                )


def _moves(r: Tensor) -> bool:
    """Does r [M, P] of a text change?"""
    return not torch.equal(r.nan_to_num(), r[:1].nan_to_num().expand_as(r))


def _prompts_differ(sample: PriorSample, run: Particles) -> bool:
    shapes = {name: prior.batch_shape or (sample.num_draws,) for name, prior in sample.particles.sources.items()}
    before, after = sample.particles.sources, run.sources
    return any(after[name].prompt_rows(shape) != before[name].prompt_rows(shape) for name, shape in shapes.items())


def _bonus(log_factors: Tensor) -> tuple[float, bool]:
    """log E exp(f) - E f over the first axis [M, P], averaged over completions; and whether f changes at all."""
    finite = log_factors.isfinite().all(0)
    if not bool(finite.any()):
        return 0.0, bool((log_factors != log_factors[0]).any())
    f = log_factors[:, finite]
    each = log_mean_exp(f.T) - f.mean(0)
    moves = float((f.amax(0) - f.amin(0)).max()) > NEGLIGIBLE + 1e-6 * float(f.abs().max())
    return float(each.mean()), moves
