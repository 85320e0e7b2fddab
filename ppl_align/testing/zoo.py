"""Tiny random networks of every architecture that we know how to build: what each is read by is measured, not typed.

>>> network("llama").config.model_type
'llama'
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ppl_align.core.errors import InputError

_ENTRIES: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("zoo.yaml").read_text("utf-8"))
ZOO: dict[str, Any] = {**_ENTRIES["attention"], **_ENTRIES["others"]}
"""Config by name; ``model_type`` where it is not the name."""
RELEASED: dict[str, Any] = _ENTRIES["released"]
"""Tiny networks with every length, window and choice of a released one."""


def network(name: str, seed: int = 0) -> Any:
    """A frozen random network in float32, peaked enough that every token of a prefix matters.

    Raises ``InputError`` for a name that is neither in the :data:`ZOO` nor in :data:`RELEASED`."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    if name not in (known := {**ZOO, **RELEASED}):
        raise InputError(f"the zoo has no {name!r}: it has {', '.join(ZOO)}")
    config = {"model_type": name, **copy.deepcopy(known[name])}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[config.pop("model_type")](**config))
        peak(model)
    return model.eval().float().requires_grad_(False)


@torch.no_grad()
def peak(model: nn.Module) -> None:
    """Weights of a size at which the distribution of the next token is far from uniform."""
    for name, weight in model.named_parameters():
        if not weight.is_floating_point():
            continue
        if weight.dim() >= 2:
            weight.copy_(torch.randn(weight.shape) * (1.3 / weight.shape[-1] ** 0.5))
        elif any(
            part in name for part in ("A_log", "dt_bias", ".D", "time_", "lambda", "recurrent_param", "norm", "ln_")
        ):
            weight.add_(torch.randn(weight.shape) * 0.1)
        else:
            weight.copy_(torch.randn(weight.shape) * 0.2)
