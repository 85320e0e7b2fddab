"""A guide with one free parameter per (prefix, token): exact for toys, impossible for anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ppl_align.core.errors import InputError
from ppl_align.guides.tokens import TokenGuide
from ppl_align.lm.base import LM, Ids
from ppl_align.lm.decoding import Rows
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.warp import log_normalise

LARGEST = 2**21


class TableGuide(TokenGuide):
    """q(v | prompt, prefix) ∝ p0(v | prompt, prefix) exp(table[prompt][prefix, v]), initially p0.

    Prefixes are numbered base V, shorter ones first. Raises ``InputError`` when the table would be too large."""

    kind = "table"

    def __init__(self, source: CompletionDistribution) -> None:
        super().__init__()
        self.vocab = source.lm.vocab_size
        self.entries = size_for(source)
        if self.entries > LARGEST:
            raise InputError(
                f"a table guide would need {self.entries} parameters for {source.lm.name}: "
                f'use guide="markov", write your own, or use SMC or importance sampling'
            )
        self.tables = nn.ParameterDict()

    def settings(self) -> dict[str, Any]:
        return {"vocab": self.vocab, "entries": self.entries}

    def _restore(self, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.vocab, self.entries = int(settings["vocab"]), int(settings["entries"])
        self.tables = nn.ParameterDict({name.removeprefix("tables."): nn.Parameter(t) for name, t in tensors.items()})

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
        """A prompt never seen in training has no table, nor has a longer text: there the guide is the prior."""
        known = _key(prompt) in self.tables and code < self.entries // self.vocab
        return self.tables[_key(prompt)][code] if known else torch.zeros(self.vocab)


def size_for(source: CompletionDistribution) -> int:
    """Parameters of this guide for each prompt of a completion."""
    return sum(source.lm.vocab_size ** (t + 1) for t in range(source.max_new_tokens))


def _key(prompt: Ids) -> str:
    return "_".join(map(str, prompt)) or "empty"
