"""The network that an LM runs: read from disk, a twin of one in memory, or a converted copy of it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import nn

from ppl_align.core.errors import InputError
from ppl_align.lm.following import Following
from ppl_align.lm.names import load_causal
from ppl_align.lm.placement import (
    checked_device,
    convert,
    convertible,
    fixed_because,
    input_device,
    is_elsewhere,
    move,
    refuse_fixed,
)


class Loaded:
    """A network and its tokenizer, as they were read from disk."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer


_LOADED: WeakValueDictionary[Any, Loaded] = WeakValueDictionary()  # frozen weights, shared by who asks for the same


class Acquired(NamedTuple):
    """``model`` is ours to pack and to freeze. ``following``: whose twin it is; ``loaded``: who else may have it, as
    long as one LM holds it."""

    name: str
    model: Any
    tokenizer: Any
    following: Following | None = None
    loaded: Loaded | None = None


def acquire(
    given: str | Path | nn.Module,
    tokenizer: Any,
    device: str | torch.device | None,
    dtype: torch.dtype | str | None,
    prepack: bool,
    keywords: Mapping[str, Any],
) -> Acquired:
    """What ``CausalLM`` is asked for; the errors are those of ``CausalLM``."""
    place = None if device is None else checked_device(device)
    if isinstance(tokenizer, str) or not (tokenizer is None or callable(getattr(tokenizer, "encode", None))):
        raise InputError(
            f"tokenizer={tokenizer!r} is no tokenizer: pass one that is loaded, AutoTokenizer.from_pretrained(...)"
        )
    if "torch_dtype" in keywords:  # what dtype= was called before
        keywords = dict(keywords)
        older = keywords.pop("torch_dtype")
        if dtype not in (None, older):
            raise InputError(f"dtype={dtype!r} and torch_dtype={older!r} are two names of one thing: give one")
        dtype = older
    wanted = _floating_type(dtype)
    if isinstance(given, nn.Module):
        return _in_memory(given, tokenizer, place, wanted, keywords)
    name, spread = str(given), keywords.get("device_map") is not None
    if spread and place is not None:
        raise InputError(
            f"device={str(place)!r} puts a whole network in one place, device_map= says where its parts go: give one"
        )
    if spread and find_spec("accelerate") is None:
        raise InputError("device_map= needs accelerate: pip install accelerate")
    likely = place or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    read_as = dtype if dtype == "auto" else wanted or (torch.float32 if likely.type == "cpu" else torch.bfloat16)
    key = (name, str(place), read_as, prepack, tokenizer is None, repr(sorted(keywords.items())))
    pair = _LOADED.get(key)
    if pair is None:
        pair = _LOADED[key] = Loaded(*load_causal(name, read_tokenizer=tokenizer is None, dtype=read_as, **keywords))
        if place is not None or (not spread and fixed_because(pair.model) is None):
            move(pair.model, likely, name)
        pair.model.eval()
    return Acquired(name, pair.model, tokenizer or pair.tokenizer, loaded=pair)


def _in_memory(
    given: nn.Module,
    tokenizer: Any,
    device: torch.device | None,
    dtype: torch.dtype | None,
    keywords: Mapping[str, Any],
) -> Acquired:
    if keywords:
        raise InputError(f"{min(keywords)}= is for reading a network from disk, and this one is in memory already")
    network: Any = unwrapped(given)
    if not hasattr(network, "config"):
        raise InputError(f"a {type(network).__name__} is no network of transformers: it has no config")
    name = getattr(network.config, "_name_or_path", "") or type(network).__name__
    following = Following(network)
    if device is not None and is_elsewhere(network, device):
        refuse_fixed(network, name, f"device={str(device)!r}")
        if network.training or any(weight.requires_grad for weight in network.parameters()):
            raise InputError(
                f"the network in training is on {input_device(network)}, and its twin shares its weights: move the "
                f"network, or freeze it (requires_grad_(False)), instead of device={str(device)!r}"
            )
        following.root.to(device)
    elif dtype is None or not convertible(network, dtype):
        return Acquired(name, following.root, tokenizer, following)
    if dtype is not None and convertible(network, dtype):
        refuse_fixed(network, name, f"dtype={dtype}")
        convert(following.root, dtype)
    _keep_apart(following.root)
    return Acquired(name, following.root, tokenizer)


def _keep_apart(twin: nn.Module) -> None:
    """What was not converted still lies in the caller's memory: a copy follows in all of its weights or in none."""
    for weight in twin.parameters():
        weight.data = weight.data.clone()
    for module in twin.modules():
        module._buffers.update({name: None if b is None else b.clone() for name, b in module._buffers.items()})


def _floating_type(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """``"bfloat16"`` as well; None (as for ``"auto"``): as it is."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype in (None, "auto"):
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype={dtype!r} is no floating type of torch: write torch.bfloat16 or 'bfloat16'")
    return found


def unwrapped(given: nn.Module) -> nn.Module:
    """The network inside of what ``torch.compile`` and data parallelism put around it."""
    while isinstance(given, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or "_orig_mod" in given._modules:
        inner = given._modules.get("_orig_mod") or given._modules["module"]
        assert inner is not None
        given = inner
    return given
