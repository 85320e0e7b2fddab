"""Networks that must stay where they are: spread by ``device_map=``, or quantised."""

from __future__ import annotations

import warnings

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from toys.networks import TOKENS, everything, network, of_the_lm, of_the_network, program_over
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from ppl_align import SVI, CausalLM, Enumeration
from ppl_align.core.errors import InputError
from ppl_align.lm.placement import fixed_because, input_device

LAYERS = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]
PARTS = {
    "two on the CPU": {"model": "cpu", "lm_head": "cpu"},
    "a layer on disk": {**dict.fromkeys(LAYERS, "cpu"), "model.layers.0": "disk"},
    "both ends on disk": {**dict.fromkeys(LAYERS, "cpu"), "model.embed_tokens": "disk", "lm_head": "disk"},
    "whole": {"": "cpu"},
    "by accelerate": "auto",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("network")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network().save_pretrained(where)
    words = Tokenizer(WordLevel({str(v): v for v in range(11)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(where)
    return where


def spread(folder, parts, tmp_path):
    return {"device_map": PARTS[parts], **({"offload_folder": str(tmp_path)} if "disk" in parts else {})}


@pytest.mark.parametrize("parts", PARTS)
def test_a_network_that_is_spread_runs_where_it_is(folder, parts, tmp_path):
    plain = CausalLM(str(folder))
    lm = CausalLM(str(folder), **spread(folder, parts, tmp_path))
    torch.testing.assert_close(of_the_lm(lm), of_the_lm(plain), atol=2e-5, rtol=0)
    assert lm.device == torch.device("cpu")
    found, want = (Enumeration().run(program_over(one)).log_evidence for one in (lm, plain))
    torch.testing.assert_close(found, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("parts", ["a layer on disk", "both ends on disk"])
def test_a_network_in_memory_that_is_spread_is_not_touched(folder, parts, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder, **spread(folder, parts, tmp_path))
    before = everything(model)
    lm = CausalLM(model)
    torch.testing.assert_close(of_the_lm(lm), of_the_lm(CausalLM(str(folder))), atol=2e-5, rtol=0)
    assert everything(model) == before
    ends = model.lm_head.weight.is_meta
    for guide in ("lora", "head") if ends else ("lora",):
        with pytest.raises(InputError, match=rf'guide="{guide}".* on disk: use guide='):
            SVI(num_steps=2, num_particles=4, num_replicates=2, guide=guide).run(program_over(lm))
    if not ends:
        guided = SVI(num_steps=2, num_particles=4, num_replicates=2, guide="head").run(program_over(lm))
        assert torch.isfinite(guided.log_evidence).all()
    model(input_ids=TOKENS)
    assert torch.isfinite(lm.start([(3, 8)]).log_probs).all(), "offloaded weights come and go"
    assert fixed_because(model) == "is spread by device_map="
    assert input_device(model) == torch.device("cpu")
    for option in ({"device": "meta"}, {"dtype": torch.bfloat16}):
        with pytest.raises(InputError, match="is spread by device_map=, and stays where it is and as it is: leave"):
            CausalLM(model, **option)


def test_a_place_for_all_and_a_place_for_each_are_not_given_together(folder):
    with pytest.raises(InputError, match="one place, device_map= says where its parts go: give one"):
        CausalLM(str(folder), device="cpu", device_map="auto")


class Quantised(LlamaForCausalLM):
    """As bitsandbytes leaves a network: int8 weights that nothing may move or convert."""

    is_quantized = True
    quantization_method = "bitsandbytes"

    def to(self, *args, **kwargs):
        raise ValueError("`.to` is not supported for `4-bit` or `8-bit` bitsandbytes models")

    half = float = double = cuda = cpu = to


class Int8Linear(torch.nn.Linear):
    """Keeps what it needs beside its weight, as quantised layers do."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = torch.nn.Parameter((layer.weight.detach() / self.scale).round().to(torch.int8), False)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


@pytest.fixture
def quantised(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Quantised.from_pretrained(folder).requires_grad_(False)
    for block in model.model.layers:
        block.mlp.up_proj = Int8Linear(block.mlp.up_proj)
    return model


def test_a_quantised_network_is_neither_moved_nor_converted(quantised, folder, monkeypatch):
    before = everything(quantised)
    lm = CausalLM(quantised)
    want = of_the_network(quantised)
    torch.testing.assert_close(of_the_lm(lm), want, atol=2e-5, rtol=0)
    assert everything(quantised) == before
    assert lm.model.model.layers[0].mlp.up_proj.scale is quantised.model.layers[0].mlp.up_proj.scale, (
        "nothing is copied"
    )
    CausalLM(quantised, device="cpu")
    with pytest.raises(InputError, match="is quantised, and stays where it is and as it is: leave dtype="):
        CausalLM(quantised, dtype=torch.bfloat16)
    with pytest.raises(InputError, match="is quantised, and stays where it is and as it is: leave device='meta' out"):
        CausalLM(quantised, device="meta")
    quantised.model.layers[0].mlp.up_proj.scale.mul_(1.5)
    assert not torch.allclose(of_the_lm(lm), want, atol=1e-3)
    torch.testing.assert_close(of_the_lm(lm), of_the_network(quantised), atol=2e-5, rtol=0)
    monkeypatch.setattr("ppl_align.lm.acquire.load_causal", lambda name, **keywords: (quantised, None))
    for keywords in ({}, {"device": "cpu"}):
        again = CausalLM(str(folder), verify=False, revision=repr(keywords), **keywords)
        assert torch.equal(again.token_log_probs([(3, 8)] * 3, TOKENS), lm.token_log_probs([(3, 8)] * 3, TOKENS))
    with pytest.raises(InputError, match="is quantised, and stays where it is"):
        CausalLM(str(folder), device="meta", verify=False)
