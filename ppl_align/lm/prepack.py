"""Frozen linear layers in oneDNN's blocked layout: about twice as fast for a few dozen rows on a CPU.

`torch.nn.Linear` re-reads its weight matrix in row-major order at every call; laid out once in the blocks that
the matrix kernels want, a decode step of 32 rows takes about half the time. The layer stays an ordinary
``nn.Linear`` (same parameters, same state dict): only its ``forward`` is replaced, and it falls back to the
ordinary one whenever a gradient is wanted or the weight has changed since.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS_HINT = 32  # the batch the layout is tuned for; other sizes work as well


class PackedForward:
    """``forward`` of one frozen linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.version = layer.weight._version
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS_HINT)

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        wants_grad = torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad)
        if wants_grad or layer.weight._version != self.version or x.dtype != layer.weight.dtype:
            return F.linear(x, layer.weight, layer.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, layer.bias, "none", [], "")


def can_prepack(model: nn.Module) -> bool:
    """Only float32 on a CPU whose torch was built with oneDNN."""
    first = next(model.parameters(), None)
    return (
        first is not None
        and first.device.type == "cpu"
        and first.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def prepack(model: nn.Module, learning: Collection[int] = ()) -> int:
    """Replace the forward of every plain ``nn.Linear`` in place; returns how many (0: this machine cannot).

    ``learning``: where weights lie that somebody else is training. Their layers are left alone, for a layout is a copy,
    and not every optimiser lets a tensor know that it has changed (fused AdamW does not, nor what writes to ``.data``).
    """
    if not can_prepack(model):
        return 0
    layers = [m for m in model.modules() if type(m) is nn.Linear and m.weight.data_ptr() not in learning]
    try:
        for layer in layers:
            layer.forward = PackedForward(layer)  # type: ignore[assignment]
    except RuntimeError:  # an oneDNN without this kernel: leave the model as it was
        unpack(model)
        return 0
    return len(layers)


def unpack(model: nn.Module) -> None:
    """Back to the ordinary forward."""
    for layer in model.modules():
        if isinstance(layer.__dict__.get("forward"), PackedForward):
            del layer.forward
