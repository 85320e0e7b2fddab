"""A language model that only draws blocks, as a server that samples does: it shows no next-token probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_align.core.cost import count
from ppl_align.lm.base import LM, Ids
from ppl_align.lm.blocks import Block, stepped
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.warp import Warp


class BlockLM(LM):
    """Draws what ``inside`` would draw, or something a little different (``draws_from``), and scores by ``inside``."""

    def __init__(self, inside: LM, draws_from: LM | None = None) -> None:
        self.inside, self.drawing = inside, inside if draws_from is None else draws_from
        self.vocab_size, self.eos_id, self.device = inside.vocab_size, inside.eos_id, inside.device
        self.name = f"blocks of {inside.name}"
        self.blocks: list[int] = []

    def draw_block(self, prefixes: Sequence[Ids], length: int, source: CompletionDistribution) -> Block:
        self.blocks.append(length)
        count(lm_forwards=1, lm_tokens=len(prefixes) * length)
        drawn = stepped(prefixes, length, _of(self.drawing, source, length))
        if self.drawing is self.inside:
            return drawn
        return drawn._replace(log_p=self._scored(prefixes, drawn.tokens, self.inside, source))

    def score_block(
        self, prefixes: Sequence[Ids], tokens: Tensor, source: CompletionDistribution
    ) -> tuple[Tensor, Tensor]:
        p, q = (self._scored(prefixes, tokens, lm, source) for lm in (self.inside, self.drawing))
        return p, q

    def _scored(self, prefixes: Sequence[Ids], tokens: Tensor, lm: LM, source: CompletionDistribution) -> Tensor:
        return lm.token_log_probs(prefixes, tokens, source.warp).double()

    def token_log_probs(self, prompts: Sequence[Ids], tokens: Tensor, warp: Warp = Warp()) -> Tensor:
        return self.inside.token_log_probs(prompts, tokens, warp)

    def encode(self, text: str) -> Ids:
        return self.inside.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.inside.decode(ids)


def _of(lm: LM, source: CompletionDistribution, length: int) -> CompletionDistribution:
    nobody = torch.zeros(0, dtype=torch.long)
    return CompletionDistribution(lm, (), nobody, length, source.warp, source.stop_ids)
