"""Markov chains whose law is known: autoregressive numbers, and independent draws that pass for chains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from conftest import SEED

from ppl_align import Posterior
from ppl_align.posterior.kind import Kind
from toys.synthetic import exact, weigh


def ar1(chains: int = 4, states: int = 400, rho: float = 0.6, seed: int = SEED) -> np.ndarray:
    """Stationary chains of variance 1 whose autocorrelation at lag t is rho^t, ``[chains, states]``."""
    noise = np.random.default_rng(seed).normal(size=(chains, states))
    values = np.empty_like(noise)
    values[:, 0] = noise[:, 0]
    for t in range(1, states):
        values[:, t] = rho * values[:, t - 1] + math.sqrt(1 - rho**2) * noise[:, t]
    return values


def chain_of(values: np.ndarray, index: torch.Tensor | None = None, **fields: Any) -> Posterior:
    """A run of chains with ``values`` [chains, states] as its reward; ``index``: which texts."""
    index = torch.arange(values.size).reshape(values.shape) % 50 if index is None else index
    options = {"log_weight": torch.zeros(values.shape, dtype=torch.float64), "kind": Kind.CHAIN, **fields}
    run = weigh("chain", index, None, 1.0, **options)
    run.rewards = {"praise": torch.as_tensor(values)}
    return run


def chains(seed: int = 0, shape: tuple[int, int] = (8, 500), texts: torch.Tensor | None = None) -> Posterior:
    """Chains whose states happen to be independent draws of the posterior of ``toys.synthetic``."""
    if texts is None:
        generator = torch.Generator().manual_seed(seed)
        weights = exact().weights.reshape(-1)
        texts = torch.multinomial(weights, shape[0] * shape[1], True, generator=generator).reshape(shape)
    log_weight = torch.zeros(texts.shape, dtype=torch.float64)
    return weigh("mcmc", texts, None, 0.8, log_weight=log_weight, kind=Kind.CHAIN, seed=seed)
