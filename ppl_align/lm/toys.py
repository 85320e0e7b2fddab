"""Language models small enough to enumerate: any function, and a Markov chain."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_align.core.cost import count, network
from ppl_align.core.errors import InputError, PromptError
from ppl_align.lm.base import LM, Decoder, Ids, alike


class ToyDecoder:
    """Keeps the prefixes themselves: a toy needs no cache."""

    hidden = None

    def __init__(self, lm: ToyLM, prefixes: list[Ids], offset: list[int]) -> None:
        self.lm, self.prefixes, self.offset = lm, prefixes, offset
        self.logits = self.log_probs = lm.next_log_probs(prefixes, offset)

    @torch.no_grad()
    def extend(self, parents: Tensor, tokens: Tensor) -> ToyDecoder:
        grown = [(*self.prefixes[p], v) for p, v in zip(parents.tolist(), tokens.tolist(), strict=True)]
        count(lm_tokens=len(grown))
        return ToyDecoder(self.lm, grown, [self.offset[p] for p in parents.tolist()])

    def keep(self, rows: Tensor) -> bool:
        """Nothing is needed to take up a row again."""
        return True

    def rows_of(self, places: Sequence[Any], read: Sequence[Ids], length: int) -> ToyDecoder:
        """Rows that have read these ids, the last ``length`` of which are text."""
        return ToyDecoder(self.lm, list(read), [len(ids) - length for ids in read])

    def joined(self, other: ToyDecoder) -> ToyDecoder:
        both = copy.copy(self)
        both.prefixes, both.offset = self.prefixes + other.prefixes, self.offset + other.offset
        both.logits = both.log_probs = torch.cat([self.logits, other.logits])
        return both


class ToyLM(LM):
    """What the toy LMs share. Text is the ids in words (``"3 0 1"``) unless ``tokens`` names each id.

    With ``tokens`` given, text is their plain concatenation and ``encode`` takes the longest token that fits."""

    rows_at_once = 4096  # nothing is kept for a row but its prefix

    def __init__(self, vocab_size: int, eos_id: int | None, tokens: Sequence[str] | None, name: str) -> None:
        if vocab_size < 1:
            raise InputError(f"vocab_size must be at least 1, got {vocab_size}")
        if eos_id is not None and not 0 <= eos_id < vocab_size:
            raise InputError(f"eos_id must be between 0 and {vocab_size - 1}, got {eos_id}")
        if tokens is not None and len(tokens) != vocab_size:
            raise InputError(f"tokens names {len(tokens)} ids, the vocabulary has {vocab_size}")
        self.vocab_size = vocab_size
        self.eos_id = eos_id
        self.tokens = None if tokens is None else list(tokens)
        self.name = name
        self.device = torch.device("cpu")

    @abstractmethod
    def next_log_probs(self, prefixes: Sequence[Ids], offset: Sequence[int]) -> Tensor:
        """Normalised ``[rows, V]``; ``offset`` is the length of each row's prompt."""

    @torch.no_grad()
    def start(self, prompts: Sequence[Ids]) -> Decoder:
        count(prompt_tokens=sum(map(len, prompts)))
        return ToyDecoder(self, list(prompts), [len(p) for p in prompts])

    def forced_log_probs(self, prompts: Sequence[Ids], tokens: Tensor) -> Tensor:
        count(scored_tokens=tokens.numel())
        rows, offset = tokens.tolist(), [len(p) for p in prompts]
        columns = []
        for t in range(tokens.shape[1]):
            prefixes = [(*p, *row[:t]) for p, row in zip(prompts, rows, strict=True)]
            columns.append(self.next_log_probs(prefixes, offset))
        return torch.stack(columns, 1)

    def encode(self, text: str) -> Ids:
        if self.tokens is None:
            words = text.split()
            if not all(word.isdecimal() and int(word) < self.vocab_size for word in words):
                last = self.vocab_size - 1
                raise PromptError(f"{self.name} has no words: write the prompt as ids from 0 to {last}")
            return tuple(map(int, words))
        ids: list[int] = []
        while text:
            fitting = [v for v, token in enumerate(self.tokens) if token and text.startswith(token)]
            if not fitting:
                raise PromptError(f"no token of {self.name} starts {text[:20]!r}")
            ids.append(max(fitting, key=lambda v: len(self.tokens[v])))  # type: ignore[index]
            text = text[len(self.tokens[ids[-1]]) :]
        return tuple(ids)

    def decode(self, ids: Sequence[int]) -> str:
        kept = [i for i in ids if i not in self.eos_ids]
        return " ".join(map(str, kept)) if self.tokens is None else "".join(self.tokens[i] for i in kept)


class CallableLM(ToyLM):
    """Any function as a language model: ``fn(prefix [B, t] int64) -> logits [B, V]``.

    ``prefix`` is the prompt and what was generated so far; ``t`` may be 0. ``eos_id=None``: fixed length.

    >>> lm = CallableLM(3, lambda prefix: torch.zeros(prefix.shape[0], 3))
    >>> round(lm.completion([], 2).log_prob(torch.tensor([0, 2])).exp().item(), 4)
    0.1111
    """

    def __init__(
        self,
        vocab_size: int,
        fn: Callable[[Tensor], Tensor],
        eos_id: int | None = None,
        tokens: Sequence[str] | None = None,
        name: str = "callable-lm",
    ) -> None:
        super().__init__(vocab_size, eos_id, tokens, name)
        self.fn = fn

    def next_log_probs(self, prefixes: Sequence[Ids], offset: Sequence[int]) -> Tensor:
        parts, order = [], []
        for length, members in alike(map(len, prefixes)).items():  # fn sees one length at a time
            rows = np.array([prefixes[i] for i in members], dtype=np.int64)  # torch takes three times as long
            batch = torch.from_numpy(rows).reshape(len(members), length)
            with network():
                logits = self.fn(batch)
            count(lm_forwards=1)
            if logits.shape != (len(members), self.vocab_size):
                raise InputError(
                    f"fn of {self.name} must return logits of shape [{len(members)}, {self.vocab_size}], "
                    f"got {list(logits.shape)}"
                )
            parts.append(logits.log_softmax(-1))
            order += members
        return torch.cat(parts)[torch.tensor(order).argsort()]


