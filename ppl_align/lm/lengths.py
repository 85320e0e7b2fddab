"""Lengths in a network's config, and those at which it begins to read in another way."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from ppl_align.lm.network import rope_kinds, rope_settings

_LENGTH = re.compile(
    r"window|chunk|block_size|block_len|position_embeddings|n_positions|max_positions|seq_len|seqlen|context|n_ctx|"
    r"local_attention|index_topk|mem_len|span|stride|length|conv_kernel|conv_l_cache|d_conv|positions$",
    re.IGNORECASE,
)
_NO_LENGTH = re.compile(r"feed_forward|pattern|^max_window_layers$|^(min|max)_length$|length_penalty", re.IGNORECASE)
_WINDOW = re.compile(r"window|chunk|local_attention|block_size|mem_len|span", re.IGNORECASE)
_WINDOWED = ("sliding", "chunk", "local", "linear", "conv", "mamba", "recurrent", "hybrid", "sparse", "compressed")


def lengths(config: Any) -> dict[str, int]:
    """Every field of a config that is a length, in tokens, by its path: windows, chunks, tables, memories."""
    found: dict[str, int] = {}

    def walk(path: str, name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{path}{key}.", str(key), inner)
        elif isinstance(value, list | tuple):
            for i, inner in enumerate(value[:256]):
                walk(f"{path}{i}.", name, inner)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0 and is_length(name):
            found[path[:-1]] = value

    for name, value in config.to_dict().items():
        walk(f"{name}.", name, value)
    return found


def is_length(name: str) -> bool:
    """Does the name of a field say that it holds a length?

    >>> is_length("sliding_window"), is_length("chunk_size_feed_forward"), is_length("hidden_size")
    (True, False, False)
    """
    return bool(_LENGTH.search(name)) and not _NO_LENGTH.search(name)


def windows(config: Any, longest: int | None) -> list[int]:
    """Windows and chunks of attention or of a recurrence, ascending, but for :func:`turns`.

    Those that no text of ``longest`` tokens crosses are left out."""
    text = config.get_text_config()
    kinds = [str(kind) for kind in getattr(text, "layer_types", None) or ()]
    if kinds and not any(word in kind for kind in kinds for word in _WINDOWED):
        return []
    # by the last word of a path or by the first: layers may have one each
    found = {n for path, n in lengths(text).items() if any(_WINDOW.search(word) for word in path.split("."))}
    found -= set(turns(config))
    return sorted(length for length in found if length > 1 and (longest is None or length < longest))


def longest_text(model: Any) -> int | None:
    """How many tokens a network reads at most, as its config and its table of positions say; None: they say nothing."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    for name, table in model.named_modules():
        # in RoBERTa and its kin the first rows of the table are for padding
        if "position" in name and isinstance(table, nn.Embedding) and table.padding_idx is not None:
            limit = min(limit, table.num_embeddings - table.padding_idx - 1)
    stretched = [said for kind, said in rope_settings(config) if kind == "dynamic"]
    return int(limit * max([1.0, *(float(said.get("factor") or 1.0) for said in stretched)]))


def turns(config: Any) -> list[int]:
    """Lengths, ascending, beyond which a text is read otherwise from its first token on, so that no cache can follow.

    Rotary embeddings change their angles (dynamic, longrope); a choice of the most relevant tokens begins to leave some
    out, and rounding then decides between those that are equally relevant."""
    return sorted({*choices(config), *(at for _, at in rope_kinds(config) if at is not None)})


def choices(config: Any) -> list[int]:
    """How many tokens attention chooses among those before (DeepSeek's sparse attention), ascending."""
    return sorted({n for path, n in lengths(config.get_text_config()).items() if "index_topk" in path})
