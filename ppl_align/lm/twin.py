"""A second tree of modules over the weights of a network: what is done to it is not done to the network.

Modes, gradients, hooks and replaced layers belong to a tree; weights, buffers, hook functions and whatever else a
module holds are shared. Nothing is copied, so a twin costs a few milliseconds and no memory. Deep copies would do the
same for plain networks, but they double what hides outside of parameters (quantisation states, offloaded weights) and
fail on what cannot be copied (locks, generators).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig

from ppl_align.core.errors import UnsupportedModelError
from ppl_align.lm.prepack import PackedForward

CONFIGS = (PreTrainedConfig, GenerationConfig)


def twin_of(model: nn.Module, others: Mapping[int, nn.Parameter] = {}) -> Any:
    """A copy of the module tree that shares every parameter and buffer; ``others`` stand in for some, by their id.

    Raises ``UnsupportedModelError`` where a layer's ``forward`` is a function that is tied to the network itself."""
    return _Copy(model, others).root


def frozen_weight(weight: nn.Parameter) -> nn.Parameter:
    """The same memory, without a gradient; parameters of other kinds (quantised ones) know more than their memory."""
    if not weight.requires_grad and type(weight) is not nn.Parameter:
        return weight
    return nn.Parameter(weight.detach(), requires_grad=False)


class _Copy:
    """``modules``, ``parameters``: what stands in for those of the original, by id."""

    def __init__(self, model: nn.Module, parameters: Mapping[int, nn.Parameter]) -> None:
        originals = list(model.modules())
        self.parameters = parameters
        self.modules: dict[int, nn.Module] = {id(module): object.__new__(type(module)) for module in originals}
        self.made: dict[int, Any] = {}
        self.kept: list[Any] = []  # an id is one as long as its object lives
        for module in originals:
            self._fill(module)
        self.root = self.modules[id(model)]

    def _fill(self, module: nn.Module) -> None:
        own = self.modules[id(module)].__dict__
        for key, value in module.__dict__.items():
            own[key] = self.copied(value)
        own["_compiled_call_impl"] = None  # compiled for the original
        if isinstance(own.get("forward"), FunctionType) and own["forward"].__closure__:
            raise UnsupportedModelError(
                f"the forward of a {type(module).__name__} was replaced by a function that belongs to this network "
                f"alone, and an LM reads a twin of it: give the network as it was before (del module.forward)"
            )

    def copied(self, value: Any) -> Any:
        """A container, method or holder of modules is copied, with twins inside; anything else is shared."""
        if isinstance(value, nn.Module):
            return self.modules.get(id(value), value)
        if isinstance(value, nn.Parameter):
            return self.parameters.get(id(value), value)
        if value is None or isinstance(value, (bool, int, float, str, Tensor, type, FunctionType, PackedForward)):
            return value
        if id(value) not in self.made:
            self.kept.append(value)
            self._copy(value)
        return self.made[id(value)]

    def _copy(self, value: Any) -> None:
        kind, at = type(value), id(value)
        if isinstance(value, MethodType):
            self.made[at] = MethodType(value.__func__, self.copied(value.__self__))
        elif isinstance(value, partial):
            arguments = {key: self.copied(part) for key, part in value.keywords.items()}
            self.made[at] = kind(self.copied(value.func), *map(self.copied, value.args), **arguments)
            self.made[at].__dict__.update({key: self.copied(part) for key, part in value.__dict__.items()})
        elif isinstance(value, dict):
            self.made[at] = fresh = copy.copy(value)
            for key, part in value.items():
                fresh[key] = self.copied(part)
        elif kind is list:
            grown: list[Any] = []
            self.made[at] = grown
            grown += map(self.copied, value)
        elif kind is set:
            self.made[at] = set(value)
        elif kind is tuple:
            self.made[at] = tuple(map(self.copied, value))
        elif isinstance(value, CONFIGS):
            self.made[at] = copy.deepcopy(value)
        elif self._holds(value):
            self.made[at] = held = copy.copy(value)
            held.__dict__.update({key: self.copied(part) for key, part in vars(value).items()})
        else:
            self.made[at] = value

    def _holds(self, value: Any) -> bool:
        """Has an object a module of the network, or a weight that something stands in for, among its attributes?"""
        return any(
            id(part) in (self.modules if isinstance(part, nn.Module) else self.parameters)
            for part in getattr(value, "__dict__", {}).values()
            if isinstance(part, (nn.Module, nn.Parameter))
        )
