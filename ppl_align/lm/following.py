"""The network that a caller gave us, as it is at any time, without a trace of us in it.

An LM never runs the caller's own modules: it runs a twin of them, frozen and in evaluation mode, whose weights lie in
the same memory. What happens to the network afterwards is looked for whenever a text is begun. Changes in place
are there already; weights in other memory (``weight.data = ...``, ``.double()``, ``.to(...)``) are taken up; where
modules, hooks, settings or plain attributes differ (an adapter merged, switched off or added), a new twin is made.
"""

from __future__ import annotations

from collections.abc import Hashable
from operator import is_
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ppl_align.lm.prepack import PackedForward
from ppl_align.lm.twin import frozen_weight, twin_of

_TWINS: WeakKeyDictionary[nn.Module, ReferenceType[Following]] = WeakKeyDictionary()  # whose twin a network is
_NOT_READ = {  # what a module has that makes no difference to a forward without gradients
    "training",
    "generation_config",
    *("_compiled_call_impl", "_non_persistent_buffers_set"),
    *("_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
}
_PLAIN = (bool, int, float, str, torch.dtype, torch.device, type(None))


class Following:
    """``source``: the network of the caller. ``root``: its twin; another object after :meth:`follow` made a new one."""

    def __init__(self, source: nn.Module) -> None:
        known = _TWINS.get(source)  # it may be the twin of a third network
        self.parent = None if known is None else known()
        self.source = source
        self._build()

    def _build(self) -> None:
        parameters = list(self.source.parameters())
        stand_in = [frozen_weight(parameter) for parameter in parameters]
        self.state = _State(self.source)
        self.root: Any = twin_of(self.source, {id(p): q for p, q in zip(parameters, stand_in, strict=True)})
        self.pairs = [(p, q) for p, q in zip(parameters, stand_in, strict=True) if p is not q]
        for module in self.root.modules():
            module.training = False  # and no eval(), which may be the network's own and merge weights
            packed = module.__dict__.get("forward")
            if isinstance(packed, PackedForward):  # the source is a twin itself
                module.forward = PackedForward(module, packed)
            if not getattr(module, "layers_are_rescaled", True):  # RWKV scales its weights when it is first evaluated
                module.config.rescale_every = 0
        _TWINS[self.root] = ref(self)

    @property
    def original(self) -> nn.Module:
        """The network at the beginning of a row of twins."""
        return self.source if self.parent is None else self.parent.original

    def learning(self) -> set[int]:
        """Where the weights lie that are being trained."""
        return {weight.data_ptr() for weight in self.source.parameters() if weight.requires_grad}

    def follow(self) -> bool:
        """Take up what has changed; is ``root`` another object now?"""
        if self.parent is not None and self.parent.follow():
            self.source = self.parent.root
        if self.state != _State(self.source):
            self._build()
            return True
        for theirs, ours in self.pairs:
            if (
                theirs.data_ptr() != ours.data_ptr()
                or theirs.dtype != ours.dtype
                or theirs.shape != ours.shape
                or theirs.stride() != ours.stride()
                or theirs.device != ours.device
            ):
                ours.data = theirs.data
        return False


class _State:
    """All of a network but the numbers in its weights. ``things`` are the same ones or not, ``facts`` are equal or not.

    Things are held, so that no other can have their id."""

    def __init__(self, model: nn.Module) -> None:
        self.things: list[Any] = []
        self.facts: list[Hashable] = []
        self.configs: set[int] = set()
        for module in model.modules():
            self.things += (module, type(module))
            for key, value in module.__dict__.items():
                if key not in _NOT_READ and (not isinstance(value, dict) or value):
                    self.facts.append(key)
                    self._note(value)

    def _note(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self.facts.append(value)
        elif isinstance(value, dict):
            self.facts.append(tuple(value))
            for part in value.values():
                self._note(part)
        elif isinstance(value, (list, tuple)):
            self.facts.append(len(value))
            for part in value:
                self._note(part)
        elif isinstance(value, (set, frozenset)):
            self.facts.append(frozenset(value))
        elif isinstance(value, PreTrainedConfig):
            if id(value) not in self.configs:
                self.configs.add(id(value))
                self._note(value.__dict__)
        elif isinstance(value, Tensor) and value.is_meta:  # kept elsewhere: a new one after every forward
            self.facts.append(value.shape)
        else:
            self.things.append(value)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _State)
            and len(self.things) == len(other.things)
            and all(map(is_, self.things, other.things))
            and self.facts == other.facts
        )

    __hash__ = None  # type: ignore[assignment]