class MarkovLM(ToyLM):
    """The next token depends on the previous one and, if wanted, on the position.

    ``logits [V, V]`` (row = previous token), or ``[T, V, V]`` indexed by generated position;
    ``initial [V]``: logits of the first token after an empty prompt.

    >>> lm = MarkovLM(torch.zeros(2, 2), initial=torch.tensor([0.0, -torch.inf]))
    >>> lm.completion([], 2).log_prob(torch.tensor([0, 1])).exp().item()
    0.5
    """

    def __init__(
        self,
        logits: Tensor,
        initial: Tensor | None = None,
        eos_id: int | None = None,
        tokens: Sequence[str] | None = None,
        name: str = "markov-lm",
    ) -> None:
        if logits.dim() not in (2, 3) or logits.shape[-1] != logits.shape[-2]:
            raise InputError(f"logits must have shape [V, V] or [T, V, V], got {list(logits.shape)}")
        if initial is not None and initial.shape != logits.shape[-1:]:
            raise InputError(f"initial must have shape [{logits.shape[-1]}], got {list(initial.shape)}")
        super().__init__(logits.shape[-1], eos_id, tokens, name)
        self.device = logits.device
        self.log_table = logits.log_softmax(-1)
        self.log_initial = None if initial is None else initial.log_softmax(-1)

    @property
    def learned(self) -> bool:
        return any(table is not None and table.requires_grad for table in (self.log_table, self.log_initial))

    def check(self, ids: Ids) -> Ids:
        if not ids and self.log_initial is None:
            raise PromptError(f"{self.name} has no initial=: give it, or a prompt of at least one id")
        return ids

    @torch.no_grad()
    def start(self, prompts: Sequence[Ids]) -> MarkovDecoder:
        count(prompt_tokens=sum(map(len, prompts)))
        return MarkovDecoder(self, self.last(prompts), torch.zeros(len(prompts), dtype=torch.long))

    def forced_log_probs(self, prompts: Sequence[Ids], tokens: Tensor) -> Tensor:
        count(scored_tokens=tokens.numel())
        rows, length = tokens.shape
        previous = torch.cat([self.last(prompts)[:, None], tokens.cpu().long()], 1)[:, :-1]
        columns = [self.after(previous[:, t], torch.full((rows,), t)) for t in range(length)]
        return torch.stack(columns, 1)

    def next_log_probs(self, prefixes: Sequence[Ids], offset: Sequence[int]) -> Tensor:
        position = [len(p) - n for p, n in zip(prefixes, offset, strict=True)]
        return self.after(self.last(prefixes), torch.tensor(position, dtype=torch.long))

    @staticmethod
    def last(prefixes: Sequence[Ids]) -> Tensor:
        """The last id of each, -1 of an empty one."""
        return torch.tensor([p[-1] if p else -1 for p in prefixes], dtype=torch.long)

    def after(self, previous: Tensor, position: Tensor) -> Tensor:
        """Normalised ``[rows, V]`` after ``previous [rows]``, ids or -1 where there is none, at ``position [rows]``."""
        count(lm_forwards=1)
        with network():
            previous = previous.to(self.device)
            if self.log_table.dim() == 2:
                rows = self.log_table[previous.clamp_min(0)]
            else:
                if int(position.max()) >= len(self.log_table):
                    raise InputError(
                        f"{self.name} has a table for {len(self.log_table)} positions: lower max_new_tokens"
                    )
                rows = self.log_table[position.to(self.device), previous.clamp_min(0)]
            if self.log_initial is not None:
                rows = torch.where((previous < 0)[:, None], self.log_initial, rows)
            return rows


class MarkovDecoder:
    """Keeps the last token of each prefix, and its position: a chain knows nothing else."""

    hidden = None

    def __init__(self, lm: MarkovLM, previous: Tensor, position: Tensor) -> None:
        self.lm, self.position = lm, position
        self.logits = self.log_probs = lm.after(previous, position)

    @torch.no_grad()
    def extend(self, parents: Tensor, tokens: Tensor) -> MarkovDecoder:
        count(lm_tokens=len(tokens))
        return MarkovDecoder(self.lm, tokens.cpu(), self.position[parents.cpu()] + 1)

    def keep(self, rows: Tensor) -> bool:
        """Nothing is needed to take up a row again."""
        return True

    def rows_of(self, places: Sequence[Any], read: Sequence[Ids], length: int) -> MarkovDecoder:
        """Rows that have read these ids, the last ``length`` of which are text."""
        return MarkovDecoder(self.lm, self.lm.last(read), torch.full((len(read),), length))

    def joined(self, other: MarkovDecoder) -> MarkovDecoder:
        both = copy.copy(self)
        both.position = torch.cat([self.position, other.position])
        both.logits = both.log_probs = torch.cat([self.logits, other.logits])
        return both
