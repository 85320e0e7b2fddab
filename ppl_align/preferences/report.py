"""How good a learned reward is at predicting comparisons that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.preferences.pairs import Pairs

if TYPE_CHECKING:
    from ppl_align.preferences.posterior import RewardPosterior

BINS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_NODES, _WEIGHTS = (torch.tensor(x, dtype=torch.float64) for x in np.polynomial.hermite_e.hermegauss(48))


@dataclass(frozen=True)
class Report:
    """On ``num_pairs`` comparisons; a coin has accuracy 0.5 and log-likelihood -0.693.

    ``accuracy``         share of pairs in which the better one has the larger mean reward (a tie counts half)
    ``standard_error``   of the accuracy
    ``log_likelihood``   mean log-probability of what was preferred, nats per pair; the uncertainty of the weights is
                         integrated out, as for a prediction it should be
    ``calibration``      rows ``(confidence, frequency, count)``: of the pairs that were called with about this
                         probability, how many came out so
    ``calibration_error``  mean |confidence - frequency|, weighted by count
    """

    num_pairs: int
    accuracy: float
    standard_error: float
    log_likelihood: float
    calibration: tuple[tuple[float, float, int], ...]
    calibration_error: float

    def __str__(self) -> str:
        head = (
            f"{self.num_pairs} pairs: accuracy {self.accuracy:.3f} ± {self.standard_error:.3f}, "
            f"log-likelihood {self.log_likelihood:.3f} nats per pair (a coin: -0.693), "
            f"calibration error {self.calibration_error:.3f}"
        )
        rows = [f"  says {said:.2f}, is right {right:.2f} of {count}" for said, right, count in self.calibration]
        return "\n".join([head, *rows])


def probability(posterior: RewardPosterior, gaps: Tensor) -> Tensor:
    """P(better preferred) = E[sigmoid(w . gap)] under the belief, ``[n]``.

    A Gaussian belief makes w . gap Gaussian: Gauss-Hermite quadrature."""
    belief = posterior.belief
    if belief.draws is not None:
        return torch.sigmoid(gaps @ belief.draws.T).mean(-1)
    sd = ((gaps @ belief.covariance) * gaps).sum(-1).clamp_min(0).sqrt()
    at = (gaps @ belief.mean)[:, None] + sd[:, None] * _NODES
    return (torch.sigmoid(at) * _WEIGHTS).sum(-1) / _WEIGHTS.sum()


def report(posterior: RewardPosterior, pairs: Pairs) -> Report:
    """See :meth:`RewardPosterior.report`."""
    if len(pairs) == 0:
        raise InputError("report() needs at least one pair")
    gaps = posterior.gaps(pairs)
    mean, p = gaps @ posterior.belief.mean, probability(posterior, gaps)
    hits = (mean > 0).double() + 0.5 * (mean == 0).double()
    accuracy = float(hits.mean())
    said = torch.maximum(p, 1 - p)
    right = (p > 0.5).double() + 0.5 * (p == 0.5).double()
    rows = []
    for low, high in pairwise(BINS):
        inside = (said >= low) & ((said < high) | (high == BINS[-1]))
        if bool(inside.any()):
            rows.append((float(said[inside].mean()), float(right[inside].mean()), int(inside.sum())))
    error = sum(abs(confidence - frequency) * count for confidence, frequency, count in rows) / len(pairs)
    standard_error = (accuracy * (1 - accuracy) / len(pairs)) ** 0.5
    return Report(len(pairs), accuracy, standard_error, float(p.log().mean()), tuple(rows), error)
