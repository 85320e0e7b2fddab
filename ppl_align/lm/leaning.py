"""What next tokens lean to: the prior, confined to what is allowed and tilted by what is known of each token.

Nothing here changes the prior. It decides what particles are *drawn* from, and the weight p0 / q pays for it::

    q(v | x) ∝ (1 - d) p0(v | x) psi(x v) / A + d p0(v | x) 1[v is allowed] / B

with A and B the sums over v, and d the share that is drawn from the confined prior whatever psi says.
"""

from __future__ import annotations

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
        log_psi = self.log_psi.to(confined)
        tilted = confined + log_psi
        if not self.defensive:
            total = tilted.logsumexp(-1, keepdim=True)
            return torch.where(total.isneginf(), log_normalise(log_probs), tilted - total)
        best, top = (_finite(each.amax(-1, keepdim=True)) for each in (confined, tilted))
        lost = confined - best
        safe = lost.exp()  # 0 in float32 from -104 on: relative to the best token, and never the argument of a log
        psi = (log_psi - (top - best)).exp_().clamp_max_(_MOST)
        total, room = (safe * psi).sum(-1, keepdim=True), safe.sum(-1, keepdim=True)
        share = torch.where(total > 0, 1 - self.defensive, 0.0) / total.clamp_min(_LEAST)
        rest = torch.where(total > 0, self.defensive, 1.0) / room.clamp_min(_LEAST)
        log_q = psi.mul_(share).add_(rest).log_().add_(lost)
        return torch.where(room > 0, log_q, log_normalise(log_probs))


_LEAST, _MOST = 1e-37, 1e37  # float32: what a mass is divided by where it is 0, and a ratio that is as good as infinite


def _finite(value: Tensor) -> Tensor:
    return torch.where(value.isneginf(), 0.0, value)


class Lean(Protocol):
    """Who knows something of next tokens: a restriction, a twist. ``proposes``: does it? ``by_ids``: from the ids of a
    row alone (then nothing else of it is put together)."""

    @property
    def proposes(self) -> bool: ...

    @property
    def by_ids(self) -> bool: ...

    def leaning(self, rows: Rows) -> Leaning: ...


def confine(log_probs: Tensor, allowed: Tensor) -> Tensor:
    """``[rows, V]`` nats: log-probabilities on ``allowed`` [rows, V] only, normalised again.

    A row with nothing left stays as it is: a dead end is drawn from like any other, and its weight is 0."""
    confined = _forbid(log_probs, allowed)
    dead = confined.isneginf().all(-1, keepdim=True)
    return log_normalise(torch.where(dead, log_probs, confined))


def _forbid(log_probs: Tensor, allowed: Tensor) -> Tensor:
    return log_probs.masked_fill(~allowed.to(log_probs.device), -torch.inf)
