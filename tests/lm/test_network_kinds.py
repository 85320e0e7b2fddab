"""What is no prior is refused by name, in one line that says what it is and what to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm.test_tokenizers_word import words
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    T5EncoderModel,
)

from ppl_align import CausalLM
from ppl_align.core.errors import PplAlignError, UnsupportedModelError

SIZES = {"vocab_size": 20, "pad_token_id": 0, "eos_token_id": 2}
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
HALVES = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
BERT, BART = ("bert", SMALL), ("bart", HALVES)
DISTIL = ("distilbert", {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2})
FILLS, ANSWERS, HEADLESS = "is an encoder: it fills gaps", "is an encoder-decoder", "has no head that writes text"
REFUSED: dict[str, tuple[Any, tuple[str, dict[str, Any]], str]] = {
    "bert": (AutoModelForCausalLM, BERT, FILLS),
    "masked bert": (AutoModelForMaskedLM, BERT, FILLS),
    "masked roberta": (AutoModelForMaskedLM, ("roberta", SMALL), FILLS),
    "roberta": (AutoModelForCausalLM, ("roberta", SMALL), FILLS),
    "distilbert": (AutoModelForMaskedLM, DISTIL, FILLS),
    "albert": (AutoModelForMaskedLM, ("albert", {**SMALL, "embedding_size": 16}), FILLS),
    "t5": (AutoModelForSeq2SeqLM, ("t5", T5), ANSWERS),
    "bart": (AutoModelForSeq2SeqLM, BART, ANSWERS),
    "marian": (AutoModelForSeq2SeqLM, ("marian", {**HALVES, "decoder_start_token_id": 0}), ANSWERS),
    "half of t5": (T5EncoderModel, ("t5", T5), "encoder"),
    "headless": (AutoModel, ("llama", SMALL), HEADLESS),
    "headless bert": (AutoModel, BERT, HEADLESS),
    "classifier": (AutoModelForSequenceClassification, ("llama", SMALL), "judges texts"),
}


def build(name: str) -> Any:
    maker, (kind, settings), _ = REFUSED[name]
    config = AutoConfig.for_model(kind, **SIZES, **settings)
    made = maker(config) if maker is T5EncoderModel else maker.from_config(config)
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("name", REFUSED)
def test_in_memory(name: str):
    model = build(name)
    with pytest.raises(UnsupportedModelError, match=REFUSED[name][2]) as refused:
        CausalLM(model)
    assert type(model).__name__ in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", [name for name in REFUSED if not name.startswith(("headless", "half", "classifier"))])
def test_in_a_folder(name: str, tmp_path: Path):
    build(name).save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=REFUSED[name][2]) as refused:
        CausalLM(str(tmp_path))
    assert "\n" not in str(refused.value)
    assert "files" not in str(refused.value)


@pytest.mark.parametrize("tied", [True, False])
def test_a_reward_model_is_no_prior_even_where_its_head_would_be_there(tied: bool, tmp_path: Path):
    """The head of a tied network is its embedding, so that no weight is missing."""
    config = AutoConfig.for_model("llama", **SIZES, **SMALL, tie_word_embeddings=tied, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    with pytest.raises(PplAlignError, match="a reward") as refused:
        CausalLM(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_an_encoder_that_was_trained_to_decode_is_no_encoder():
    config = AutoConfig.for_model("bert", vocab_size=20, is_decoder=True, **SMALL)
    assert CausalLM(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)).vocab_size == 20


def test_unverified_it_is_taken_at_its_word():
    assert CausalLM(build("bert"), verify=False).plan.kind == "cache"


def test_a_network_that_hashes_at_random_is_refused():
    """Short texts are read whole, and look steady."""
    sizes = {"hidden_size": 16, "feed_forward_size": 16, "num_attention_heads": 2, "attention_head_size": 8}
    places = {"axial_pos_embds_dim": [8, 8], "axial_pos_shape": [4, 16], "max_position_embeddings": 64}

    def reformer(*layers: str) -> Any:
        chunks = {"local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "num_buckets": 4}
        config = AutoConfig.for_model(
            "reformer", **SIZES, **sizes, **places, **chunks, attn_layers=list(layers), is_decoder=True
        )
        return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)

    with pytest.raises(UnsupportedModelError, match="ReformerModelWithLMHead hashes at random") as refused:
        CausalLM(reformer("local", "lsh"))
    assert "\n" not in str(refused.value)
    with pytest.warns(UserWarning, match="without its cache"):
        assert CausalLM(reformer("local", "local")).plan.kind == "recompute"
