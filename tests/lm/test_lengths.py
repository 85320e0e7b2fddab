"""Lengths at which a network changes: crossed where that is quick, else longer texts are read without the cache."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

from ppl_align import CausalLM
from ppl_align.core.cost import measure
from ppl_align.core.errors import UnsupportedModelError
from ppl_align.lm import verify
from ppl_align.lm.lengths import lengths, longest_text, turns, windows
from ppl_align.lm.plan import Plan
from ppl_align.preferences.features import LMFeatures
from ppl_align.testing.held import alone, decoding_error, scoring_error
from ppl_align.testing.zoo import network, peak

WINDOW = 20
PROMPT = tuple(range(1, WINDOW - 2))


class Forgetful(MistralForCausalLM):
    """Right without a cache, and with one up to the window."""

    def forward(self, input_ids: Any = None, past_key_values: Any = None, **more: Any) -> Any:
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        out = super().forward(input_ids=input_ids, past_key_values=past_key_values, **more)
        if past_key_values is not None and seen + input_ids.shape[1] > WINDOW:
            out.logits = out.logits.roll(1, -1)
        return out


def mistral(kind: type = MistralForCausalLM, window: int = WINDOW) -> Any:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(
        vocab_size=30, sliding_window=window, num_key_value_heads=1, max_position_embeddings=10_000, **shape
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = kind(config)
        peak(model)
    return model.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(verify, "_FOUND", {})


@torch.no_grad()
def crosses_rightly(lm: CausalLM) -> None:
    rows = [PROMPT, PROMPT[:3]]
    decoder, seen = lm.start(rows), []
    found = []
    for step in range(6):
        decoder = decoder.extend(torch.tensor([1, 0]), torch.tensor([step, step + 1]))
        rows = [(*rows[1], step), (*rows[0], step + 1)]
        seen += rows
        found.append(decoder.log_probs)
    torch.testing.assert_close(torch.cat(found).double(), alone(lm.model, seen), atol=1e-4, rtol=0)
    tokens = torch.tensor([[4, 5, 6, 7, 8, 9]])
    expected = alone(lm.model, [(*PROMPT, *range(4, 4 + i)) for i in range(6)])
    torch.testing.assert_close(lm.forced_log_probs([PROMPT], tokens)[0].double(), expected, atol=1e-4, rtol=0)


def test_a_window_that_is_crossed_in_time_needs_no_limit():
    lm = CausalLM(mistral())
    assert lm.plan == Plan()
    crosses_rightly(lm)


def test_a_window_that_takes_too_long_is_the_end_of_the_cache(monkeypatch):
    monkeypatch.setattr(verify, "MAX_SECONDS", 0.0)
    lm = CausalLM(mistral())
    assert lm.plan == Plan(limit=WINDOW - 1)
    crosses_rightly(lm)
    with measure() as cost:
        lm.start([PROMPT[:5]]).extend(torch.tensor([0]), torch.tensor([1]))
    assert cost.prompt_tokens == 5, "short texts have their cache"


def test_a_cache_that_goes_wrong_beyond_the_window_is_used_up_to_it():
    lm = CausalLM(mistral(Forgetful))
    assert lm.plan.kind == "cache"
    assert lm.plan.limit == WINDOW - 1
    crosses_rightly(lm)


def test_a_large_window_is_crossed_by_the_trial(monkeypatch):
    crossed = []
    trial = verify._Verification._trial
    monkeypatch.setattr(verify._Verification, "_trial", lambda self, n: (crossed.append(max(n)), trial(self, n))[1])
    assert CausalLM(mistral(window=300)).plan == Plan()
    assert max(crossed) > 300


@pytest.mark.parametrize("name", ["llama-dynamic-ntk", "phi3-longrope8"])
def test_rotary_switches_end_the_cache_unasked(name: str):
    for lm in (CausalLM(network(name)), CausalLM(network(name), verify=False)):
        assert lm.plan == Plan(limit=7, whole=False)
        assert max(decoding_error(lm), scoring_error(lm)) < 1e-4


@pytest.mark.parametrize("name", ["roberta-decoder", "mpt", "gpt2", "opt", "bart-decoder", "biogpt", "ctrl"])
@torch.no_grad()
def test_the_longest_text_is_one_that_the_network_can_read(name: str):
    model = network(name)
    longest = longest_text(model)
    assert 100 < longest <= 128
    assert model(torch.ones(1, longest, dtype=torch.long).mul(3)).logits.shape[1] == longest


def test_features_of_a_text_do_not_depend_on_what_is_beside_it():
    lm = CausalLM(network("phi3-longrope8"))
    features = LMFeatures(lm)
    short, long = (3, 4, 5), tuple(range(3, 15))
    torch.testing.assert_close(features._forward([short, long])[0], features._forward([short])[0])


def test_lengths_are_read_from_any_config():
    for name, window in (("gpt_neo", 4), ("llama4_text", 4), ("recurrent_gemma", 4), ("mamba2", 4), ("gemma2", 4)):
        assert window in windows(network(name).config, 128), name
    assert windows(network("llama").config, 128) == turns(network("llama").config) == []
    assert windows(network("mistral-slide4").config, 4) == [], "no text is as long"
    assert turns(network("llama-dynamic-ntk").config) == turns(network("phi3-longrope8").config) == [8]
    assert longest_text(network("llama-dynamic-ntk")) == 32
    assert longest_text(network("bloom")) is None
    assert "max_position_embeddings" in lengths(network("llama").config)


@pytest.mark.parametrize(("name", "plan"), [("llama", "cache"), ("rwkv", "recompute"), ("gemma2", "cache")])
def test_half_precision_is_held_to_its_own_rounding(name: str, plan: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert CausalLM(network(name).to(torch.bfloat16)).plan.kind == plan


def test_logits_that_are_no_numbers_are_refused():
    model = network("llama")
    assert isinstance(model, LlamaForCausalLM)
    model.lm_head.weight[3] = float("nan")
    with pytest.raises(UnsupportedModelError, match="not finite"):
        CausalLM(model)
