r"""A guide with one free parameter per (position, previous token, token): for texts too long for a table of prefixes.

    q(x_t = v | prompt, x_<t) ∝ p0(v | prompt, x_<t) exp(table[t, x_(t-1), v]),     initially p0

The posterior of a Markov chain under a reward that adds over tokens, r(x) = sum_t s_t(x_(t-1), x_t), is itself a Markov
chain, p*(x_t | x_<t) ∝ p0(x_t | x_(t-1)) exp(s_t(x_(t-1), x_t)) V_t(x_t), so there the best guide of this kind is the
posterior. Of other rewards and other LMs it is the best that looks at one token back, and the weights say what is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ppl_align.core.errors import InputError
from ppl_align.guides.tokens import TokenGuide
from ppl_align.lm.base import LM
from ppl_align.lm.decoding import Rows
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.warp import log_normalise

LARGEST = 2**21
PARTS = ("by_place", "by_pair", "by_token")


class MarkovGuide(TokenGuide):
    """The table is a sum, ``by_place`` [T, V + 1, V] + ``by_pair`` [V + 1, V] + ``by_token`` [V], nats: what all
    positions share is learned from all of them. Rows are previous tokens, V for none (an empty prompt); at the first
    position the previous token is the last of the prompt. Raises ``InputError`` where the table would be too large."""

    kind = "markov"

    def __init__(self, source: CompletionDistribution) -> None:
        super().__init__()
        vocab, length = source.lm.vocab_size, source.max_new_tokens
        if size_for(source) > LARGEST:
            raise InputError(
                f"a guide of one table per position would need {size_for(source)} parameters for {source.lm.name}: "
                f"write your own guide, or use SMC or importance sampling"
            )
        shapes = {"by_place": (length, vocab + 1, vocab), "by_pair": (vocab + 1, vocab), "by_token": (vocab,)}
        self._restore(source.lm, {}, {name: torch.zeros(s, dtype=torch.float64) for name, s in shapes.items()})

    def _restore(self, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.by_place, self.by_pair, self.by_token = (nn.Parameter(tensors[name].to(lm.device)) for name in PARTS)

    def log_q(self, rows: Rows) -> Tensor:
        position, none, device = rows.prefixes.shape[1], self.by_token.shape[-1], self.by_token.device
        if position:
            previous = rows.prefixes[:, -1].to(device)
        else:
            previous = torch.tensor([p[-1] if p else none for p in rows.prompts], device=device)
        tilt = self.by_token + self.by_pair[previous]
        if position < len(self.by_place):  # of longer texts than it was trained on, it knows what positions share
            tilt = tilt + self.by_place[position, previous]
        return log_normalise(rows.log_probs + tilt.to(rows.log_probs.device))


def size_for(source: CompletionDistribution) -> int:
    """Parameters of this guide for a completion."""
    vocab = source.lm.vocab_size
    return source.max_new_tokens * (vocab + 1) * vocab
