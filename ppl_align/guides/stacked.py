"""Adapters on a network that has some already: the new ones are added to what is there.

``peft`` would put an adapter of the same name in the place of the old one, deactivate those of other names and train
whatever is called an adapter.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ppl_align.core.errors import InputError

NEW = "default"  # what peft calls an adapter, and saves without a folder of its own


def make_room(twin: nn.Module, name: str) -> list[tuple[nn.Module, list[str]]]:
    """Rename the adapters in a twin that are called as the new one will be; who is active, layer by layer.

    Raises ``InputError`` where adapters are merged into the weights: ``peft`` runs no others then."""
    active = []
    layer: Any
    for layer in list(twin.modules()):
        if isinstance(layer, (nn.ModuleDict, nn.ParameterDict)) and NEW in layer:
            layer[_free(layer)] = layer.pop(NEW)
        if not hasattr(layer, "active_adapters") or not hasattr(layer, "merged_adapters"):
            continue
        if layer.merged_adapters:
            raise InputError(
                f"adapters are merged into {name}, and peft runs no others then: model.unmerge_adapter(), or go on "
                f"with model.merge_and_unload()"
            )
        other = "prior"
        for key, value in list(layer.__dict__.items()):
            if type(value) is dict and NEW in value and not key.startswith("_"):
                value[_free(value)] = value.pop(NEW)
        active.append((layer, [other if one == NEW else one for one in layer.active_adapters]))
    return active


def _free(names: Any) -> str:
    if "prior" in names:
        raise InputError('an adapter called "prior" is in the way of guide="lora": rename it')
    return "prior"


def activate(adapted: nn.Module, before: list[tuple[nn.Module, list[str]]], prior: nn.Module) -> None:
    """Old and new adapters run together, and the new ones alone learn."""
    for layer, names in before:
        layer._active_adapter = [*names, NEW]  # type: ignore[assignment]
    theirs = {id(weight) for weight in prior.parameters()}
    for weight in adapted.parameters():
        if id(weight) in theirs:
            weight.requires_grad_(False)
