"""Tiny sizes; a random transformer and its tokenizer, made anew at every call."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
"""Of decoders that call their sizes as Llama does."""
WORDS = ["[unk]", "the", "film", "was", "good", "bad", "[eos]"]


def tiny_llama(seed: int = 0, **config: int) -> LlamaForCausalLM:
    """V=7, EOS=6, float32."""
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4} | config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = LlamaConfig(
            vocab_size=len(WORDS),
            **shape,
            max_position_embeddings=64,
            eos_token_id=6,
            bos_token_id=None,
            pad_token_id=6,
            tie_word_embeddings=False,
            initializer_range=0.5,
        )
        return LlamaForCausalLM(made).eval().requires_grad_(False)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each of WORDS."""
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, "[unk]"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[unk]", eos_token="[eos]")
