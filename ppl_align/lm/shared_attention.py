"""Attention to what all rows begin with, as one batch element: every query of every row against one set of keys.

softmax over both parts, the shared one and a row's own, with one maximum and one sum: exact to rounding. It is an
attention function of transformers, and in the place of ``"sdpa"`` only while a forward that needs it is under way; what
it is not shown a shared part of, it leaves to that one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ppl_align.lm.kv_cache import Shared

SDPA, NAME = "sdpa", "ppl_align_shared_prefix"
_SCORES = 2**22  # elements at once: where many tokens are read, rows take turns
_NO_MATTER = {"position_ids", "cache_position", "use_cache"}
"""What an attention function is told and need not know; all else is something that it has to do."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """``query`` [rows, H, q, d], ``key`` and ``value`` [rows, G, n, d], G dividing H; ``attention_mask``
    [rows, 1, q, S + n]. Returns [rows, q, H, d].

    Raises ``NotImplementedError`` for whatever is more than scaled dot products and a softmax."""
    shared: Shared | None = getattr(key, "shared", None)
    if shared is None:
        plain = registered()
        return plain(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    more = [name for name, said in kwargs.items() if said is not None and said is not False and name not in _NO_MATTER]
    if more or dropout:
        raise NotImplementedError(f"attention with {', '.join(more) or 'dropout'} and a shared prefix")
    own = None if attention_mask is None else attention_mask[..., shared.keys.shape[1] :]
    if query.shape[2] > 1 if own is None else own.dtype != torch.bool or own.shape[1] != 1:
        raise NotImplementedError("attention with a shared prefix and a mask that is not one of places")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rows, heads, width, _ = query.shape
    at_once = max(1, _SCORES // (heads * width * (shared.keys.shape[1] + key.shape[2])))
    found = [
        attend(
            query[i : i + at_once],
            shared,
            key[i : i + at_once],
            value[i : i + at_once],
            own if own is None or len(own) == 1 else own[i : i + at_once],
            scale,
        )
        for i in range(0, rows, at_once)
    ]
    return (found[0] if len(found) == 1 else torch.cat(found)).to(query.dtype).transpose(1, 2).contiguous(), None


def attend(query: Tensor, shared: Shared, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """``query`` [m, H, q, d], ``key``, ``value`` [m, G, n, d], ``mask`` [m or 1, 1, q, n]: [m, H, q, d].

    In float32 where the network computes in half precision: scores that are rounded to it are off by percents."""
    (m, heads, q, _), (_, groups, n, width) = query.shape, value.shape
    query, key, value, first, second = (
        part.float() if part.element_size() < 4 else part for part in (query, key, value, *shared)
    )
    by_group = (query * scale).reshape(m, groups, heads // groups * q, -1)
    together = by_group.transpose(0, 1).reshape(groups, -1, query.shape[-1]) @ first.mT  # [G, m * H/G * q, S]
    apart = by_group @ key.mT  # [m, G, H/G * q, n]
    if mask is not None:
        apart.view(m, groups, -1, q, n).masked_fill_(~mask[:, :, None], -torch.inf)
    largest = together.amax(-1).view(groups, m, -1).transpose(0, 1)  # [m, G, H/G * q]
    largest = torch.maximum(largest, apart.amax(-1))
    together.sub_(largest.transpose(0, 1).reshape(groups, -1, 1)).exp_()
    apart.sub_(largest[..., None]).exp_()
    total = together.sum(-1).view(groups, m, -1).transpose(0, 1) + apart.sum(-1)
    said = (together @ second).view(groups, m, -1, width).transpose(0, 1) + apart @ value
    return (said / total[..., None]).reshape(m, heads, q, width)


@cache
def registered() -> Callable[..., tuple[Tensor, None]]:
    """Make :func:`attention` known to transformers; returns the function that ``"sdpa"`` stands for.

    Whatever loads a network has imported these modules; to import them before takes seconds."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    plain: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward
    return plain


_LOCK = threading.Lock()
_INSIDE: dict[int, int] = {}  # forwards under way, by the id of a config


def configs_of(model: nn.Module) -> list[Any]:
    """The configs by which modules of a network are told to attend by ``"sdpa"``."""
    found = {
        id(config): config for module in model.modules() if (config := getattr(module, "config", None)) is not None
    }
    return [c for c in found.values() if getattr(c, "_attn_implementation", None) in (SDPA, NAME)]


@contextmanager
def attending(configs: Sequence[Any]) -> Iterator[None]:
    """Inside, networks of these configs attend by :func:`attention`; other threads may be inside as well."""
    registered()
    with _LOCK:
        for config in configs:
            _INSIDE[id(config)] = _INSIDE.get(id(config), 0) + 1
            config._attn_implementation = {"": NAME}  # its own, and not those of configs inside it
    try:
        yield
    finally:
        with _LOCK:
            for config in configs:
                _INSIDE[id(config)] -= 1
                if not _INSIDE[id(config)]:
                    del _INSIDE[id(config)]
                    config._attn_implementation = {"": SDPA}
