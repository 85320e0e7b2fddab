"""Simulation-based calibration: do posterior draws rank the truth uniformly?

Simulate (latent*, data) from the joint, infer the posterior given that data, draw L times from it, and count the draws
that lie below latent*. If the draws are exact the rank is uniform on {0, ..., L}; ties, which discrete text has many
of, are broken at random (Talts et al. 2018, arXiv:1804.06788; Modrák et al. 2023, arXiv:2211.02383, for ties).

It judges engines whose draws *are* posterior draws (Enumeration, Rejection). Importance sampling and SMC at a finite
number of particles are slightly biased by construction and would be rejected although they are right: they are judged
by unbiased evidence and proper weighting instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ppl_align.core import arviz_adapter, seeds
from ppl_align.core.errors import InputError
from ppl_align.engines.base import Engine
from ppl_align.posterior import Posterior
from ppl_align.posterior.estimates import functionals
from ppl_align.testing.simulation import simulate


@dataclass(frozen=True)
class Calibration:
    """``ranks``: by statistic, [num_simulations] in 0..num_draws, ties broken at random."""

    ranks: Mapping[str, np.ndarray]
    num_draws: int
    seed: int

    @property
    def p_values(self) -> dict[str, float]:
        """Of uniformity, by statistic: a chi-square test with about sqrt(num_simulations) bins."""
        found = {}
        for name, ranks in self.ranks.items():
            bins = int(np.clip(np.sqrt(len(ranks)), 4, self.num_draws + 1))
            edges = np.linspace(0, self.num_draws + 1, bins + 1)
            expected = np.diff(np.ceil(edges)) / (self.num_draws + 1) * len(ranks)
            observed = np.histogram(ranks, np.ceil(edges) - 0.5)[0]
            found[name] = float(stats.chisquare(observed, expected).pvalue)
        return found

    def __str__(self) -> str:
        size = len(next(iter(self.ranks.values()), ()))
        found = ", ".join(f"{name} {p:.2g}" for name, p in self.p_values.items())
        return f"Calibration: {size} simulations of {self.num_draws} draws; p-values of uniform ranks: {found}"

    def plot(self) -> Any:
        """Rank ECDFs with simultaneous bands, drawn by ArviZ; returns the matplotlib figure."""
        generator = np.random.default_rng(self.seed)
        spread = {name: (r + generator.random(len(r))) / (self.num_draws + 1) for name, r in self.ranks.items()}
        return arviz_adapter.plot_pit(spread)


def calibrate(
    engine: Engine,
    model: Callable[..., Any],
    *args: Any,
    observed: Mapping[str, str] | None = None,
    statistics: Callable[[Posterior], Mapping[str, Tensor]] = functionals,
    num_simulations: int = 200,
    num_draws: int = 19,
    seed: int = 0,
    **kwargs: Any,
) -> Calibration:
    """Simulation-based calibration of ``engine`` on ``model``; ``observed`` as in :func:`simulate`.

    ``statistics``: ``Posterior -> {name: [R, N]}``, by default its named numbers (scalar latents, log prior, log
    likelihood, length). Raises ``InputError`` for an engine whose draws are not exact."""
    simulations = simulate(model, *args, observed=observed, num_simulations=num_simulations, seed=seed, **kwargs)
    generator = seeds.generator(seed, "calibrate")
    ranks: dict[str, list[int]] = {}
    for number, simulation in enumerate(simulations):
        posterior = engine.run(model, seed=seeds.mix(seed, f"calibrate {number}"), **simulation.arguments)
        drawn = statistics(_draws(posterior, num_draws, generator))
        truth = statistics(simulation.draw)
        for name, values in drawn.items():
            ranks.setdefault(name, []).append(_rank(float(truth[name]), values.reshape(-1), generator))
    return Calibration({name: np.array(r) for name, r in ranks.items()}, num_draws, seed)


def _draws(posterior: Posterior, count: int, generator: torch.Generator) -> Posterior:
    if posterior.exact:
        index = torch.multinomial(posterior.weights.reshape(-1), count, replacement=True, generator=generator)
        return posterior.take(index[None])
    if not posterior.draws_are_exact:
        raise InputError(
            f"calibration would reject {posterior.engine!r} even if it is right: its draws are weighted, not exact; "
            f"judge it by check_engine"
        )
    available = posterior.log_weight.numel()
    if available < count:
        raise InputError(f"calibration needs {count} draws a run, {posterior.engine!r} gave {available}")
    return posterior.take(torch.arange(count)[None])


def _rank(truth: float, drawn: Tensor, generator: torch.Generator) -> int:
    """Draws below the truth, plus a random share of those equal to it (equal up to rounding)."""
    tied = torch.isclose(drawn.double(), torch.tensor(truth, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    below = int(((drawn < truth) & ~tied).sum())
    return below + int(torch.randint(int(tied.sum()) + 1, (), generator=generator))
