"""A text that a network decodes and scores in some way, and what it says of it on its own, without a cache.

Prompts are beginnings of the text, of several lengths, which are read together; their rows are swapped, repeated and
dropped while they go on. So one forward of the text, alone, answers for all of them, if the network says of a
beginning in it what it says of the beginning alone; that is tried first, with a twin that ends in another way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.lm.agreement import TOLERANCE, difference, rounding
from ppl_align.lm.base import Ids
from ppl_align.lm.network import call
from ppl_align.lm.plan import Plan
from ppl_align.lm.reading import read_texts, start
from ppl_align.lm.warp import log_normalise

if TYPE_CHECKING:
    from ppl_align.lm.causal import CausalLM

_STEPS = 2


class Trial:
    """``sizes``: how many tokens the prompts have.

    ``whole``        does a forward of a text say of its beginnings what forwards of these say?
    ``looks_ahead``  by how much what comes next depends on what comes later (nats)
    ``finite``       are there probabilities at all?
    ``tolerance``    nats a token: 1e-4 in float32; in half precision twice what rows change when others are read
                     with them, or when their logits are rounded once more
    """

    def __init__(self, lm: CausalLM, whole: bool, sizes: list[int]) -> None:
        self.lm = lm
        sizes = sorted({*sizes, max(2, *sizes)})
        self.text = self._text(sizes[-1] + _STEPS)
        self.prompts = [self.text[:size] for size in sizes]
        other = (self.text[sizes[-1]] + 1) % lm.vocab_size
        self.twin = (*self.prompts[-1], other)
        self.steps, self.decoded = self._moves(other)
        self.keep = _STEPS + 2
        read = self._forward(self.text, len(self.text))
        self.finite = not bool(read.isnan().any())
        self.tolerance = self._tolerance(read)
        twin = self._forward(self.twin, self.keep)
        at = sizes[-1] - 1  # both have read the longest prompt there, and differ in what comes next
        alike = difference(read[at : at + 1], twin[-2:-1]) <= self.tolerance
        self.whole = whole and alike
        self.looks_ahead = 0.0 if alike else self._looks_ahead(read, at)
        self.known = {self.twin: twin[-1], self.text: read[-1]}
        if self.whole:
            self.known |= {self.text[: i + 1]: log_p for i, log_p in enumerate(read)}

    def _text(self, size: int) -> Ids:
        """Any tokens, and the padding token among them: some networks leave out what looks like padding."""
        ids = torch.randint(self.lm.vocab_size, (size,), generator=torch.Generator().manual_seed(0)).tolist()
        pad = getattr(self.lm.model.config.get_text_config(), "pad_token_id", None)
        if isinstance(pad, int) and 0 <= pad < self.lm.vocab_size and size > _STEPS + 2:
            ids[1] = pad
        return tuple(ids)

    def _moves(self, other: int) -> tuple[list[tuple[list[int], list[int]]], list[list[Ids]]]:
        """``(parents, tokens)`` of each step, and the rows before and after each.

        All change places, and the longest is there twice, once as the twin; then that is dropped, and all change places
        again."""
        last = len(self.prompts) - 1
        rows, decoded = self.prompts, [self.prompts]
        steps: list[tuple[list[int], list[int]]] = []
        for parents in ([last, *range(last), last], list(range(last + 1, 0, -1))):
            tokens = [self.text[len(rows[parent])] for parent in parents]
            if not steps:
                tokens[0] = other
            rows = [(*rows[parent], token) for parent, token in zip(parents, tokens, strict=True)]
            steps.append((parents, tokens))
            decoded.append(rows)
        return steps, decoded

    def _forward(self, row: Ids, keep: int) -> Tensor:
        logits, _ = call(self.lm, torch.tensor([row], device=self.lm.device), keep)
        return log_normalise(logits[0])

    def _looks_ahead(self, whole: Tensor, at: int) -> float:
        """Two texts of one length that differ in their last token, before it."""
        other = (*self.text[:-1], (self.text[-1] + 1) % self.lm.vocab_size)
        return difference(whole[at : at + 1], self._forward(other, len(other))[at : at + 1])

    def _tolerance(self, whole: Tensor) -> float:
        dtype = next(self.lm.model.parameters()).dtype
        if dtype in (torch.float32, torch.float64):
            return TOLERANCE
        ids = torch.tensor([self.text, self.text, self.text], device=self.lm.device)
        logits, _ = call(self.lm, ids, len(self.text))
        return max(TOLERANCE, 2 * difference(log_normalise(logits[0]), whole), 2 * rounding(logits))

    def _alone(self, row: Ids) -> Tensor:
        """``[V]``: what the network says comes after a row."""
        if row not in self.known:
            self.known[row] = self._forward(row, 1)[-1]
        return self.known[row]

    def unsteady(self) -> float:
        """By how much the text read at once differs from its beginnings read one by one, nats a token."""
        each = torch.stack([self._forward(self.text[: i + 1], 1)[-1] for i in range(len(self.text))])
        return difference(self._forward(self.text, len(self.text)), each)

    def error(self, plan: Plan) -> float:
        """The largest difference, nats a token: NaN, which is no agreement, where something is NaN."""
        decoder = start(self.lm, plan, self.prompts)
        found = [decoder.log_probs]
        for parents, tokens in self.steps:
            decoder = decoder.extend(torch.tensor(parents), torch.tensor(tokens))
            found.append(decoder.log_probs)
        rows = [row for step in self.decoded for row in step]
        decoding = difference(torch.cat(found), torch.stack([self._alone(row) for row in rows]))
        return _worst(decoding, self._scoring(plan))

    def _scoring(self, plan: Plan) -> float:
        """Parts of the text after beginnings of two lengths, one of them twice."""
        size = len(self.text)
        # after one and nearly all of a window; a short text is cheaper to read in one go
        cuts = [(1, 3)] if size <= 6 else [(1, 2), (size - 4, size - 3)] if self.whole else [(size - 4, size - 3)]
        errors = [self._scored(plan, first, min(second, size - 1)) for first, second in cuts]
        return _worst(*errors)

    def _scored(self, plan: Plan, first: int, second: int) -> float:
        width = len(self.text) - second
        prompts = [self.text[:cut] for cut in (first, second, first)]
        tokens = torch.tensor([self.text[len(p) : len(p) + width] for p in prompts], device=self.lm.device)
        logits, _ = read_texts(self.lm, plan, prompts, tokens)
        beginnings = [self.text[: len(p) + t] for p in prompts for t in range(width)]
        expected = torch.stack([self._alone(row) for row in beginnings])
        return difference(log_normalise(logits).flatten(0, 1), expected)


def _worst(*errors: float) -> float:
    return max(errors, key=lambda error: (error != error, error))
