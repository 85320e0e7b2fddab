"""A language model that only draws blocks, as a server that samples does: it shows no next-token probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ppl_align.core.cost import count
from ppl_align.lm.base import LM, Ids
from ppl_align.lm.blocks import Block, scored, stepped
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.warp import Warp


class BlockLM(LM):
    """Draws what ``inside`` would draw, or something a little different (``draws_from``), and scores by ``inside``."""

    def __init__(self, inside: LM, draws_from: LM | None = None) -> None:
        self.inside, self.drawing = inside, inside if draws_from is None else draws_from
        self.vocab_size, self.eos_id, self.device = inside.vocab_size, inside.eos_id, inside.device
        self.name = f"blocks of {inside.name}"
        self.blocks: list[int] = []

    def draw_block(
        self, prompts: Sequence[Ids], texts: Sequence[Ids], length: int, source: CompletionDistribution
    ) -> Block:
        self.blocks.append(length)
        count(lm_forwards=1, lm_tokens=len(prompts) * length)
        drawn = stepped(prompts, texts, length, source.by(self.drawing))
        if self.drawing is self.inside:
            return drawn
        return drawn._replace(log_p=scored(prompts, texts, drawn.tokens, source.by(self.inside)))

    def score_block(
        self, prompts: Sequence[Ids], texts: Sequence[Ids], tokens: Tensor, source: CompletionDistribution
    ) -> tuple[Tensor, Tensor]:
        p, q = (scored(prompts, texts, tokens, source.by(lm)) for lm in (self.inside, self.drawing))
        return p, q

    def token_log_probs(self, prompts: Sequence[Ids], tokens: Tensor, warp: Warp = Warp()) -> Tensor:
        return self.inside.token_log_probs(prompts, tokens, warp)

    def encode(self, text: str) -> Ids:
        return self.inside.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.inside.decode(ids)
