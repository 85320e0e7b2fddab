"""What a completion site returns: token ids, and the text they spell."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_align.core.text import Texts
from ppl_align.lm.base import alike

if TYPE_CHECKING:
    from ppl_align.lm.distribution import CompletionDistribution


def sequence_lengths(tokens: Tensor, terminal: Sequence[int]) -> Tensor:
    """Tokens that belong to each sequence, its terminal token included: ``[..., T] -> [...]`` int64.

    >>> sequence_lengths(torch.tensor([[5, 2, 2], [5, 6, 7]]), (2,)).tolist()
    [2, 3]
    """
    from ppl_align.lm.stopping import sequence_ends

    width = tokens.shape[-1]
    if width == 0 or not (len(terminal) or getattr(terminal, "text", None)):
        return torch.full(tokens.shape[:-1], width, dtype=torch.long, device=tokens.device)
    return ((~sequence_ends(tokens, terminal)).sum(-1) + 1).clamp_max(width)


class Completion:
    """A batch of completions, or one.

    ``tokens``   [..., T] ids, padded after the terminal token
    ``lengths``  [...]    tokens that belong, terminal token included
    ``text``     :class:`Texts` of shape [...], or a plain ``str`` when there is no batch
    ``prompt``   the prompts' text, same shape
    ``ids``      the tokens of each element without EOS and padding: a flat list of tuples
    ``site``     the name it has in its program, if it comes from one
    ``beginning``  these tokens are how it begins; whatever follows is summed out (``completion(..., starts_with=)``)
    """

    def __init__(
        self,
        tokens: Tensor,
        source: CompletionDistribution | None = None,
        *,
        text: Texts | None = None,
        prompt: Texts | None = None,
        terminal: Sequence[int] = (),
        site: str | None = None,
        beginning: bool = False,
    ) -> None:
        self.tokens = tokens
        self.source = source
        self.site = site
        self.beginning = beginning
        self._given = {"text": text, "prompt": prompt}
        self._terminal = source.terminal if source is not None else terminal

    @property
    def lm(self) -> Any:
        return None if self.source is None else self.source.lm

    @property
    def shape(self) -> torch.Size:
        return self.tokens.shape[:-1]

    @cached_property
    def lengths(self) -> Tensor:
        return sequence_lengths(self.tokens, self._terminal)

    @cached_property
    def ids(self) -> list[tuple[int, ...]]:
        rows = self.tokens.reshape(-1, self.tokens.shape[-1]).tolist()
        eos = () if self.lm is None else self.lm.eos_ids
        kept = [tuple(row[:n]) for row, n in zip(rows, self.lengths.reshape(-1).tolist(), strict=True)]
        return [row[:-1] if row and row[-1] in eos else row for row in kept]

    @property
    def _spoken(self) -> list[tuple[int, ...]]:
        """``ids`` without a special token that ends the text as a stop token."""
        silent = set(self.lm.special_tokens) & set(self._terminal) if self.lm is not None else ()
        return [row[:-1] if silent and row and row[-1] in silent else row for row in self.ids]

    def _texts(self, which: str) -> Texts | str:
        texts = self._given[which]
        if texts is None:
            if self.source is None:
                raise ValueError(f"this completion carries no {which}")
            lm = self.source.lm
            if which == "text":
                found = _continued(self.source.expand(self.shape), self._spoken)
            else:  # distinct prompts are decoded once
                distinct = lm.decode_batch(self.source.prompts)
                found = [distinct[i] for i in self.source.index.expand(self.shape).reshape(-1).tolist()]
            texts = self._given[which] = Texts(found, self.shape)
        return texts if self.shape else texts.flat[0]

    @property
    def text(self) -> Any:
        return self._texts("text")

    @property
    def prompt(self) -> Any:
        return self._texts("prompt")

    def texts(self, which: str = "text") -> list[str]:
        """The batch as a flat list of plain strings."""
        texts = self._texts(which)
        return [texts] if isinstance(texts, str) else texts.flat

    def prompt_texts(self) -> list[str]:
        """Prompts of all elements, flat; empty where they are not known."""
        return self.texts("prompt") if self._given["prompt"] is not None or self.source is not None else []

    def reshape(self, *shape: int) -> Completion:
        """The same completions with another batch shape."""
        text, prompt = (None if texts is None else texts.reshape(*shape) for texts in self._given.values())
        source = None if self.source is None else self.source.reshaped(shape)
        tokens = self.tokens.reshape(*shape, self.tokens.shape[-1])
        return Completion(
            tokens,
            source,
            text=text,
            prompt=prompt,
            terminal=self._terminal,
            site=self.site,
            beginning=self.beginning,
        )

    def __repr__(self) -> str:
        first = self.texts()[0] if self.tokens.numel() or self._given["text"] is not None else ""
        shown = first if len(first) <= 60 else first[:57] + "..."
        return f'Completion({len(self.lengths.reshape(-1))} particles, "{shown}")'


def _continued(source: CompletionDistribution, rows: list[tuple[int, ...]]) -> list[str]:
    """What each row adds to the text of its prompt."""
    texts = [""] * len(rows)
    for prompt, where in alike(source.index.reshape(-1).tolist()).items():
        found = source.lm.continue_text(source.prompts[prompt], [rows[at] for at in where])
        for at, text in zip(where, found, strict=True):
            texts[at] = text
    return texts


def tensor_of(value: Completion | Tensor) -> Tensor:
    """The tensor of a latent's value: the tokens of a completion, anything else as it is."""
    return value.tokens if isinstance(value, Completion) else value
