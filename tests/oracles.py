"""Answers found without the library's own machinery, and the statistics that judge an engine by them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from ppl_align import Posterior


def canonical_sequences(vocab: int, length: int, terminal: tuple[int, ...], pad: int) -> Tensor:
    """Every padded sequence, by brute force: [S, T]."""
    found: dict[tuple[int, ...], None] = {}
    for word in itertools.product(range(vocab), repeat=length):
        end = next((t for t, v in enumerate(word) if v in terminal), length - 1)
        found[(*word[: end + 1], *(pad,) * (length - end - 1))] = None
    return torch.tensor(list(found))


def key_rows(posterior: Posterior) -> tuple[list[tuple[Any, ...]], tuple[int, int]]:
    """One hashable row per particle: all its latents."""
    shape = tuple(posterior.log_weight.shape)
    columns = []
    for name in sorted(posterior.particles):
        value = posterior.particles[name]
        tensor = getattr(value, "tokens", value)
        columns.append(tensor.reshape(shape[0] * shape[1], -1).tolist())
    return [tuple(itertools.chain.from_iterable(parts)) for parts in zip(*columns, strict=True)], shape


def probabilities(posterior: Posterior) -> dict[tuple[Any, ...], float]:
    """The weighted empirical distribution over whole assignments, replicates pooled by their evidence."""
    rows, _ = key_rows(posterior)
    weight = torch.softmax(posterior.log_weight.reshape(-1), 0).tolist()
    total: dict[tuple[Any, ...], float] = {}
    for row, w in zip(rows, weight, strict=True):
        total[row] = total.get(row, 0.0) + w
    return total


def evidence_z(posterior: Posterior, log_z: float) -> tuple[float, float]:
    """``(z, spread)`` of Zhat / Z over replicates."""
    ratio = (posterior.log_evidence - log_z).exp()
    spread = float(ratio.std())
    return float((ratio.mean() - 1) / max(spread / math.sqrt(len(ratio)), 1e-12)), spread


def weighting_chi2(posterior: Posterior, exact: Posterior) -> tuple[float, int]:
    """Proper weighting, E[Zhat sum_i W_i 1(x_i = x)] = Z p*(x), for every x at once.

    The replicate means of the indicator functions, whitened by their own covariance (Hotelling's T^2, which for many
    replicates is chi-square with as many degrees of freedom as there are cells); rare cells are pooled."""
    log_z = float(exact.log_evidence[0])
    probability = probabilities(exact)
    cells = [row for row, p in sorted(probability.items(), key=lambda item: -item[1]) if p > 0.02][:12]
    where = {row: i for i, row in enumerate(cells)}
    expected = torch.tensor([probability[row] for row in cells] + [1 - sum(probability[row] for row in cells)])
    rows, (replicates, particles) = key_rows(posterior)
    weight = (posterior.log_weight - log_z).exp() / particles
    observed = torch.zeros(replicates, len(cells) + 1, dtype=torch.float64)
    at = torch.tensor([where.get(row, len(cells)) for row in rows]).reshape(replicates, particles)
    observed.scatter_add_(1, at, weight)
    difference = observed.mean(0) - expected
    covariance = torch.cov(observed.T) / replicates
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > 1e-9 * values.max()
    whitened = (vectors.T @ difference)[kept] / values[kept].sqrt()
    return float(whitened.square().sum()), int(kept.sum())
