"""Vocabularies of real tokenizers."""

from __future__ import annotations

from typing import Any

import torch

from ppl_align.lm.base import LM


class Words(LM):
    """A tokenizer without its network; ``extra``: ids that only the network has."""

    def __init__(self, tokenizer: Any, eos_id: int, extra: int = 0) -> None:
        self.tokenizer, self.eos_id, self.vocab_size = tokenizer, eos_id, len(tokenizer) + extra
        self.name, self.device = "words", torch.device("cpu")

    def encode(self, text):
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids):
        return self.tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=True)

    def start(self, prompts):
        raise NotImplementedError

    token_log_probs = start
