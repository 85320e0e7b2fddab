"""What next tokens lean to: the prior, confined to what is allowed and tilted by what is known of each token.

Nothing here changes the prior. It decides what particles are *drawn* from, and the weight p0 / q pays for it::

    q(v | x) ∝ (1 - d) p0(v | x) psi(x v) / A + d p0(v | x) 1[v is allowed] / B

with A and B the sums over v, and d the share that is drawn from the confined prior whatever psi says.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from ppl_align.lm.warp import log_normalise

if TYPE_CHECKING:
    from ppl_align.lm.decoding import Rows


class Leaning(NamedTuple):
    """What is known of the next tokens of each row.

    ``allowed``    [rows, V] bool, None: all are
    ``log_psi``    [rows, V] nats, how much more each is worth; -inf: nothing. None: nothing is known
    ``weighs``     the part of it that weighs the prefix once a token is drawn; None: what weighs is asked for then
    ``defensive``  d above
    """

    allowed: Tensor | None = None
    log_psi: Tensor | None = None
    weighs: Tensor | None = None
    defensive: float = 0.0

    def support(self, log_probs: Tensor) -> Tensor:
        """log q ``[rows, V]`` where nobody proposes anything better."""
        if self.log_psi is None:
            return log_probs if self.allowed is None else confine(log_probs, self.allowed)
        confined = log_probs if self.allowed is None else _forbid(log_probs, self.allowed)
        log_q, nothing = _normalise(confined + self.log_psi.to(confined))
        if self.defensive:
            rest, dead = _normalise(confined)
            log_q = log_q + math.log1p(-self.defensive)
            rest = rest + torch.where(nothing, 0.0, math.log(self.defensive))
            log_q, nothing = torch.logaddexp(torch.where(nothing, -torch.inf, log_q), rest), dead
        return log_normalise(torch.where(nothing, log_probs, log_q))


def _normalise(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised in each row, and whether there was nothing to normalise, [rows, 1]."""
    total = log_weights.logsumexp(-1, keepdim=True)
    nothing = total.isneginf()
    return log_weights - torch.where(nothing, 0.0, total), nothing


class Lean(Protocol):
    """Who knows something of next tokens: a restriction, a twist. ``proposes``: does it?"""

    @property
    def proposes(self) -> bool: ...

    def leaning(self, rows: Rows) -> Leaning: ...


def confine(log_probs: Tensor, allowed: Tensor) -> Tensor:
    """``[rows, V]`` nats: log-probabilities on ``allowed`` [rows, V] only, normalised again.

    A row with nothing left stays as it is: a dead end is drawn from like any other, and its weight is 0."""
    confined = _forbid(log_probs, allowed)
    dead = confined.isneginf().all(-1, keepdim=True)
    return log_normalise(torch.where(dead, log_probs, confined))


def _forbid(log_probs: Tensor, allowed: Tensor) -> Tensor:
    return log_probs.masked_fill(~allowed.to(log_probs.device), -torch.inf)
