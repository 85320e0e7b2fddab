"""Tiny networks with every length, window and choice of a released one: ``CausalLM`` need not try these again."""

from __future__ import annotations

from ppl_align.testing.zoo_configs import Entry, like, own

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8}

RELEASED: dict[str, Entry] = {
    "SmolLM2-135M": like("llama", max_position_embeddings=8192, tie_word_embeddings=True),
    "TinyLlama-1.1B": like("llama", max_position_embeddings=2048),
    "Llama-2-7B": like("llama", max_position_embeddings=4096, num_key_value_heads=4),
    "Llama-3.2-1B": like("llama", max_position_embeddings=131072, tie_word_embeddings=True, rope_parameters=_LLAMA3),
    "Qwen2.5-0.5B": like("qwen2", max_position_embeddings=32768, tie_word_embeddings=True, max_window_layers=21),
    "Qwen3-0.6B": like("qwen3", max_position_embeddings=40960, tie_word_embeddings=True, head_dim=8),
    "GPT-2": own("gpt2", n_embd=32, n_layer=3, n_head=4, n_positions=1024, n_ctx=1024),
    "Pythia": like("gpt_neox", max_position_embeddings=2048, num_key_value_heads=...),
    "Mistral-7B-v0.3": like("mistral", max_position_embeddings=32768, sliding_window=None),
    "Gemma-3-270M": like(
        "gemma3_text",
        max_position_embeddings=32768,
        sliding_window=512,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        **_GEMMA,
    ),
    "Gemma-3-1B": like(
        "gemma3_text",
        max_position_embeddings=32768,
        sliding_window=512,
        sliding_window_pattern=6,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        **_GEMMA,
    ),
}
"""Name -> :data:`~ppl_align.testing.zoo_configs.Entry`."""
