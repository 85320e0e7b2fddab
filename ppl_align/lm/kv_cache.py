"""Keys and values of rows that grow together: written in place, in blocks of tokens; only rows that move are moved.

Transformers' own layer is concatenated anew for every token, which by 250 tokens takes more time than all of the
network's matrices. Here memory is taken for a block of tokens at once, and the network is shown a view of what is
written. Layers that keep something else (windows, recurrent states, what several layers share) stay as they are.

What all rows begin with can be held once, as a :class:`Prefix`. The network is shown the rows' own part then, which
carries the other (``keys.shared``) to where it is attended to (:mod:`ppl_align.lm.shared_attention`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ppl_align.lm.transfer import upload

SHORT = 48
"""Tokens up to which keys are concatenated after all: what was just copied lies in the processor's cache when it is
attended to, which is worth the copy (benchmarks/floor.py)."""
BLOCK = 16
"""Tokens for which memory is taken at once; of long texts an eighth of what is there, so that copies stay rare."""


class Shared(NamedTuple):
    """What all rows begin with, in one layer: ``keys``, ``values`` [heads, S, d]."""

    keys: Tensor
    values: Tensor


class Prefix(NamedTuple):
    """What all rows begin with, ``length`` (S) tokens, in each layer."""

    layers: list[Shared]

    @property
    def length(self) -> int:
        return self.layers[0].keys.shape[1]

    @property
    def bytes(self) -> int:
        return sum(held_bytes(part) for layer in self.layers for part in layer)


class Moves(NamedTuple):
    """Row i becomes a copy of row ``rows[i]`` [m]. All but rows ``to`` [k] are there already, and those come from
    rows ``source`` [k]."""

    rows: Tensor
    to: Tensor
    source: Tensor

    @classmethod
    def of(cls, rows: Tensor, device: torch.device) -> Moves:
        """``rows`` is on the host; nobody waits for the device."""
        to = (rows != torch.arange(len(rows))).nonzero()[:, 0]
        return cls(upload(rows, device), upload(to, device), upload(rows[to], device))

    def on(self, device: torch.device) -> Moves:
        """For a layer that is elsewhere, of a network that is spread over devices."""
        return self if self.rows.device == device else Moves(*(part.to(device) for part in self))


class _Growing:
    """Keys, or values: ``shown`` [rows, heads, n, d] is a view of ``memory``, which has room for more of each."""

    memory: Tensor | None = None
    shown: Tensor | None = None

    def append(self, held: Tensor, new: Tensor) -> Tensor:
        """``held`` [rows, heads, n, d] and after it ``new`` [rows, heads, t, d]."""
        rows, n = held.shape[0], held.shape[2]
        length = n + new.shape[2]
        memory = self._memory_of(held)
        if memory is None and length <= SHORT:
            return torch.cat([held, new], 2)
        if memory is None or length > memory.shape[2]:
            memory = self._larger(held, new, -(-(length + length // 8) // BLOCK) * BLOCK)
        memory[:rows, :, n:length] = new
        return self._show(memory, rows, length)

    def move(self, held: Tensor, moves: Moves) -> Tensor:
        """``held`` with its rows moved."""
        size, n = len(moves.rows), held.shape[2]
        memory = self._memory_of(held)
        if memory is None or torch.is_grad_enabled():
            return held.index_select(0, moves.rows)
        if size > memory.shape[0]:
            return self._show(memory.index_select(0, moves.rows), size, n)
        if len(moves.to):
            written = memory[:, :, :n]
            written.index_copy_(0, moves.to, written.index_select(0, moves.source))
        return self._show(memory, size, n)

    def _memory_of(self, held: Tensor) -> Tensor | None:
        """None where ``held`` is no longer what was shown: somebody else has changed the layer."""
        if held is not self.shown:
            self.memory = self.shown = None
        return self.memory

    def _larger(self, held: Tensor, new: Tensor, room: int) -> Tensor:
        """As many rows as there were, which may be wanted again, unless most of them are gone."""
        rows = held.shape[0]
        before = self._memory_of(held)
        room_for = rows if before is None or before.shape[0] > 2 * rows else before.shape[0]
        memory = new.new_empty(room_for, new.shape[1], room, new.shape[3])
        memory[:rows, :, : held.shape[2]] = held
        return memory

    def _show(self, memory: Tensor, rows: int, length: int) -> Tensor:
        self.memory, self.shown = memory, memory[:rows, :, :length]
        return self.shown


class BlockLayer(DynamicLayer):
    """As a ``DynamicLayer``: ``keys``, ``values`` [rows, heads, n, d] of all n tokens, or of those after what is
    ``shared``. Where gradients are taken, which need what was read as it was, they are concatenated as there."""

    def __init__(self, shared: Shared | None = None) -> None:
        super().__init__()
        self.shared = shared
        self._keys, self._values = _Growing(), _Growing()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.keys, self.values
        assert keys is not None
        assert values is not None
        if torch.is_grad_enabled():
            super().update(key_states, value_states)
        else:
            self.keys = self._keys.append(keys, key_states)
            self.values = self._values.append(values, value_states)
        found: Any = self.keys, self.values
        if self.shared is not None:
            found[0].shared = self.shared
        return found

    def get_seq_length(self) -> int:
        """All tokens, what is shared included: so many places a mask has."""
        return super().get_seq_length() + (0 if self.shared is None else self.shared.keys.shape[1])

    def held(self, rows: int) -> tuple[Tensor, Tensor]:
        """``keys``, ``values``; before anything of these rows is read, what is shared tells their shape."""
        if self.keys is not None and self.values is not None:
            return self.keys, self.values
        assert self.shared is not None
        keys, values = (part.new_empty(rows, part.shape[0], 0, part.shape[2]) for part in self.shared)
        return keys, values

    def move(self, moves: Moves) -> None:
        """Rows become copies of others."""
        if self.keys is None or self.values is None:
            return
        moves = moves.on(self.device)
        self.keys, self.values = self._keys.move(self.keys, moves), self._values.move(self.values, moves)


def new_cache(config: Any, prefix: Prefix | None = None) -> DynamicCache:
    """A cache for a network of this config: empty, or of rows that have read what they all begin with."""
    cache = DynamicCache(config=config)
    if prefix is not None:
        cache.layers = [BlockLayer(shared) for shared in prefix.layers]
    else:
        cache.layers = [BlockLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keeps_tokens(cache: DynamicCache) -> bool:
    """Does it hold the keys and values of every token, and nothing else?"""
    return all(isinstance(layer, BlockLayer) for layer in cache.layers)


def as_prefix(cache: DynamicCache) -> Prefix:
    """The only row of a cache."""
    layers: Any = cache.layers
    return Prefix([Shared(layer.keys[0], layer.values[0]) for layer in layers])


def held_bytes(part: Tensor) -> int:
    """Of the memory that a view looks into, used or not."""
    return part.untyped_storage().nbytes()


def cache_bytes(cache: DynamicCache) -> int:
    """Of keys and values, with the room that is still empty."""
    layers: Any = cache.layers
    parts = [part for layer in layers for part in (layer.keys, layer.values, *(layer.shared or ())) if part is not None]
    return sum(map(held_bytes, parts))


def select_rows(cache: DynamicCache, moves: Moves) -> None:
    """Move the rows of a cache. Layers of other kinds know best what a row of theirs is: recurrent and convolutional
    states move with it."""
    layer: Any
    for layer in cache.layers:
        if isinstance(layer, BlockLayer):
            layer.move(moves)
        else:
            layer.reorder_cache(moves.rows)  # batch_select_indices knows of keys and values alone
