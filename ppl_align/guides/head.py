r"""A low-rank tilt of the last hidden state, through the frozen unembedding.

    q(v | prefix) ∝ p0(v | prefix) exp(u_v · A h),      A = L Rᵀ,  L, R [d, r]

u_v is the unembedding row of token v and h the last hidden state. The trunk is frozen, so one forward gives log q and
log p0 at once, and the gradient never enters the network: d log q(x) / d(A h) = u_x - E_q[u], which is stored while
decoding. Its inner product with A h has the gradient of log q (and not its value, which is known already).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ppl_align.core.errors import InputError
from ppl_align.guides.tokens import Draw, TokenGuide
from ppl_align.lm.base import LM
from ppl_align.lm.decoding import Population, Rows
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.warp import log_normalise


class HeadGuide(TokenGuide):
    """``rank`` r; starts at the prior (L = 0). Raises ``InputError`` for LMs without hidden states."""

    kind = "head"

    def __init__(self, source: CompletionDistribution, rank: int) -> None:
        super().__init__()
        lm = source.lm
        unembedding = self._look_at(lm)
        size = unembedding.weight.shape[1]  # of what enters the unembedding, which may be narrower than the trunk
        noise = torch.randn(size, rank, device=lm.device)  # from the run's own random stream
        self.left = nn.Parameter(torch.zeros(size, rank, device=lm.device))
        self.right = nn.Parameter(noise / size**0.5)

    def _look_at(self, lm: LM) -> Any:
        """The frozen unembedding of an LM; raises ``InputError`` where it has none."""
        unembedding = getattr(lm, "unembedding", None)
        if unembedding is None or lm.hidden_size is None:
            raise InputError(f'{lm.name} has no hidden states for guide="head": use guide="auto" or your own')
        if unembedding.weight.is_meta:
            raise InputError(f'guide="head" reads the unembedding, and {lm.name} keeps it on disk: use guide="auto"')
        self._unembed = [unembedding]  # in a list: not a parameter of this guide
        return unembedding

    def _restore(self, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self._look_at(lm)
        self.left, self.right = (nn.Parameter(tensors[name].to(lm.device)) for name in ("left", "right"))

    @property
    def unembedding(self) -> Tensor:
        """[V, d]"""
        return self._unembed[0].weight

    def shift(self, hidden: Tensor) -> Tensor:
        """A h, ``[..., d] -> [..., d]``."""
        return (hidden.float() @ self.right) @ self.left.T

    def log_q(self, rows: Rows) -> Tensor:
        assert rows.hidden is not None
        shift = self.shift(rows.hidden)
        layer = self._unembed[0]
        tilt = layer(shift.to(self.unembedding.dtype))
        if layer.bias is not None:
            tilt = tilt - layer.bias
        return log_normalise(rows.log_probs + tilt)

    @torch.no_grad()
    def draw(self, source: CompletionDistribution) -> Draw:
        """Decode, keeping h and u_x - E_q[u] of every step: no second pass is needed for the gradient."""
        seen: list[Tensor] = []

        def propose(rows: Rows) -> Tensor:
            log_q = self.log_q(rows)
            seen[:] = [(log_q.exp().to(self.unembedding.dtype) @ self.unembedding).float()]
            return log_q

        population = Population(source, propose)
        hidden, slopes = [], []
        while not population.done:
            running = torch.tensor(population.alive, device=source.lm.device)  # a copy: step() changes it in place
            row = torch.as_tensor(population.row * population.alive, device=source.lm.device)
            before = population.decoder.hidden
            assert before is not None
            hidden.append(before[row].float())
            population.step()
            drawn = population.tokens[:, population.t - 1]
            slope = self.unembedding[drawn].float() - seen[0][row]
            slopes.append(torch.where(running[:, None], slope, torch.zeros_like(slope)))
            population.advance()
        h, g = torch.stack(hidden, 1), torch.stack(slopes, 1)  # [M, t, d]
        value = population.log_q

        def score() -> Tensor:
            surrogate = (g * self.shift(h)).sum((1, 2)).double()
            return value + surrogate - surrogate.detach()

        return Draw(population.tokens, value, population.log_p, score)
