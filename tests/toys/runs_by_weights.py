"""Runs of hundreds of draws whose weights were chosen, one of each kind, and their weights as numpy has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from ppl_align import Posterior
from toys.synthetic import LENGTH, SCALE, importance, law, praise, sample, smc, svi, weigh


def of(run: Posterior) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """w [R, N] of mean 1, the rewards and the log-likelihoods [R, N]."""
    w = np.exp(run.log_weight.numpy())
    return w / w.mean(), run.rewards["praise"].numpy(), run.factors["praise"].numpy()


def weighted() -> Posterior:
    """Draws that lean towards the reward, but of no guide that was trained."""
    index, log_q = sample(3, (4, 200), 0.0, 0.6, -0.3, 0.0, 0.2)
    return weigh("importance", index, log_q, SCALE)


def resampled() -> Posterior:
    """Weights that differ within a population, as they do some tokens after it was resampled."""
    run = smc(2, replicates=6, particles=64)
    noise = torch.randn(run.log_weight.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return replace(run, log_weight=run.log_weight + 0.5 * noise)


def waited() -> Posterior:
    """Exact draws: each population took so many draws of the prior, and knows Z from their number."""
    log_weight = SCALE * praise(law()[0])
    p = (law()[1] + log_weight).softmax(0)
    index = torch.multinomial(p, 4 * 50, True, generator=torch.Generator().manual_seed(5)).reshape(4, 50)
    tries = torch.tensor([760, 910, 805, 834])  # of a truth of 810
    log_z = (49 / (tries.double() - 1)).log() + SCALE * LENGTH
    even = log_z[:, None].expand(4, 50).clone()
    return weigh("rejection", index, None, SCALE, log_weight=even, kind="exact draws", history={"num_draws": tries})


def played() -> Posterior:
    """Episodes of a policy."""
    index, log_q = sample(6, (4, 50), 0.0, 0.6, -0.3, 0.0, 0.2)
    return weigh("nested", index, log_q, SCALE, log_weight=torch.zeros(4, 50).double(), kind="policy")


MADE: dict[str, Callable[[], Posterior]] = {
    "weighted": weighted,
    "prior draws": importance,
    "guide": svi,
    "resampled": resampled,
    "exact draws": waited,
}
