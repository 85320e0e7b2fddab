"""How configs of tiny networks are written down: what all have in common, and what is their own."""

from __future__ import annotations

from typing import Any

VOCABULARY = 50
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    **_ENDS,
}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
DECODER = {"is_decoder": True, "num_key_value_heads": ...}
_HALF: dict[str, Any] = {  # the decoder of an encoder-decoder
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}

Entry = tuple[str, dict[str, Any]]
"""``(model type, config)``"""


def own(kind: str, **settings: Any) -> Entry:
    """A config with names of its own."""
    return kind, {"vocab_size": VOCABULARY, **_ENDS, **settings}


def like(kind: str, **changes: Any) -> Entry:
    """A config with the usual names; ``...`` leaves one out."""
    return kind, {name: value for name, value in {**_BASE, **changes}.items() if value is not ...}


def half(kind: str, **changes: Any) -> Entry:
    """The decoder of an encoder-decoder."""
    return own(kind, **{**_HALF, **changes})
