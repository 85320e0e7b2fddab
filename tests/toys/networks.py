"""Tiny networks of several kinds as a caller holds them, and what they say with an LM over them and without."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

from ppl_align import CausalLM, completion, reward
from toys.tiny import SHAPE

SIZES = {"vocab_size": 11, "eos_token_id": 6, "bos_token_id": None, "pad_token_id": None, "initializer_range": 0.6}
LLAMA = {**SHAPE, "attention_dropout": 0.5}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, **LLAMA, tie_word_embeddings=False),
    "tied": LlamaConfig(**SIZES, **LLAMA, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, **LLAMA, sliding_window=8),
    "gpt2": GPT2Config(**SIZES, n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0.5, embd_pdrop=0.5),
}
TOKENS = torch.tensor([[1, 5, 3, 2], [4, 4, 0, 9], [10, 2, 7, 8]])
PROMPT = (3, 8)


def network(kind: str = "llama", training: bool = False) -> nn.Module:
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind])).train(training).requires_grad_(training)


def program_over(
    lm: CausalLM, max_new_tokens: int = 2, scale: float = 1.0, upper: float | None = None
) -> Callable[[], None]:
    """A completion, and as a reward how often it says token 2."""

    def program() -> None:
        x = completion("x", lm, PROMPT, max_new_tokens=max_new_tokens)
        reward("r", lambda t: scale * (t == 2).double().sum(-1), x.tokens, upper=upper)

    return program


def lora(model: nn.Module, targets: str | list[str] = "all-linear") -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=targets, lora_dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3)
    return adapted


@torch.no_grad()
def of_the_network(model: nn.Module) -> torch.Tensor:
    """log p of ``TOKENS`` from plain forwards of a copy of the caller's network, without dropout."""
    ids = torch.cat([torch.tensor([PROMPT]).expand(len(TOKENS), -1), TOKENS], 1)
    logits = copy.deepcopy(model).eval()(input_ids=ids).logits[:, len(PROMPT) - 1 : -1]
    return logits.double().log_softmax(-1).gather(-1, TOKENS[..., None])[..., 0]


def of_the_lm(lm: CausalLM) -> torch.Tensor:
    """The same, in the two ways an LM reads: a text at once, and token by token."""
    scored = lm.token_log_probs([PROMPT] * len(TOKENS), TOKENS)
    decoder, steps = lm.start([PROMPT]), []
    for t in range(TOKENS.shape[1]):
        rows = torch.arange(len(TOKENS)) if t else torch.zeros(len(TOKENS), dtype=torch.long)
        steps.append(decoder.log_probs[rows, TOKENS[:, t]])
        decoder = decoder.extend(rows, TOKENS[:, t])
    torch.testing.assert_close(torch.stack(steps, 1), scored, atol=2e-5, rtol=1e-5)
    return scored.double()


def assert_seen(lm: CausalLM, model: nn.Module) -> None:
    torch.testing.assert_close(of_the_lm(lm), of_the_network(model), atol=2e-5, rtol=1e-5)


def everything(model: nn.Module) -> list[object]:
    """What a module tree is, attribute by attribute; weights by place and value."""
    found: list[object] = []
    for name, module in model.named_modules():
        found.append((name, id(module), type(module), module.training, sorted(module.__dict__)))
        for key, value in module.__dict__.items():
            if isinstance(value, dict):
                found.append((key, [(k, id(v)) for k, v in value.items()]))
            elif isinstance(value, list):
                found.append((key, [id(v) for v in value]))
            elif key != "training":
                found.append((key, value if isinstance(value, (bool, int, float, str)) else id(value)))
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        place = weight.data_ptr(), weight.device, weight.dtype, weight.requires_grad, weight._version, weight.grad
        found.append((name, id(weight), place, [] if weight.is_meta else weight.detach().flatten().tolist()))
    if hasattr(model, "config"):
        found.append(model.config.to_dict())
    return found


def head(model: nn.Module) -> nn.Parameter:
    return model.get_output_embeddings().weight


def new_storage(model):
    head(model).data = torch.randn_like(head(model))
