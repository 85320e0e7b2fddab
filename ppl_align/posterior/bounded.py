"""How large log Z may still be, for all that draws of the prior have shown.

Where every factor has a known bound, weights of prior draws lie in [0, e^B], and n of them give their mean an upper
confidence limit that holds whatever their law. For weights in units of e^B, the capital of a gambler who bets against a
larger mean m, K(m) = prod_i (1 - c (w_i - m) / (1 - m)), is a fair game if the mean is m: it exceeds 1 / alpha with
probability alpha at most (Waudby-Smith & Ramdas, arXiv:2010.09686). Half of the stake is on c = 1, which wins most
where no weight is near the bound (then m is about log(2 / alpha) / n: what n draws have missed cannot have more prior
mass), the rest is spread over smaller bets. All bets are constant, so the order of the draws does not matter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_align.posterior.once import once
from ppl_align.posterior.prior import drew_from_prior
from ppl_align.posterior.result import Posterior

_SAME = 1e-9  # nats
_CLOSE = 1e-6  # of a limit
_BETS = torch.logspace(-3, 0, 13, dtype=torch.float64)[:-1]


@once
def log_evidence_upper(run: Posterior, confidence: float = 0.95) -> float | None:
    """log Z is at most this, nats, with this confidence.

    None where a factor has no declared bound, where a drawn weight moves it, and for draws that are not the prior's."""
    if not run.log_upper or run.draws_are_exact or not drew_from_prior(run):
        return None
    total = sum(run.log_upper.values(), torch.zeros_like(run.log_weight))
    bound = float(total.max())
    if not math.isfinite(bound) or float(total.min()) < bound - _SAME:
        return None
    weights = (run.log_weight.reshape(-1).double() - bound).clamp_max(0.0).exp()
    return bound + math.log(upper_mean(weights, confidence))


def upper_mean(x: Tensor, confidence: float = 0.95) -> float:
    """Upper confidence limit of the mean of independent ``x [n]`` in [0, 1].

    >>> round(upper_mean(torch.zeros(1000, dtype=torch.float64)), 5)  # the rule of three, with half of the stake
    0.00363
    """
    threshold = -math.log(1 - confidence)
    low, high = float(x.mean()), 1.0
    for _ in range(60):
        if high - low < _CLOSE * high:
            break
        m = math.sqrt(low * high) if low > 0 else high / 2 if high < 1e-12 else (low + high) / 2
        if _log_capital(x, m) < threshold:
            low = m
        else:
            high = m
    return high


def _log_capital(x: Tensor, m: float) -> float:
    if m >= 1:
        return math.inf
    bets = torch.cat([_BETS.new_ones(1), _BETS])
    stakes = torch.cat([_BETS.new_full((1,), 0.5), _BETS.new_full((len(_BETS),), 0.5 / len(_BETS))])
    gains = torch.log((1 - bets[:, None] * (x[None] - m) / (1 - m)).clamp_min(0.0)).sum(-1)
    return float(torch.logsumexp(stakes.log() + gains, 0))
