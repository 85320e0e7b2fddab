"""A network with its cache, which follows the rows: they branch, move and are dropped, and are never read again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ppl_align.core.cost import count
from ppl_align.lm.base import Ids, WithLogits, alike
from ppl_align.lm.kept import Kept, prefix_of, same_prefix
from ppl_align.lm.kv_cache import Moves, Prefix, as_prefix, keeps_tokens, new_cache, select_rows
from ppl_align.lm.network import call, start_afresh
from ppl_align.lm.shared_attention import attending, configs_of
from ppl_align.lm.transfer import upload

if TYPE_CHECKING:
    from ppl_align.lm.causal import CausalLM


class CausalDecoder(WithLogits):
    """Rows of a KV cache. Rows are moved only when they branch or when some are dropped.

    ``padded``: rows of different lengths stand in one cache, filled up on the left and masked; else all prompts are of
    one length, and the network is told of neither a mask nor positions. ``prefix``: what all rows begin with, held once
    and left of what is filled up."""

    hidden: Tensor

    def __init__(self, lm: CausalLM, lengths: Tensor, padded: bool = True, prefix: Prefix | None = None) -> None:
        """Rows of these lengths [m], of which nothing has been read yet but the prefix."""
        self.lm, self.padded, self.lengths = lm, padded, lengths.to(lm.device)
        self._begin_with(prefix)
        self.mask: Tensor | None = None
        width = int(lengths.max())
        if int(lengths.min()) < width:
            at = torch.arange(width, device=lengths.device)
            read = (at < self.shared) | (at >= (width - lengths + self.shared)[:, None])
            self.mask = read.long().to(lm.device)

    def _begin_with(self, prefix: Prefix | None) -> None:
        self.prefix, self.shared = prefix, 0 if prefix is None else prefix.length
        self.cache = new_cache(self.lm.model.config, prefix)
        self._configs = [] if prefix is None else configs_of(self.lm.model)

    @classmethod
    def after(cls, lm: CausalLM, prompts: Sequence[Ids], padded: bool = True, shared: int = 0) -> CausalDecoder:
        """A decoder whose row i stands after ``prompts[i]``; the ``shared`` ids that all of them begin with are read
        and held once."""
        prefix = None
        if shared:
            first = cls.after(lm, [prompts[0][:shared]])
            first._begin_with(as_prefix(first.cache))
            if len(prompts) == 1 and shared == len(prompts[0]):
                return first
            prefix = first.prefix
        lengths = torch.tensor([len(p) for p in prompts])
        width, decoder = int(lengths.max()), cls(lm, lengths, padded, prefix)
        ids = torch.tensor([(0,) * (width - len(p)) + tuple(p[shared:]) for p in prompts]).to(lm.device)
        positions = torch.arange(shared, width) - (width - lengths)[:, None]
        found = decoder.forward(ids, positions.clamp_min(0).to(lm.device), keep=1)
        count(prompt_tokens=int(lengths.sum()) - shared * len(prompts), lm_forwards=1)
        decoder._show(*found)
        return decoder

    def keep(self, rows: Tensor) -> Kept | None:
        """A copy of these rows; None where the cache holds something else than keys and values of every token."""
        if not self.padded or not keeps_tokens(self.cache):
            return None
        at = rows.to(self.lm.device)
        lengths = self.lengths[at].tolist()
        longest = max(lengths) - self.shared
        layers: Any = self.cache.layers

        def cut(layer: Any) -> tuple[Tensor, Tensor]:
            keys, values = (
                part.index_select(0, at)[:, :, part.shape[2] - longest :] for part in layer.held(len(self.lengths))
            )
            return keys, values

        return Kept([cut(layer) for layer in layers], lengths, self.prefix)

    @classmethod
    @torch.no_grad()
    def resumed(
        cls,
        lm: CausalLM,
        places: Sequence[tuple[Kept, int]],
        prompts: Sequence[Ids],
        known: Sequence[int],
        shared: int = 0,
    ) -> CausalDecoder:
        """A decoder after ``prompts``, of which the first ``known`` ids of each are kept in ``places`` (which, row).

        What the rows held once is held once again; else the first ``shared`` of the known ids, the same in all.
        Rows with equally many ids to come are read together; pads stay on the left, as in any cache of ours."""
        prefix = same_prefix(places)
        if prefix is None or prefix.length > min(known):
            prefix = prefix_of(places, shared) if shared else None
        parts, order = [], []
        for rows in alike(len(prompt) - n for n, prompt in zip(known, prompts, strict=True)).values():
            part = cls._with_rows(lm, [places[i] for i in rows], [known[i] for i in rows], prefix)
            ids = torch.tensor([prompts[i][known[i] :] for i in rows], device=lm.device)
            part._show(*part.read(ids))
            count(prompt_tokens=ids.numel(), lm_forwards=1)
            parts.append(part)
            order += rows
        whole = parts[0] if len(parts) == 1 else cls._joined(lm, parts)
        if order != sorted(order):
            back = torch.tensor(order).argsort()
            whole.select(back)
            there = upload(back, lm.device)
            whole.logits, whole.hidden = whole.logits[there], whole.hidden[there]
        return whole

    @torch.no_grad()
    def rows_of(self, places: Sequence[tuple[Kept, int]], read: Sequence[Ids], length: int) -> CausalDecoder:
        """Rows that have read these ids, of which nobody asks what comes next before they have read on: they are there
        already, in ``places``."""
        decoder = self._with_rows(self.lm, places, [len(ids) for ids in read], self.prefix)
        decoder.logits = self.logits.new_zeros(len(read), self.logits.shape[-1])
        decoder.hidden = self.hidden.new_zeros(len(read), self.hidden.shape[-1])
        return decoder

    @classmethod
    def _with_rows(
        cls, lm: CausalLM, places: Sequence[tuple[Kept, int]], known: Sequence[int], prefix: Prefix | None
    ) -> CausalDecoder:
        decoder = cls(lm, torch.tensor(known), prefix=prefix)
        shared, width = decoder.shared, max(known)

        def row(layer: int, which: int, kept: Kept, at: int, n: int) -> Tensor:
            return functional.pad(kept.tokens(layer, which, at, shared, n), (0, 0, width - n, 0))

        for layer in range(len(places[0][0].layers)):
            keys, values = (
                torch.stack([row(layer, which, *place, n) for place, n in zip(places, known, strict=True)])
                for which in (0, 1)
            )
            decoder.cache.update(keys, values, layer)
        return decoder

    @classmethod
    def _joined(cls, lm: CausalLM, parts: Sequence[CausalDecoder]) -> CausalDecoder:
        decoder = cls(lm, torch.cat([part.lengths for part in parts]), prefix=parts[0].prefix)
        width = int(decoder.lengths.max()) - decoder.shared
        caches: Any = [part.cache.layers for part in parts]

        def wide(part: Tensor) -> Tensor:
            return functional.pad(part, (0, 0, width - part.shape[2], 0))  # or, where it is too wide, its end

        for layer in range(len(caches[0])):
            keys = torch.cat([wide(cache[layer].keys) for cache in caches])
            values = torch.cat([wide(cache[layer].values) for cache in caches])
            decoder.cache.update(keys, values, layer)
        decoder.logits = torch.cat([part.logits for part in parts])
        decoder.hidden = torch.cat([part.hidden for part in parts])
        return decoder

    def joined(self, other: CausalDecoder) -> CausalDecoder | None:
        """The rows of both, which have read equally much of the same prompts; None if they cannot be put together."""
        plain = all(part.padded and keeps_tokens(part.cache) for part in (self, other))
        return self._joined(self.lm, [self, other]) if plain and self.shared == other.shared else None

    def forward(self, ids: Tensor, positions: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        if not self.padded:
            return call(self.lm, ids, keep, past_key_values=self.cache, use_cache=True)
        start_afresh(self.lm.model)
        with attending(self._configs) if self._configs else nullcontext():
            return self.lm.forward(ids, self.cache, self.mask, positions, keep)

    def _show(self, logits: Tensor, hidden: Tensor) -> None:
        self.logits = logits[:, -1].float()
        self.hidden = hidden[:, -1]

    def select(self, rows: Tensor) -> None:
        """Keep these rows (their numbers, on the host), in this order."""
        moves = Moves.of(rows, self.lm.device)
        select_rows(self.cache, moves)
        self.lengths = self.lengths[moves.rows]
        self.mask = None if self.mask is None else self.mask[moves.rows]

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
            self.select(parents)
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


def read_texts(
    lm: CausalLM, prompts: Sequence[Ids], tokens: Tensor, padded: bool, shared: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits and hidden states that predict each of ``tokens [B, T]``: ``([B, T, V], [B, T, d])``.

    A prompt of several texts is read once; its cache is repeated, but for the ``shared`` ids that all begin with."""
    distinct: dict[Ids, int] = {}
    where = torch.tensor([distinct.setdefault(tuple(p), len(distinct)) for p in prompts])
    decoder = CausalDecoder.after(lm, list(distinct), padded, shared)
    there = upload(where, lm.device)
    first, hidden = decoder.logits[there, None], decoder.hidden[there, None]
    count(scored_tokens=tokens.numel())
    if tokens.shape[1] == 1:
        return first, hidden
    decoder.select(where)
    logits, states = decoder.read(tokens[:, :-1])
    count(lm_forwards=1)
    return torch.cat([first.to(logits.dtype), logits], 1), torch.cat([hidden, states], 1)
