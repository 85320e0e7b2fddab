"""Rows of a hybrid cache: all of their state moves with them, recurrent and convolutional states included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toys.tiny import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM

from ppl_align import CausalLM

BASE: dict[str, Any] = {**SHAPE, "vocab_size": 11, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 10}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 4, "mamba_d_state": 4, "mamba_n_groups": 1, "mamba_chunk_size": 4}
LINEAR = {
    "head_dim": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
HYBRIDS: dict[str, dict[str, Any]] = {
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 16},
    "qwen3_5_text": LINEAR,
    "lfm2": {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
}


@pytest.mark.parametrize("kind", HYBRIDS)
@torch.no_grad()
def test_rows_that_are_swapped_repeated_and_dropped_keep_their_state(kind: str):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**BASE, **HYBRIDS[kind]}))
    for parameter in model.requires_grad_(False).eval().parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.5)
    rows = [(5, 6, 7), (9, 8, 7)]
    decoder = CausalLM(model).start(rows)
    for parents, tokens in (([1, 0], [2, 3]), ([0, 0, 1], [4, 5, 6]), ([2, 0], [7, 8])):
        decoder = decoder.extend(torch.tensor(parents), torch.tensor(tokens))
        rows = [(*rows[parent], token) for parent, token in zip(parents, tokens, strict=True)]
        alone = torch.stack([model(torch.tensor([row]), use_cache=False).logits[0, -1] for row in rows])
        torch.testing.assert_close(decoder.log_probs, alone.log_softmax(-1), atol=1e-4, rtol=0)
