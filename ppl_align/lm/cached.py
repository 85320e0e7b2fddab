"""A network with its cache, which follows the rows: they branch, move and are dropped, and are never read again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ppl_align.core.cost import count
from ppl_align.lm.base import Ids, WithLogits, alike
from ppl_align.lm.network import call, start_afresh
from ppl_align.lm.transfer import upload

if TYPE_CHECKING:
    from ppl_align.lm.causal import CausalLM


class Kept(NamedTuple):
    """Rows that have been taken out of a cache: keys and values ``[rows, heads, width, d]`` of each layer, padded on
    the left; ``lengths``: tokens of each row."""

    layers: list[tuple[Tensor, Tensor]]
    lengths: list[int]

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for layer in self.layers for part in layer)


class CausalDecoder(WithLogits):
    """Rows of a KV cache. Rows are moved only when they branch or when some are dropped.

    ``padded``: rows of different lengths stand in one cache, filled up on the left and masked; else all prompts are of
    one length, and the network is told of neither a mask nor positions."""

    hidden: Tensor

    def __init__(self, lm: CausalLM, lengths: Tensor, padded: bool = True) -> None:
        """Rows of these lengths [m], of which nothing has been read yet."""
        self.lm, self.padded, self.lengths = lm, padded, lengths.to(lm.device)
        self.cache = DynamicCache(config=lm.model.config)
        self.mask: Tensor | None = None
        width = int(lengths.max())
        if int(lengths.min()) < width:
            at = torch.arange(width, device=lengths.device)
            self.mask = (at >= (width - lengths)[:, None]).long().to(lm.device)

    @classmethod
    def after(cls, lm: CausalLM, prompts: Sequence[Ids], padded: bool = True) -> CausalDecoder:
        """A decoder whose row i stands after ``prompts[i]``."""
        lengths = torch.tensor([len(p) for p in prompts])
        width, decoder = int(lengths.max()), cls(lm, lengths, padded)
        ids = torch.tensor([(0,) * (width - len(p)) + tuple(p) for p in prompts]).to(lm.device)
        positions = torch.arange(width) - (width - lengths)[:, None]
        found = decoder.forward(ids, positions.clamp_min(0).to(lm.device), keep=1)
        count(prompt_tokens=int(lengths.sum()), lm_forwards=1)
        decoder._show(*found)
        return decoder

    def keep(self, rows: Tensor) -> Kept | None:
        """A copy of these rows; None where the cache holds something else than keys and values of every token."""
        if not self.padded or any(type(layer) is not DynamicLayer for layer in self.cache.layers):
            return None
        at = rows.to(self.lm.device)
        lengths = self.lengths[at].tolist()
        layers: Any = self.cache.layers

        def cut(part: Tensor) -> Tensor:
            return part.index_select(0, at)[:, :, -max(lengths) :]

        return Kept([(cut(layer.keys), cut(layer.values)) for layer in layers], lengths)

    @classmethod
    @torch.no_grad()
    def resumed(
        cls, lm: CausalLM, places: Sequence[tuple[Kept, int]], prompts: Sequence[Ids], known: Sequence[int]
    ) -> CausalDecoder:
        """A decoder after ``prompts``, of which the first ``known`` ids of each are kept in ``places`` (which, row).

        Rows with equally many ids to come are read together; pads stay on the left, as in any cache of ours."""
        known = [min(n, len(prompt) - 1) for n, prompt in zip(known, prompts, strict=True)]  # something is read
        parts, order = [], []
        for rows in alike(len(prompt) - n for n, prompt in zip(known, prompts, strict=True)).values():
            part = cls._with_rows(lm, [places[i] for i in rows], [known[i] for i in rows])
            ids = torch.tensor([prompts[i][known[i] :] for i in rows], device=lm.device)
            part._show(*part.read(ids))
            count(prompt_tokens=ids.numel(), lm_forwards=1)
            parts.append(part)
            order += rows
        whole = parts[0] if len(parts) == 1 else cls._joined(lm, parts)
        if order != sorted(order):
            back = torch.tensor(order).argsort().to(lm.device)
            whole.select(back)
            whole.logits, whole.hidden = whole.logits[back], whole.hidden[back]
        return whole

    @classmethod
    def _with_rows(cls, lm: CausalLM, places: Sequence[tuple[Kept, int]], known: Sequence[int]) -> CausalDecoder:
        width = max(known)
        decoder = cls(lm, torch.tensor(known))

        def row(layer: int, which: int, kept: Kept, at: int, n: int) -> Tensor:
            part = kept.layers[layer][which][at]
            end = part.shape[1] - (kept.lengths[at] - n)
            return functional.pad(part[:, end - n : end], (0, 0, width - n, 0))

        for layer in range(len(places[0][0].layers)):
            keys, values = (
                torch.stack([row(layer, which, *place, n) for place, n in zip(places, known, strict=True)])
                for which in (0, 1)
            )
            decoder.cache.update(keys, values, layer)
        return decoder

    @classmethod
    def _joined(cls, lm: CausalLM, parts: Sequence[CausalDecoder]) -> CausalDecoder:
        decoder = cls(lm, torch.cat([part.lengths for part in parts]))
        width = int(decoder.lengths.max())
        caches: Any = [part.cache.layers for part in parts]

        def wide(part: Tensor) -> Tensor:
            return functional.pad(part, (0, 0, width - part.shape[2], 0)) if part.shape[2] < width else part

        for layer in range(len(caches[0])):
            keys = torch.cat([wide(cache[layer].keys[:, :, -width:]) for cache in caches])
            values = torch.cat([wide(cache[layer].values[:, :, -width:]) for cache in caches])
            decoder.cache.update(keys, values, layer)
        decoder.logits = torch.cat([part.logits for part in parts])
        decoder.hidden = torch.cat([part.hidden for part in parts])
        return decoder

    def forward(self, ids: Tensor, positions: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        if not self.padded:
            return call(self.lm, ids, keep, past_key_values=self.cache, use_cache=True)
        start_afresh(self.lm.model)
        return self.lm.forward(ids, self.cache, self.mask, positions, keep)

    def _show(self, logits: Tensor, hidden: Tensor) -> None:
        self.logits = logits[:, -1].float()
        self.hidden = hidden[:, -1]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        select_rows(self.cache, rows)
        self.lengths = self.lengths[rows]
        self.mask = None if self.mask is None else self.mask[rows]

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Every row goes on with its ``tokens [m, t]``: ``(logits [m, t, V], hidden [m, t, d])`` after each."""
        width = tokens.shape[1]
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), width)], -1)
        positions = self.lengths[:, None] + torch.arange(width, device=self.lengths.device)
        found = self.forward(tokens, positions, keep=width)
        self.lengths = self.lengths + width
        return found

    @torch.no_grad()
    def extend(self, parents: Tensor, tokens: Tensor) -> CausalDecoder:
        rows = self.logits.shape[0]
        tokens = tokens.to(self.lm.device, non_blocking=True)
        if len(parents) != rows or not torch.equal(parents, torch.arange(rows)):
            self.select(parents.to(self.lm.device, non_blocking=True))
        found = self.read(tokens[:, None])
        count(lm_tokens=len(tokens), lm_forwards=1)
        self._show(*found)
        return self


