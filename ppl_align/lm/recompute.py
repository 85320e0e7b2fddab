"""A network without its cache: every text is read from its beginning at every step. Slow, and right.

Rows of one length are one batch, so nothing is padded and no network needs to know of positions or masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.core.cost import count
from ppl_align.lm.base import SCORING_ELEMENTS, Ids, WithLogits, alike
from ppl_align.lm.network import call, keeps_few
from ppl_align.lm.transfer import upload

if TYPE_CHECKING:
    from ppl_align.lm.causal import CausalLM


def read(lm: CausalLM, rows: Sequence[Ids], keep: int = 1) -> tuple[Tensor, Tensor]:
    """What comes next at the last ``keep`` places of each row: ``(logits [m, keep, V], hidden [m, keep, d])``."""
    logits: list[Tensor] = []
    hidden: list[Tensor] = []
    order: list[int] = []
    for length, members in alike(map(len, rows)).items():
        size = max(1, SCORING_ELEMENTS // ((keep if keeps_few(lm) else length) * lm.vocab_size))
        for first in range(0, len(members), size):
            chunk = members[first : first + size]
            found = call(lm, upload([rows[i] for i in chunk], lm.device), keep)
            count(lm_forwards=1)
            logits.append(found[0])
            hidden.append(found[1])
            order += chunk
    if order == list(range(len(rows))) and len(logits) == 1:
        return logits[0], hidden[0]
    back = upload(torch.tensor(order).argsort(), lm.device)
    return torch.cat(logits)[back], torch.cat(hidden)[back]


class RecomputeDecoder(WithLogits):
    """The rows themselves, and what the network says after each."""

    def __init__(self, lm: CausalLM, rows: Sequence[Ids], new: int = 0) -> None:
        """``new``: how many of the tokens in ``rows`` have just been written (the others are read once more)."""
        self.lm = lm
        self.rows = [tuple(row) for row in rows]
        count(lm_tokens=new, prompt_tokens=sum(map(len, self.rows)) - new)
        logits, hidden = read(self.lm, self.rows)
        self.logits, self.hidden = logits[:, -1].float(), hidden[:, -1]

    @torch.no_grad()
    def extend(self, parents: Tensor, tokens: Tensor) -> RecomputeDecoder:
        rows = continued(self.rows, parents, tokens)
        return RecomputeDecoder(self.lm, rows, new=len(rows))


def continued(rows: Sequence[Ids], parents: Tensor, tokens: Tensor) -> list[Ids]:
    """Row i of the result is row ``parents[i]`` and then ``tokens[i]``."""
    return [(*rows[parent], token) for parent, token in zip(parents.tolist(), tokens.tolist(), strict=True)]


def read_texts(lm: CausalLM, prompts: Sequence[Ids], tokens: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """Logits and hidden states that predict each of ``tokens [B, T]``: ``([B, T, V], [B, T, d])``.

    ``whole``: one forward of a text says it of all of its beginnings; else each beginning is read on its own."""
    count(scored_tokens=tokens.numel(), prompt_tokens=sum(map(len, prompts)))
    width, written = tokens.shape[1], tokens.tolist()
    if whole:
        return read(lm, [(*p, *row[:-1]) for p, row in zip(prompts, written, strict=True)], keep=width)
    places = [read(lm, [(*p, *row[:t]) for p, row in zip(prompts, written, strict=True)]) for t in range(width)]
    return torch.cat([logits for logits, _ in places], 1), torch.cat([hidden for _, hidden in places], 1)
