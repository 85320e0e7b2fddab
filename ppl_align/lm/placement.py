"""Where a network is, what moves it, and what must not be moved.

A network that ``device_map=`` has spread over devices (or over memory and disk), and one that is quantised, stays where
it is and as it is: ``.to`` fails on the one and undoes the other.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from ppl_align.core.errors import InputError

_HALF = (torch.float16, torch.bfloat16)


def checked_device(device: str | torch.device) -> torch.device:
    """Raises ``InputError`` for a device that torch does not know, or that is not here."""
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device={str(device)!r} is none that torch knows: write 'cpu', 'cuda' or 'cuda:0'") from error
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted.type == "cuda" and (wanted.index or 0) >= there:
        raise InputError(f"device={str(device)!r}: torch sees {there} CUDA devices here; leave device= out, or 'cpu'")
    return wanted


def fixed_because(model: nn.Module) -> str | None:
    """Why a network can neither be moved nor converted; None for one that can."""
    method = getattr(model, "quantization_method", None)
    if getattr(model, "is_quantized", False) or method is not None:
        if str(getattr(method, "value", method)).lower() != "gguf":  # read into ordinary weights
            return "is quantised"
    elif any(not weight.is_floating_point() for weight in model.parameters()):
        return "is quantised"
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(places) > 1 or any("_hf_hook" in module.__dict__ for module in model.modules()):
        return "is spread by device_map="
    return None


def input_device(model: Any) -> torch.device:
    """Where a network wants its token ids: with its embedding, wherever the other layers are."""
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embedding = None
    hook = getattr(embedding, "_hf_hook", None)
    for part in getattr(hook, "hooks", (hook,)):  # weights that are kept elsewhere come to where the layer is run
        place = getattr(part, "execution_device", None)
        if place is not None:
            return torch.device(place)
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor):
        weight = next(model.parameters())
    return weight.device


def is_elsewhere(model: nn.Module, device: torch.device) -> bool:
    """Would ``model.to(device)`` move anything?"""
    return any(not _same(tensor.device, device) for tensor in (*model.parameters(), *model.buffers()))


def _same(here: torch.device, there: torch.device) -> bool:
    return here.type == there.type and (there.index is None or here.index == there.index)


def move(model: nn.Module, device: torch.device, name: str) -> None:
    """A network of our own, to a device. Raises ``InputError`` for one that must stay where it is."""
    if is_elsewhere(model, device):
        refuse_fixed(model, name, f"device={str(device)!r}")
        model.to(device)


def refuse_fixed(model: nn.Module, name: str, wish: str) -> None:
    """Raises ``InputError`` for a network that can neither be moved nor converted."""
    why = fixed_because(model)
    if why is not None:
        raise InputError(f"{name} {why}, and stays where it is and as it is: leave {wish} out")


def convert(model: nn.Module, dtype: torch.dtype) -> None:
    """A network of our own to another floating type, as ``from_pretrained(dtype=)`` would have read it: what its
    authors keep in float32 stays so, and so do tables that are computed, not stored (of rotary angles, say)."""
    for module, name in convertible(model, dtype):
        if name in module._buffers:
            module._buffers[name] = module._buffers[name].to(dtype)  # type: ignore[union-attr]
        else:
            weight = module._parameters[name]
            weight.data = weight.data.to(dtype)  # type: ignore[union-attr]
    for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
        if getattr(config, "dtype", None) is not None:
            config.dtype = dtype


def convertible(model: nn.Module, dtype: torch.dtype) -> list[tuple[nn.Module, str]]:
    """The stored tensors, by layer and name, that :func:`convert` changes."""
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ()) if dtype in _HALF else set()
    if dtype == torch.float16:
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    in_float32 = re.compile("|".join(rf"(^|\.){re.escape(name)}($|\.)" for name in sorted(kept)) or r"(?!)")
    found = []
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            stored = name not in module._non_persistent_buffers_set and not in_float32.search(f"{path}.{name}")
            if stored and tensor is not None and tensor.is_floating_point() and tensor.dtype != dtype:
                found.append((module, name))
    return found
