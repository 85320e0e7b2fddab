"""New low-rank adapters on a network: which layers get one, and those that are there already.

``peft`` knows the attention projections of the best-known architectures. Of any other, and of those whose layers have
other names than ``peft`` expects, every linear layer below the unembedding is adapted (as QLoRA does, Dettmers et al.
2023, arXiv:2305.14314).

On a network that has adapters, the new ones are added to what is there. ``peft`` would put an adapter of the same name
in the place of the old one, deactivate those of other names and train whatever is called an adapter.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ppl_align.core.errors import InputError, first_line
from ppl_align.lm.placement import input_device
from ppl_align.lm.precision import HALF
from ppl_align.lm.twin import twin_of

NEW = "default"  # what peft calls an adapter, and saves without a folder of its own
_FUSED = ("out_proj", "conv1d")  # fused kernels of state-space models read these weights past the adapter


def with_new_adapter(model: nn.Module, rank: int, base: str, name: str) -> Any:
    """A twin of the frozen network ``model`` with new adapters of rank ``rank``, initially without effect.

    ``base``: the base model, as the saved adapter names it; ``name``: as errors do. Raises ``InputError`` for a network
    without a layer that could be adapted, with the reason of ``peft`` or of the network."""
    import peft

    if any(weight.is_meta for weight in model.parameters()):
        raise InputError(
            f'guide="lora" trains beside weights in memory, and {name} keeps some on disk: use guide="head"'
        )
    reason = ""
    for targets, without in candidates(model):
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            task_type="CAUSAL_LM",
            base_model_name_or_path=base,
            target_modules=targets,
            exclude_modules=without or None,
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice about modules that this model does not have
                twin = twin_of(model)
                before = _make_room(twin, name)
                adapted = peft.get_peft_model(twin, config).eval()
            named = None if base == type(model).__name__ else base  # of a network without a name
            adapted.peft_config[NEW].base_model_name_or_path = named  # peft writes down what it is called here
            _activate(adapted, before, model)
            _try(adapted, model)
        except InputError:
            raise
        except (ValueError, TypeError, AttributeError, RuntimeError, NotImplementedError) as error:
            # peft's default does not fit this network, or the network not what peft made of a layer
            reason = first_line(error)[:120]
            continue
        return adapted
    raise InputError(f'guide="lora" finds no linear layer in {name} that it could adapt ({reason}): use guide="head"')


@torch.enable_grad()
def _try(adapted: Any, model: Any) -> None:
    """Raises ``ValueError`` where new adapters change what a network says of two tokens, whatever it raises itself
    where they break it: routers, say, that are linear layers by class and return several things."""
    ids = torch.tensor([[0, 1]], device=input_device(model))
    with torch.no_grad():
        want = model(input_ids=ids, use_cache=False).logits.float()
    found = adapted(input_ids=ids, use_cache=False).logits
    exactness = 0.1 if found.dtype in HALF else 1e-3
    if not bool(((found.float() - want).abs() <= exactness * want.abs().amax()).all()):
        raise ValueError("new adapters change what it says")
    found.float().logsumexp(-1).sum().backward()
    adapted.zero_grad(set_to_none=True)


def candidates(model: nn.Module) -> Iterator[tuple[list[str] | str | None, list[str]]]:
    """What to try, in order: peft's own choice, every linear layer, those that no fused kernel reads, plain ones.

    ``(targets, what not to adapt of them)``"""
    layers = linear_layers(model)
    odd = [path for path in layers if type(model.get_submodule(path)) is not nn.Linear]
    yield None, []
    yield "all-linear", []
    for paths, without in ((layers, []), (sorted({*layers} - {*odd}), odd)):
        names = {path.rsplit(".", 1)[-1] for path in paths}
        if safe := sorted(names - set(_FUSED)):
            yield safe, without


def linear_layers(model: nn.Module) -> list[str]:
    """Paths of the linear layers below the unembedding."""
    find = getattr(model, "get_output_embeddings", None)
    last = find() if find is not None else None
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and module is not last]


# -- beside adapters that are there already ------------------------------------------------------------------------


def _make_room(twin: nn.Module, name: str) -> list[tuple[nn.Module, list[str]]]:
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
        for key, value in list(layer.__dict__.items()):
            if type(value) is dict and NEW in value and not key.startswith("_"):
                value[_free(value)] = value.pop(NEW)
        active.append((layer, ["prior" if one == NEW else one for one in layer.active_adapters]))
    return active


def _free(names: Any) -> str:
    if "prior" in names:
        raise InputError('an adapter called "prior" is in the way of guide="lora": rename it')
    return "prior"


def _activate(adapted: nn.Module, before: list[tuple[nn.Module, list[str]]], prior: nn.Module) -> None:
    """Old and new adapters run together, and the new ones alone learn."""
    for layer, names in before:
        layer._active_adapter = [*names, NEW]  # type: ignore[assignment]
    theirs = {id(weight) for weight in prior.parameters()}
    for weight in adapted.parameters():
        if id(weight) in theirs:
            weight.requires_grad_(False)
