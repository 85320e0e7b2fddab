"""A guide with one free parameter per (prefix, token): exact for toys, impossible for anything else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppl_align.errors import InputError
from ppl_align.guides.tokens import TokenGuide
from ppl_align.lm.base import Ids
from ppl_align.lm.decoding import Rows
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.warp import log_normalise

_LARGEST = 2**21


class TableGuide(TokenGuide):
    """q(v | prompt, prefix) ∝ p0(v | prompt, prefix) exp(table[prompt][prefix, v]), initially p0.

    Prefixes are numbered base V, shorter ones first. Raises ``InputError`` when the table would be too large."""

    def __init__(self, source: CompletionDistribution) -> None:
        super().__init__()
        self.vocab = source.lm.vocab_size
        self.entries = sum(self.vocab ** (t + 1) for t in range(source.max_new_tokens))
        if self.entries > _LARGEST:
            raise InputError(
                f"a table guide would need {self.entries} parameters for {source.lm.name}: "
                f"write your own guide, or use SMC or importance sampling"
            )
        self.tables = nn.ParameterDict()

    def prepare(self, source: CompletionDistribution) -> None:
        for prompt in source.prompts:
            if _key(prompt) not in self.tables:
                zeros = torch.zeros(self.entries // self.vocab, self.vocab, dtype=torch.float64)
                self.tables[_key(prompt)] = nn.Parameter(zeros)

    def log_q(self, rows: Rows) -> Tensor:
        length = rows.prefixes.shape[1]
        code = torch.full((len(rows.prompts),), sum(self.vocab**t for t in range(length)))
        for t in range(length):
            code = code + rows.prefixes[:, t].cpu() * self.vocab ** (length - 1 - t)
        tilt = torch.stack([self._tilt(prompt, c) for prompt, c in zip(rows.prompts, code.tolist(), strict=True)])
        return log_normalise(rows.log_probs + tilt.to(rows.log_probs.device))

    def _tilt(self, prompt: Ids, code: int) -> Tensor:
        """A prompt never seen in training has no table: there the guide is the prior."""
        return self.tables[_key(prompt)][code] if _key(prompt) in self.tables else torch.zeros(self.vocab)


def _key(prompt: Ids) -> str:
    return "_".join(map(str, prompt)) or "empty"
