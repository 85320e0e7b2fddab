"""What decides how a network is read: its class, its cache, its attention, and every length in its config.

``verified.json`` beside this file lists the fingerprints of networks that the tests have held, token by token, against
the network without a cache, and whether what all rows begin with can be held once
(:mod:`ppl_align.lm.sharing`); they need not be tried again. ``python docs/supported_models.py`` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import DynamicCache

from ppl_align.lm.lengths import lengths
from ppl_align.lm.network import rope_kinds
from ppl_align.lm.prepack import PackedForward

VERIFIED = Path(__file__).with_name("verified.json")
_NAMES = ("architectures", "problem_type", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id")


def fingerprint(model: Any) -> str:
    """One line of text. Networks with the same one differ in sizes and weights alone."""
    config = model.config.get_text_config()
    said = {
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "cache": sorted({type(layer).__name__ for layer in DynamicCache(config=model.config).layers}),
        "attention": getattr(config, "_attn_implementation", None),
        "rope": sorted({kind for kind, _ in rope_kinds(model.config)}),
        "lengths": lengths(config),
        "settings": {name: value for name, value in sorted(config.to_dict().items()) if _chooses(name, value)},
        "transformers": transformers.__version__,
    }
    return json.dumps(said, sort_keys=True)


def _chooses(name: str, value: Any) -> bool:
    """Is a field of a config a choice between ways of working, rather than a size, an id or a name?"""
    return name not in _NAMES and not name.startswith("_") and isinstance(value, bool | str)


def is_known(model: Any) -> bool:
    """Have the tests read such a network rightly with its cache? In float32 on a CPU, as they do, and as it is."""
    weight = next(model.parameters())
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or not untouched(model):
        return False
    if any(type(module).__module__.split(".")[0] not in ("torch", "transformers") for module in model.modules()):
        return False
    return getattr(model.config, "quantization_config", None) is None and fingerprint(model) in verified()


def known_to_share(model: Any) -> bool | None:
    """Has a network that is known what all rows begin with held once? None: it is not known."""
    return verified()[fingerprint(model)] if is_known(model) else None


@cache
def verified() -> dict[str, bool]:
    """The fingerprints that need no trial, and whether such networks share what all rows begin with."""
    known: dict[str, bool] = json.loads(VERIFIED.read_text()) if VERIFIED.is_file() else {}
    return known


def untouched(model: nn.Module) -> bool:
    """Does every module run the forward of its class, and nothing before or after it that could change it (hooks)?"""
    return not touches(model)


def touches(model: nn.Module) -> list[Any]:
    """What could change the forwards of its classes: hooks, and forwards in their place."""
    found: list[Any] = []
    for module in model.modules():
        own = module.__dict__.get("forward")
        found += [] if own is None or isinstance(own, PackedForward) else [own]
        found += module._forward_pre_hooks.values()
        found += (hook for hook in module._forward_hooks.values() if not _only_looks(hook))
    return found


def _only_looks(hook: Any) -> bool:
    """The hook by which transformers, once asked for hidden states, collects them: it stays, and changes nothing.

    Other hooks of transformers do change what is said (NEFTune's noise)."""
    return getattr(hook, "__module__", None) == "transformers.utils.output_capturing"


def settings_of(model: Any) -> Hashable | None:
    """Equal for networks of the same classes and config, on one kind of device; None: there is no other like it."""
    if not untouched(model):
        return None
    weight = next(model.parameters())
    classes = tuple(type(module) for module in model.modules())
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NAMES and name[:1] != "_"}
    attention = getattr(model.config, "_attn_implementation", None)
    said = json.dumps(config, sort_keys=True, default=str)
    return classes, said, attention, weight.dtype, weight.device.type, torch.get_num_threads()
