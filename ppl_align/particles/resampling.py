"""Which particles go on: rows of low ESS are resampled by one of the schemes, each on its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_align.particles.chopthin import Chopthin
from ppl_align.particles.schemes import (
    Conditional,
    Resampler,
    conditional_multinomial,
    conditional_residual,
    conditional_stratified,
    conditional_systematic,
    multinomial,
    residual,
    stratified,
    systematic,
)
from ppl_align.particles.weights import effective_sample_size

_TIE = 1e-9  # an ESS of N up to rounding is N

EQUAL: dict[str, Resampler] = {
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "multinomial": multinomial,
}
"""After these all particles weigh the same."""
SCHEMES: dict[str, Resampler] = {**EQUAL, "chopthin": Chopthin()}
CONDITIONAL: dict[str, Conditional] = {
    "systematic": conditional_systematic,
    "stratified": conditional_stratified,
    "residual": conditional_residual,
    "multinomial": conditional_multinomial,
    "chopthin": Chopthin(retained=True),
}


class Resampled(NamedTuple):
    """``ess [R]`` before; ``resampled [R]``: which rows were; ``ancestors [R, N]``, everybody their own elsewhere;
    ``log_weight [R, N]``: what they weigh now. In rows that were resampled that is 0, or about 0 on average
    (``"chopthin"``); their mean is to be kept elsewhere."""

    ess: Tensor
    resampled: Tensor
    ancestors: Tensor
    log_weight: Tensor

    @property
    def flat(self) -> Tensor:
        """The ancestors as they lie in R replicates of N particles, [R * N], for :meth:`Particles.take`."""
        replicates, particles = self.ancestors.shape
        return (self.ancestors + torch.arange(replicates)[:, None] * particles).reshape(-1)


def resample(log_weight: Tensor, threshold: float, scheme: Resampler | Conditional = systematic) -> Resampled:
    """Resample the rows of ``log_weight [R, N]`` whose ESS is below ``threshold`` * N, each on its own.

    Then take :attr:`Resampled.flat` of the particles, and multiply the mean weight of those rows into their Zhat:
    E[Zhat] stays what it was. A row without any weight is left alone: its Zhat is 0."""
    weights, alive = _normalised(log_weight)
    ess, size = effective_sample_size(weights), log_weight.shape[-1]
    resampled = (ess < threshold * size * (1 - _TIE)) & alive  # equal weights: rounding decides nothing
    ancestors, after = torch.arange(size).expand(log_weight.shape), log_weight
    if bool(resampled.any()):
        some = torch.where(resampled[:, None], weights, torch.ones(()))
        drawn = scheme(some, None)
        kept = log_weight_of(scheme, some, drawn)
        ancestors = torch.where(resampled[:, None], drawn, ancestors)
        after = torch.where(resampled[:, None], kept, log_weight)
    return Resampled(ess, resampled, ancestors, after)


def log_weight_of(scheme: Resampler | Conditional, weights: Tensor, ancestors: Tensor) -> Tensor:
    """What the copies weigh, [R, N] nats, where particles of weights [R, N], normalised, weighed 1 on average."""
    equal = torch.zeros(weights.shape, dtype=torch.float64)
    return scheme.kept(weights, ancestors) if isinstance(scheme, Chopthin) else equal


def ancestors_of(log_weight: Tensor, size: int, scheme: Resampler) -> Tensor:
    """``size`` ancestors in each row of ``log_weight [R, N]``: ``[R, size]``; in a row without any weight, anybody."""
    weights, alive = _normalised(log_weight)
    return scheme(torch.where(alive[:, None], weights, torch.ones(())), None, size)


def _normalised(log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """W [R, N], and which rows have any weight, [R]."""
    best = log_weight.amax(-1, keepdim=True)
    weights = (log_weight - best.clamp_min(-1e300)).exp()
    total = weights.sum(-1, keepdim=True)
    return weights / total.clamp_min(1e-300), total[:, 0] > 0


def draw_by(log_weight: Tensor) -> Tensor:
    """One index per row in proportion to exp(log_weight): ``[P, A] -> [P]``."""
    return torch.multinomial((log_weight - log_weight.amax(-1, keepdim=True)).exp(), 1)[:, 0]
