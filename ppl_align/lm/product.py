"""A product of experts, token by token: what all of them find probable, or what one does and another does not.

    q(v | x_<t) ∝ prod_k p_k(v | x_<t)^a_k           normalised anew for every token

Powers a_k > 0 are votes for, a_k < 0 votes against: (1 + g, -g) is guidance away from the second expert (classifier-
free guidance, Sanchez et al. 2023, arXiv:2306.17806; contrastive decoding, Li et al. 2022, arXiv:2210.15097; DExperts,
Liu et al. 2021, arXiv:2105.03023). A sum above 1 sharpens what the experts agree on, one below 1 flattens it.

This is *not* the product of the distributions over texts,  p(x) ∝ prod_k p_k(x)^a_k: the local one multiplies each
text by prod_t 1 / Z(x_<t), where Z(x_<t) = sum_v prod_k p_k(v | x_<t)^a_k is how far the experts agree on what comes
next, so it does not foresee prefixes after which they disagree. Of two random Markov chains (3 tokens, 4 steps, powers
1 and 1) KL(local || global) is 0.47 nats. Written as factors, ``expert`` and ``power`` give the global one; the
local one is then a good ``proposal=`` for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_align.core.errors import InputError, RunError
from ppl_align.lm.base import LM, Decoder, Ids, WithLogits
from ppl_align.lm.ensemble import Ensemble, hidden_of
from ppl_align.lm.warp import log_normalise


class Product(Ensemble):
    """``lms`` over one vocabulary, ``powers`` a_k (any but 0; default: 1 each).

    ``plausible``  only tokens with p_1(v | x_<t) >= plausible * max_v' p_1(v' | x_<t) are considered, p_1 being the
                   first expert (0: all; 0.1 in contrastive decoding). With a negative power and none of this, rare
                   tokens that the second expert finds rarer still may win.

    A token that any expert gives probability zero is left out, those of negative power (where 1/0 says nothing)
    included. Raises ``InputError`` for LMs of different vocabularies or a power of 0, ``RunError`` after a text where
    nothing is left.
    """

    def __init__(self, lms: Sequence[LM], powers: Sequence[float] | None = None, plausible: float = 0.0) -> None:
        super().__init__(lms, [1.0] * len(lms) if powers is None else powers, "product", "powers")
        if 0.0 in self.coefficients:
            raise InputError("a power of 0 takes no part in a product: leave that LM out")
        if not 0 <= plausible <= 1:
            raise InputError(f"plausible is a share of the largest probability, between 0 and 1; got {plausible}")
        self.plausible = plausible

    def start(self, prompts: Sequence[Ids]) -> ProductDecoder:
        return ProductDecoder(self, self.starts(prompts))

    def forced_log_probs(self, prompts: Sequence[Ids], tokens: Tensor) -> Tensor:
        logits = self.combine(self.forced(prompts, tokens))
        dead = logits.isneginf().all(-1, keepdim=True)  # padding is read as well: what follows it means nothing
        return torch.where(dead, -torch.inf, log_normalise(torch.where(dead, 0.0, logits)))

    def combine(self, parts: Sequence[Tensor]) -> Tensor:
        """sum_k a_k log p_k, ``[..., V]``, up to a constant of each row."""
        total = torch.zeros_like(parts[0])
        for part, power in zip(parts, self.coefficients, strict=True):
            impossible = part.isneginf()
            total = (total + power * part.masked_fill(impossible, 0.0)).masked_fill(impossible, -torch.inf)
        if self.plausible > 0:
            cut = parts[0].amax(-1, keepdim=True) + torch.tensor(self.plausible).log().to(parts[0])
            total = total.masked_fill(parts[0] < cut, -torch.inf)
        return total


class ProductDecoder(WithLogits):
    """One decoder of each expert."""

    def __init__(self, product: Product, decoders: list[Decoder]) -> None:
        self.product, self.decoders, self.hidden = product, decoders, hidden_of(decoders)
        self.logits = product.combine([decoder.log_probs for decoder in decoders])
        if bool(self.logits.isneginf().all(-1).any()):
            raise RunError(f"{product.name}: after one of the texts no token is possible under every expert")

    def extend(self, parents: Tensor, tokens: Tensor) -> ProductDecoder:
        return ProductDecoder(self.product, [decoder.extend(parents, tokens) for decoder in self.decoders])
