"""The law of one delivered draw, against the exact posterior.

A run delivers a draw: one of its particles, chosen by weight. The law of that draw, over everything random in the run,
is not quite the posterior, however the weights are normalised. It is the mean of the normalised weights over runs:

    P(draw = x) = E[ sum_i W_i 1[x_i = x] ]

so replicates are averaged, each with all its particles, and no draw needs to be taken (Rao-Blackwell). The average of R
replicates is noisy. Its standard errors give the floor below which a total variation cannot be told from 0: with a
normal error of standard deviation se(x) the mean of |error| is se(x) sqrt(2 / pi).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.posterior import Posterior
from ppl_align.testing.oracle import Oracle


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """sum_x |p(x) - q(x)| / 2 of two laws over a support [..., S].

    >>> float(total_variation(torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])))
    0.25
    """
    return (p - q).abs().sum(-1) / 2


class Delivered(NamedTuple):
    """``law``  [S] of one delivered draw, over the support of an oracle, averaged over replicates

    ``total_variation``  between it and the posterior, the noise of the average included
    ``noise_floor``      what that is expected to be where the law is the posterior: sum_x se(x) / sqrt(2 pi)"""

    law: Tensor
    total_variation: float
    noise_floor: float


def delivered(run: Posterior, oracle: Oracle) -> Delivered:
    """What ``run``, of a program whose only latent is one completion, delivers; its replicates are independent.

    Raises ``InputError`` for other programs, fewer than two replicates, or a text that the oracle does not know."""
    if len(oracle.values) != 1 or len(oracle.completions) != 1:
        raise InputError(f"delivered() is for programs of one completion, this one has {', '.join(oracle.values)}")
    weight = run.log_weight.softmax(-1)
    replicates = len(weight)
    if replicates < 2:
        raise InputError("a noise floor takes two replicates at least")
    name, known = next(iter(oracle.values.items()))
    drawn = run.completions[name].tokens
    base = 1 + int(max(known.max(), drawn.max()))
    if base ** known.shape[-1] >= 2**62:
        raise InputError(f"texts of {known.shape[-1]} tokens out of {base} have no number of 62 bits")
    numbers, order = _number(known, base).sort()
    found = _number(drawn, base)
    place = torch.searchsorted(numbers, found).clamp_max(len(numbers) - 1)
    if bool((numbers[place] != found).any()):
        raise InputError("the run holds a text that the oracle does not know")
    size = len(known)
    cell = order[place] + size * torch.arange(replicates)[:, None]
    each = torch.zeros(replicates * size, dtype=torch.float64).index_add_(0, cell.reshape(-1), weight.reshape(-1))
    each = each.reshape(replicates, size)  # the law of one draw of each replicate, given the replicate
    law, error = each.mean(0), each.std(0) / math.sqrt(replicates)
    away = total_variation(law, oracle.log_target.exp())
    return Delivered(law, float(away), float(error.sum()) / math.sqrt(2 * math.pi))


def _number(tokens: Tensor, base: int) -> Tensor:
    """One number for each text, [...]: its ids as digits."""
    digits = base ** torch.arange(tokens.shape[-1])
    return (tokens.cpu() * digits).sum(-1)


__all__ = ["Delivered", "delivered", "total_variation"]
