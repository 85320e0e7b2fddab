"""Which layers a LoRA guide adapts, and what its base model is called."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys.networks import TOKENS, network, of_the_network, program_over
from toys.tiny import SHAPE
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from ppl_align import SVI, CausalLM
from ppl_align.core.errors import InputError
from ppl_align.guides.targets import candidates, linear_layers, with_new_adapter
from ppl_align.lm.names import portable

BASE = {**SHAPE, "vocab_size": 11, "bos_token_id": None, "eos_token_id": 6, "pad_token_id": None}
ROUTED = {
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": {
        "head_dim": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 24,
        "interleave_moe_layer_step": 1,
    },
}


def built(kind, **options):
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**BASE, **options}))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ROUTED)
def test_networks_of_experts_get_adapters_that_begin_without_effect(kind):
    model = built(kind, **ROUTED[kind])
    adapted = with_new_adapter(model, 2, "base", kind)
    torch.testing.assert_close(of_the_network(adapted), of_the_network(model), atol=1e-5, rtol=0)
    learning = [weight for weight in adapted.parameters() if weight.requires_grad]
    assert learning
    adapted(input_ids=TOKENS, use_cache=False).logits.log_softmax(-1)[..., 3].sum().backward()
    assert any(bool(weight.grad.abs().sum() > 0) for weight in learning if weight.grad is not None)
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_state_in_place_is_no_hindrance():
    sizes = {
        key: BASE[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "bos_token_id", "eos_token_id")
    }
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["rwkv"](**sizes)).eval().requires_grad_(False)
    adapted = with_new_adapter(model, 2, "base", "rwkv")
    adapted(input_ids=TOKENS, use_cache=False).logits.log_softmax(-1)[..., 3].sum().backward()
    assert any(weight.grad is not None for weight in adapted.parameters())


def test_candidates_are_peft_s_own_then_ever_fewer():
    model = network()
    found = list(candidates(model))
    assert [targets for targets, _ in found[:2]] == [None, "all-linear"]
    assert found[2] == (sorted({path.rsplit(".", 1)[-1] for path in linear_layers(model)}), [])
    assert not any("lm_head" in path for path in linear_layers(model)), "the unembedding is left alone"
    routed = built("phimoe", **ROUTED["phimoe"])
    targets, without = list(candidates(routed))[-1]
    assert without
    assert all(type(routed.get_submodule(path)) is not nn.Linear for path in without)
    assert {"q_proj", "k_proj"} <= set(targets)


class Wordy(nn.Linear):
    """A linear layer that says more than a linear layer does."""

    def forward(self, x):
        return super().forward(x), "and more"


def test_the_reason_is_given_where_nothing_can_be_adapted():
    class Bare(nn.Module):
        config = network().config

        def __init__(self):
            super().__init__()
            self.embed, self.odd = nn.Embedding(11, 4), Wordy(4, 11)

        def get_input_embeddings(self):
            return self.embed

        def prepare_inputs_for_generation(self):
            raise NotImplementedError

        def forward(self, input_ids, **options):
            from types import SimpleNamespace

            return SimpleNamespace(logits=self.odd(self.embed(input_ids))[0])

    with pytest.raises(
        InputError, match=r"finds no linear layer in mine that it could adapt \(.*tuple.*\): use"
    ) as said:
        with_new_adapter(Bare().requires_grad_(False), 2, "base", "mine")
    assert "\n" not in str(said.value)


def test_names_that_mean_the_same_everywhere(tmp_path, monkeypatch):
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    for given, want in {
        "org/model": "org/model",
        "model": "model",
        "my-model": "my-model",
        "./my-model": "my-model",
        "../elsewhere/my-model/": "my-model",
        "~/models/my-model": "my-model",
        r"C:\models\my-model": "my-model",
        r"models\my-model": "my-model",
        str(tmp_path / "my-model"): "my-model",
        "a/b/c": "c",
        "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "/x/models--org--a--b/snapshots/12ab": "org/a--b",
        r"D:\hub\models--org--model\snapshots\12ab": "org/model",
        ".": tmp_path.name,
    }.items():
        assert portable(given) == want, given
        assert portable(portable(given)) == portable(given), "a name is its own name"


def test_a_saved_guide_names_its_base_by_that_name(tmp_path):
    import json

    model = network()
    model.config._name_or_path = str(tmp_path / "machine" / "my-model")
    lm = CausalLM(model)
    assert portable(lm.name) == "my-model"
    program = program_over(lm)

    SVI(num_steps=1, num_particles=4, num_replicates=2, guide="lora").run(program).guide.save(tmp_path / "saved")
    said = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == "my-model"
