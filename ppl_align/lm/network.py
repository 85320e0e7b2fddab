"""One call of a network, whatever its forward is called with, and what is known of it without a call."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ppl_align.core.cost import network

if TYPE_CHECKING:
    from ppl_align.lm.causal import CausalLM


def call(lm: CausalLM, ids: Tensor, keep: int, **more: Any) -> tuple[Tensor, Tensor]:
    """``(logits [m, keep, V], hidden [m, keep, d])`` at the last ``keep`` places of ``ids [m, n]``.

    Of the plain network: no mask, no positions, and no cache unless ``more`` brings one.

    The hidden state is what enters the unembedding; empty, ``[m, keep, 0]``, where the network does not call it."""
    start_afresh(lm.model)
    known = accepted(base_of(lm.model))
    settings = {"use_cache": False, "logits_to_keep": keep, **more}
    if known is not None:
        settings = {name: value for name, value in settings.items() if name in known}
    with what_enters(lm.unembedding) as seen, network():
        logits = lm.model(input_ids=ids, **settings).logits
    hidden = seen[0] if seen and seen[0].dim() == 3 else logits[..., :0]
    return logits[:, -keep:].to(ids.device), hidden[:, -keep:].to(ids.device)


@contextmanager
def what_enters(unembedding: nn.Module) -> Iterator[list[Tensor]]:
    """Hidden states: what the unembedding is called with inside the block, in order."""
    seen: list[Tensor] = []
    hook = unembedding.register_forward_pre_hook(lambda _, args: seen.extend(args[:1]))
    try:
        yield seen
    finally:
        hook.remove()


def keeps_few(lm: CausalLM) -> bool:
    """Can the network leave out logits that nobody asks for?"""
    known = accepted(base_of(lm.model))
    return known is None or "logits_to_keep" in known


def accepted(model: Any) -> frozenset[str] | None:
    """The names that a network's forward is called with; None where it takes whatever comes.

    ``use_cache`` is among them wherever other keywords are passed on to what is inside."""
    parameters = inspect.signature(model.forward).parameters
    if "input_ids" not in parameters:
        return None
    passes_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return frozenset(parameters) | (frozenset({"use_cache"}) if passes_on else frozenset())


def base_of(model: Any) -> Any:
    """The network inside adapters."""
    inside = getattr(model, "get_base_model", None)
    return model if inside is None else inside()


def start_afresh(model: Any) -> None:
    """Dynamic rotary embeddings remember the longest text they have read: forget it.

    A long text would change what shorter ones get later, until one is shorter than ``max_position_embeddings``."""
    if not any(kind == "dynamic" for kind, _ in rope_kinds(model.config)):
        return
    for module in model.modules():
        if not hasattr(module, "original_max_seq_len"):
            continue
        for prefix in ("", *(f"{name}_" for name in getattr(module, "layer_types", None) or ())):
            if hasattr(module, f"{prefix}original_inv_freq"):
                fresh = getattr(module, f"{prefix}original_inv_freq")
                at = getattr(module, f"{prefix}inv_freq").device
                module.register_buffer(f"{prefix}inv_freq", fresh.to(at), persistent=False)
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def rope_kinds(config: Any) -> list[tuple[str, int | None]]:
    """``(kind, length at which it changes)`` of every kind of rotary embedding in a config; None: it never does."""
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    original = getattr(text, "original_max_position_embeddings", None)
    found: list[tuple[str, int | None]] = []
    for kind, said in rope_settings(text):
        at = said.get("original_max_position_embeddings") or original or longest
        if kind == "dynamic":  # by the length of its table, whatever else is said
            at = longest or at
        found.append((kind, at if kind in ("dynamic", "longrope", "su") else None))
    return found


def rope_settings(text: Any) -> list[tuple[str, dict[str, Any]]]:
    """``(kind, settings)`` of every kind of rotary embedding in the config of a text network."""
    said = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    return [(str(s.get("rope_type") or s.get("type") or "default"), s) for s in _settings(said)]


def _settings(said: Any) -> Iterator[dict[str, Any]]:
    if isinstance(said, dict):
        if "rope_type" in said or "type" in said:
            yield said
        for inner in said.values():
            yield from _settings(inner)
