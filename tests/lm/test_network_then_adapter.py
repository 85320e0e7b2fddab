"""An LM made of a network that then gets adapters and is merged: both read the weights that are there."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from ppl_align import CausalLM

PROMPT, TOKENS = (5, 6), torch.tensor([[7, 8, 3], [1, 1, 9]])


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
    shape = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = LlamaConfig(**shape, **heads, initializer_range=0.5, eos_token_id=2, pad_token_id=None)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def adapted(model: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, config).eval()


@torch.no_grad()
def plain(model: nn.Module) -> torch.Tensor:
    ids = torch.cat([torch.tensor([PROMPT]).expand(len(TOKENS), -1), TOKENS], 1)
    logits = model(input_ids=ids).logits[:, len(PROMPT) - 1 : -1]
    return logits.double().log_softmax(-1).gather(-1, TOKENS[..., None])[..., 0]


def assert_reads(lm: CausalLM, model: nn.Module) -> None:
    scored = lm.token_log_probs([PROMPT] * len(TOKENS), TOKENS).double()
    torch.testing.assert_close(scored, plain(model), atol=2e-5, rtol=0)


def test_a_merge_is_that_of_a_network_without_an_lm():
    model = llama()
    before = plain(model)
    lm = CausalLM(model)
    assert_reads(lm, model)
    with_adapter = adapted(model)
    assert_reads(lm, with_adapter)
    merged, right = with_adapter.merge_and_unload(), adapted(llama()).merge_and_unload()
    torch.testing.assert_close(plain(merged), plain(right), atol=1e-6, rtol=0)
    assert not torch.allclose(plain(merged), before, atol=0.1), "the merge is one"
    assert_reads(lm, right)
    torch.testing.assert_close(plain(copy.deepcopy(merged)), plain(right), atol=1e-6, rtol=0)
    torch.testing.assert_close(plain(merged.double()), plain(right), atol=1e-5, rtol=0)


def test_every_end_of_a_generation_config_ends_a_draw_of_a_saved_network(tmp_path):
    model = llama()
    model.generation_config = GenerationConfig(eos_token_id=[2, 4])
    model.lm_head.weight[4] *= 4
    model.save_pretrained(tmp_path)
    lm = CausalLM(LlamaForCausalLM.from_pretrained(tmp_path).eval().requires_grad_(False))
    torch.manual_seed(0)
    source = lm.completion(list(PROMPT), max_new_tokens=8)
    rows = source.sample((100,)).tolist()
    ended = [row for row in rows if 4 in row]
    assert len(ended) > 10
    assert all(v == source.pad_id for row in ended for v in row[row.index(4) + 1 :])
