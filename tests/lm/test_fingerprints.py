"""What the list of networks that need no trial says is what is measured, and nothing else is on it."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.integrations.neftune import neftune_post_forward_hook

from ppl_align import CausalLM
from ppl_align.lm import verify
from ppl_align.lm.verified import fingerprint, is_known, verified
from ppl_align.testing.held import fingerprint_if_right
from ppl_align.testing.zoo import RELEASED, ZOO, network

SMOL = "SmolLM2-135M"


pytestmark = pytest.mark.usefixtures("quiet_transformers")


def test_the_list_is_what_is_measured():
    assert verified() == dict(fingerprint_if_right(network(name)) for name in RELEASED), "run docs/supported_models.py"


def test_what_is_known_is_not_tried_again(monkeypatch):
    monkeypatch.setattr(verify, "measured_plan", None)
    monkeypatch.setattr(verify, "_FOUND", {})
    assert CausalLM(network(SMOL)).plan == verify.Plan()
    with pytest.raises(TypeError):
        CausalLM(network("gpt_neo"))


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mistral-slide4", "rwkv", "bart-decoder"])
def test_other_lengths_and_other_networks_are_not_known(name: str):
    assert not is_known(network(name))
    assert name in ZOO


def test_a_changed_network_is_not_known():
    model = network(SMOL)
    assert is_known(model)
    for changes in ({"max_position_embeddings": 8193}, {"mlp_bias": True}, {"_attn_implementation": "eager"}):
        other = network(SMOL)
        for name, value in changes.items():
            setattr(other.config, name, value)
        assert fingerprint(other) != fingerprint(model)
        assert not is_known(other)
    other = network(SMOL)
    other.model.forward = other.model.forward  # somebody's own
    assert not is_known(other)
    assert not is_known(copy.deepcopy(model).to(torch.bfloat16))
    other = network(SMOL)
    other.model.norm = Odd(other.model.norm)
    assert not is_known(other)


def test_a_network_that_was_asked_for_hidden_states_is_as_it_was():
    """transformers leaves the hooks that collect them in the network."""
    model = network(SMOL)
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2]]), output_hidden_states=True)
    assert any(module._forward_hooks for module in model.modules())
    assert is_known(model)


@pytest.mark.parametrize("hook", [neftune_post_forward_hook, lambda layer, args, out: out])
def test_a_network_with_a_hook_is_not_known(hook):
    """Whoever wrote it: transformers has some that change what is said."""
    model = network(SMOL)
    model.get_input_embeddings().register_forward_hook(hook)
    assert not is_known(model)
    model = network(SMOL)
    model.get_input_embeddings().register_forward_pre_hook(lambda layer, args: args)
    assert not is_known(model)


class Odd(torch.nn.Module):
    def __init__(self, inside: torch.nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inside(hidden)


@pytest.mark.lm
def test_the_network_that_comes_with_the_library_is_known(smollm2: CausalLM):
    assert is_known(smollm2.model)
    assert smollm2.plan == verify.Plan()
