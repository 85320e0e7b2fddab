"""Rows that have been taken out of a cache, for texts that go on from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_align.lm.kv_cache import Prefix, Shared


class Kept(NamedTuple):
    """``layers``: keys and values ``[rows, heads, width, d]`` of each, padded on the left, after the ``prefix`` of all
    rows, if they have one; ``lengths``: tokens of each row, all of them."""

    layers: list[tuple[Tensor, Tensor]]
    lengths: list[int]
    prefix: Prefix | None = None

    @property
    def bytes(self) -> int:
        """Without the prefix, which may be that of others, too."""
        return sum(part.numel() * part.element_size() for layer in self.layers for part in layer)

    def take(self, rows: Sequence[int]) -> Kept:
        """Copies of these rows."""
        at = torch.tensor(rows, device=self.layers[0][0].device)
        layers = [(keys.index_select(0, at), values.index_select(0, at)) for keys, values in self.layers]
        return Kept(layers, [self.lengths[row] for row in rows], self.prefix)

    def tokens(self, layer: int, which: int, row: int, first: int, last: int) -> Tensor:
        """Keys (``which`` = 0) or values (1) of tokens ``first`` to ``last`` of a row, ``[heads, last - first, d]``."""
        own = self.layers[layer][which][row]
        before = 0 if self.prefix is None else self.prefix.length
        begin = own.shape[1] - self.lengths[row]  # where its first token would stand; the prefix stands elsewhere
        after = own[:, begin + max(first, before) : begin + last] if last > before else own[:, :0]
        if self.prefix is None or first >= before:
            return after
        return torch.cat([self.prefix.layers[layer][which][:, first : min(last, before)], after], 1)


def prefix_of(places: Sequence[tuple[Kept, int]], length: int) -> Prefix:
    """The first ``length`` tokens of rows that all begin with them."""
    kept, row = places[0]

    def part(layer: int, which: int) -> Tensor:
        return kept.tokens(layer, which, row, 0, length).clone()  # and not all rows that it lies among

    return Prefix([Shared(part(layer, 0), part(layer, 1)) for layer in range(len(kept.layers))])


def same_prefix(places: Sequence[tuple[Kept, int]]) -> Prefix | None:
    """The prefix that rows have in common already."""
    first = places[0][0].prefix
    return first if all(kept.prefix is first for kept, _ in places) else None