class ByLengthDecoder(WithLogits):
    """A cache for the rows of each length of prompt, for networks that a padded cache misleads."""

    def __init__(self, lm: CausalLM, prompts: Sequence[Ids]) -> None:
        groups = list(alike(map(len, prompts)).values())
        self.lm = lm
        self.caches = [CausalDecoder.after(lm, [prompts[i] for i in rows], padded=False) for rows in groups]
        self._place(groups)

    def _place(self, rows: list[list[int]]) -> None:
        """``rows``: which rows, by number, stand in each of the caches."""
        self.at = {row: (cache, i) for cache, here in enumerate(rows) for i, row in enumerate(here)}
        back = upload(torch.tensor([row for here in rows for row in here]).argsort(), self.lm.device)
        self.logits = torch.cat([cache.logits for cache in self.caches])[back]
        self.hidden = torch.cat([cache.hidden for cache in self.caches])[back]

    @torch.no_grad()
    def extend(self, parents: Tensor, tokens: Tensor) -> ByLengthDecoder:
        come_from = [self.at[parent] for parent in parents.tolist()]
        kept: list[CausalDecoder] = []
        placed: list[list[int]] = []
        for number, cache in enumerate(self.caches):
            rows = [i for i, (of, _) in enumerate(come_from) if of == number]
            if rows:
                kept.append(cache.extend(torch.tensor([come_from[i][1] for i in rows]), tokens[rows]))
                placed.append(rows)
        self.caches = kept
        self._place(placed)
        return self


def read_texts(lm: CausalLM, prompts: Sequence[Ids], tokens: Tensor, padded: bool) -> tuple[Tensor, Tensor]:
    """Logits and hidden states that predict each of ``tokens [B, T]``: ``([B, T, V], [B, T, d])``.

    A shared prompt is read once and its cache repeated."""
    distinct: dict[Ids, int] = {}
    where = torch.tensor([distinct.setdefault(tuple(p), len(distinct)) for p in prompts]).to(lm.device)
    decoder = CausalDecoder.after(lm, list(distinct), padded)
    first, hidden = decoder.logits[where, None], decoder.hidden[where, None]
    count(scored_tokens=tokens.numel())
    if tokens.shape[1] == 1:
        return first, hidden
    decoder.select(where)
    logits, states = decoder.read(tokens[:, :-1])
    count(lm_forwards=1)
    return torch.cat([first.to(logits.dtype), logits], 1), torch.cat([hidden, states], 1)


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep these rows of a cache, in this order (``index_select``: a quarter of the time of indexing).

    Layers of other kinds know best what a row of theirs is: recurrent and convolutional states move with it."""
    layer: Any
    for layer in cache.layers:
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            layer.keys, layer.values = layer.keys.index_select(0, rows), layer.values.index_select(0, rows)
        else:
            layer.reorder_cache(rows)  # batch_select_indices knows of keys and values alone
