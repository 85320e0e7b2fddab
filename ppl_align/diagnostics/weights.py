"""What the weights of one run say about it. Each number is computed per replicate and averaged.

All of these see only what was visited: a mode that no particle found leaves no trace in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ppl_align.posterior.once import once
from ppl_align.posterior.tails import pareto_k_of

if TYPE_CHECKING:
    from ppl_align.posterior import Posterior


def normalised(log_weight: Tensor) -> Tensor:
    """Weights that sum to 1 over the last axis, ``[..., N]``; all zero in a replicate that is dead."""
    return torch.softmax(log_weight, -1).nan_to_num(0.0)


def ess_by_replicate(log_weight: Tensor) -> Tensor:
    """Effective sample size of the weights, 1 / sum_i W_i^2: ``[R, N] -> [R]``, between 1 and N (0 where dead)."""
    squares = (normalised(log_weight) ** 2).sum(-1)
    return torch.where(squares > 0, 1 / squares, 0.0)


def ess(posterior: Posterior) -> float:
    """Weight ESS, mean over replicates. For SMC: of the weights gathered since the last resampling only."""
    return float(ess_by_replicate(posterior.log_weight).mean())


def largest(posterior: Posterior) -> float:
    """The largest normalised weight, mean over replicates."""
    return float(normalised(posterior.log_weight).amax(-1).mean())


def perplexity(log_weight: Tensor) -> float:
    """exp(entropy) of the normalised weights: how many draws carry the weight, all of ``log_weight`` pooled."""
    w = normalised(log_weight.reshape(-1))
    return float(torch.special.entr(w).sum().exp())


def pareto_k(posterior: Posterior) -> float | None:
    """Pareto k-hat (Vehtari et al., arXiv:1507.02646), mean over the replicates that have one; None: no tail to fit."""
    found = [k for k in pareto_k_by_replicate(posterior) if k is not None]
    return float(np.mean(found)) if found else None


@once
def pareto_k_by_replicate(posterior: Posterior) -> list[float | None]:
    """k-hat of every replicate; None where there is no tail to fit (:func:`ppl_align.posterior.tails.pareto_k_of`)."""
    if posterior.exact:
        return [None] * len(posterior.log_weight)
    return [pareto_k_of(row) for row in posterior.log_weight]
