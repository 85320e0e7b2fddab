"""Which layers of a network get a low-rank adapter.

``peft`` knows the attention projections of the best-known architectures. Of any other, and of those whose layers have
other names than ``peft`` expects, every linear layer below the unembedding is adapted (as QLoRA does, Dettmers et al.
2023, arXiv:2305.14314).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

from ppl_align.errors import InputError
from ppl_align.guides.stacked import activate, make_room
from ppl_align.lm.twin import twin_of

_FUSED = ("out_proj", "conv1d")  # fused kernels of state-space models read these weights past the adapter


def with_new_adapter(model: nn.Module, rank: int, base: str, name: str) -> Any:
    """A twin of the frozen network ``model`` with new adapters of rank ``rank``, initially without effect.

    ``base``: the base model, as the saved adapter names it; ``name``: as errors do. Raises ``InputError`` for a network
    without a layer that could be adapted."""
    import peft

    if any(weight.is_meta for weight in model.parameters()):
        raise InputError(
            f'guide="lora" trains beside weights in memory, and {name} keeps some on disk: use guide="head"'
        )
    for targets in candidates(model):
        config = peft.LoraConfig(
            r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM", base_model_name_or_path=base, target_modules=targets
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice about modules that this model does not have
                twin = twin_of(model)
                before = make_room(twin, name)
                adapted = peft.get_peft_model(twin, config).eval()
        except (ValueError, TypeError, AttributeError):  # peft's default does not fit this network
            continue
        activate(adapted, before, model)
        return adapted
    raise InputError(f'guide="lora" finds no linear layer in {name} that it could adapt: use guide="head"')


def candidates(model: nn.Module) -> Iterator[list[str] | str | None]:
    """What to try, in order: peft's own choice, every linear layer, those that no fused kernel reads."""
    yield None
    yield "all-linear"
    names = {path.rsplit(".", 1)[-1] for path in linear_layers(model)}
    if safe := sorted(names - set(_FUSED)):
        yield safe


def linear_layers(model: nn.Module) -> list[str]:
    """Paths of the linear layers below the unembedding."""
    find = getattr(model, "get_output_embeddings", None)
    last = find() if find is not None else None
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and module is not last]
