"""Language models that tests share, small enough that every answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from ppl_align import CallableLM, MarkovLM
from ppl_align.testing.programs import EOS


def chain(
    vocab: int,
    seed: int | Generator,
    eos_id: int | None = None,
    positions: int | None = None,
    scale: float = 1.0,
    initial: float | None = None,
    cost: Tensor | float = 0.0,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> MarkovLM:
    """A random Markov chain: normal logits of standard deviation ``scale``, those of a first token ``initial``.

    Without ``initial`` it needs a prompt. ``cost [V]``: nats taken from each token, wherever it comes."""
    generator = seed if isinstance(seed, Generator) else Generator().manual_seed(seed)
    shape = (vocab, vocab) if positions is None else (positions, vocab, vocab)
    logits = scale * torch.randn(shape, generator=generator, dtype=dtype) - cost
    first = None if initial is None else initial * torch.randn(vocab, generator=generator, dtype=dtype) - cost
    return MarkovLM(logits, first, eos_id=eos_id, **options)


_RANDOM = Generator().manual_seed(5)
ABCD, OTHER_ABCD = (
    chain(5, _RANDOM, eos_id=4, dtype=torch.float32, tokens=["a", "b", "c", "d", "</s>"]) for _ in range(2)
)
"""Two chains over the same letters, which end."""
ABC = MarkovLM(torch.tensor([[0.2, 0.0, -0.4], [0.0, 0.5, 0.1], [0.3, -0.2, 0.0]]).double(), tokens=["a", "b", "c"])
FLAT_ABC = MarkovLM(torch.zeros(3, 3, dtype=torch.float64), tokens=["a", "b", "c"])
AB = CallableLM(3, lambda prefix: torch.tensor([[0.3, 0.0, -0.5]]).repeat(len(prefix), 1), 2, ["a", "b", ""])
"""The same after every prefix; the last token ends."""
SPELLED = MarkovLM(EOS.log_table, EOS.log_initial, eos_id=2, tokens=["a", "b", "."])
"""The chain of :mod:`ppl_align.testing.programs` that ends, with letters: its end is a full stop."""
OVERLAPPING = MarkovLM(
    torch.zeros(9, 9, dtype=torch.float64),
    torch.zeros(9),
    eos_id=8,
    tokens=["a", "b", "ab", "ba\n", "é", "A1", "_.", "", "$"],
)
"""Tokens that cut a text in several ways ("ab" is "a" + "b"), one without any letter."""


def of_characters(characters: Sequence[str], end: str = "</s>") -> CallableLM:
    """Every character is a token, all of them as likely as the end."""
    size = len(characters) + 1
    return CallableLM(size, lambda prefix: torch.zeros(len(prefix), size), size - 1, [*characters, end])


class ChatLM(CallableLM):
    """A chat template that is nothing but the contents of the messages."""

    def chat_ids(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        return self.encode("".join(message["content"] for message in messages))


def uniform(rows: Any) -> Tensor:
    """A proposal that likes all tokens alike."""
    return torch.full_like(rows.log_probs, -math.log(rows.log_probs.shape[-1]))
