"""Frozen linear layers in oneDNN's blocked layout: about twice as fast for a few dozen rows on a CPU.

`torch.nn.Linear` re-reads its weight matrix in row-major order at every call; laid out once in the blocks that
the matrix kernels want, a decode step of 32 rows takes about half the time. The layer stays an ordinary
``nn.Linear`` (same parameters, same state dict): only its ``forward`` is replaced, and it falls back to the
ordinary one whenever a gradient is wanted or the weight has changed since. Only layers of a network of our own (a twin
of the caller's, or one that we loaded) are packed.

A layout is a copy, and not every change shows in a tensor's version (fused optimisers, whatever writes to ``.data``):
:func:`repack` reads all weights for it, in the time of about one forward of a single row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS_HINT = 32  # the batch the layout is tuned for; other sizes work as well


class PackedForward:
    """``forward`` of one frozen linear layer."""

    packed: Tensor | None
    mark: Tensor
    where: int
    version: int

    def __init__(self, layer: nn.Linear, like: PackedForward | None = None) -> None:
        """``like``: one with a layout of the same weight, to share."""
        self.layer = layer
        if like is None:
            self.pack()
        else:
            self.packed, self.mark, self.where, self.version = like.packed, like.mark, like.where, like.version

    def pack(self) -> None:
        weight = self.layer.weight.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT) if packable(weight) else None
        self.mark = _mark(weight)
        self.where, self.version = weight.data_ptr(), self.layer.weight._version

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        weight = layer.weight
        wants_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if wants_grad or not self.looks_fresh() or self.packed is None or x.dtype != weight.dtype:
            return F.linear(x, weight, layer.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, layer.bias, "none", [], "")

    def looks_fresh(self) -> bool:
        weight = self.layer.weight
        return weight._version == self.version and weight.data_ptr() == self.where

    def is_fresh(self) -> bool:
        """Is every number of the weight what it was?"""
        return self.looks_fresh() and torch.equal(self.mark, _mark(self.layer.weight.detach()))

    def __reduce__(self) -> Any:
        """Copied or written to a file, it is the ordinary forward."""
        return _ordinary, (self.layer,)


def _ordinary(layer: nn.Linear) -> MethodType:
    return MethodType(nn.Linear.forward, layer)


def _has_its_own(layer: nn.Linear) -> bool:
    """Was the forward of a layer replaced, by one that is not the ordinary one?"""
    own = layer.__dict__.get("forward")
    return own is not None and not (isinstance(own, MethodType) and own.__func__ is nn.Linear.forward)


def packable(weight: Tensor) -> bool:
    """Only float32 on a CPU, where torch was built with oneDNN."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@lru_cache(maxsize=16)
def _direction(width: int) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(width))


def _mark(weight: Tensor) -> Tensor:
    """A number of each row that any change of it changes (but for rounding)."""
    return weight @ _direction(weight.shape[1]).to(weight)


def prepack(
    model: nn.Module, learning: Collection[int] = (), known: Iterable[PackedForward] = ()
) -> list[PackedForward]:
    """Replace the forward of every plain ``nn.Linear`` in place; none where this machine cannot.

    ``learning``: where weights lie that somebody else is training. Their layers are left alone: they would be laid out
    anew after every step. Left alone as well is a layer that has a forward of its own, as offloaded ones have.
    ``known``: layouts to take up where they are of the same memory."""
    made: list[PackedForward] = []
    at_hand = {layout.where: layout for layout in known if layout.looks_fresh()}
    try:
        for layer in model.modules():
            if type(layer) is not nn.Linear or _has_its_own(layer) or layer._parameters.get("weight") is None:
                continue
            if packable(layer.weight) and layer.weight.data_ptr() not in learning:
                made.append(PackedForward(layer, at_hand.get(layer.weight.data_ptr())))
                layer.forward = made[-1]  # type: ignore[assignment]
    except RuntimeError:  # an oneDNN without this kernel: leave the model as it was
        unpack(model)
        return []
    return made


def packed_layers(model: nn.Module) -> list[PackedForward]:
    """The layouts that a network runs with."""
    return [own for layer in model.modules() if isinstance(own := layer.__dict__.get("forward"), PackedForward)]


def repack(layers: Iterable[PackedForward]) -> None:
    """Lay out anew what has changed."""
    for layer in layers:
        if not layer.is_fresh():
            layer.pack()


def unpack(model: nn.Module) -> None:
    """Back to the ordinary forward."""
    for layer in model.modules():
        if isinstance(layer.__dict__.get("forward"), PackedForward):
            del layer.forward
