"""What the caller does to a network in memory is seen by every LM over it, whenever a text is begun."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from types import MethodType

import pytest
import torch
from torch import nn
from toys.networks import (
    PROMPT,
    TOKENS,
    assert_seen,
    head,
    lora,
    network,
    new_storage,
    of_the_lm,
    of_the_network,
    program_over,
)

from ppl_align import SVI, CausalLM
from ppl_align.core.errors import InputError, UnsupportedModelError


def new_parameter(model):
    model.get_output_embeddings().weight = nn.Parameter(torch.randn_like(head(model)))


@torch.no_grad()
def in_place(model):
    for weight in model.parameters():
        weight.mul_(1.3)


def through_data(model):
    for weight in model.parameters():
        weight.data.mul_(1.3)


def one_number_through_data(model):
    head(model).data[2, 3] += 30.0


def one_row_through_data(model):
    head(model).data[5] = 0.0


def rows_swapped_through_data(model):
    head(model).data[:] = head(model).data.flip(0)


def through_numpy(model):
    head(model).detach().numpy()[1:3] *= 3.0


def fused(model):
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()


def foreach(model):
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    torch.optim.SGD(model.parameters(), lr=0.1, foreach=True).step()


def loaded(model):
    model.load_state_dict(network(_kind(model)).state_dict())


def assigned(model):
    model.load_state_dict(network(_kind(model)).state_dict(), assign=True)


def doubled(model):
    model.double()


def another_layer(model):
    layer = nn.Linear(16, 11)
    model.set_output_embeddings(layer)


def hooked(model):
    model.get_output_embeddings().register_forward_hook(lambda layer, args, out: 2 * out)


def patched(model):
    layer = model.get_output_embeddings()
    layer.forward = MethodType(lambda self, x: 2 * nn.Linear.forward(self, x), layer)


def partly_patched(model):
    layer = model.get_output_embeddings()
    layer.forward = partial(lambda own, x: 2 * nn.functional.linear(x, own.weight), layer)


def normed(model):
    nn.utils.parametrizations.weight_norm(model.get_output_embeddings())
    model.get_output_embeddings().parametrizations.weight.original0.data.mul_(2)


@torch.no_grad()
def pruned(model):
    from torch.nn.utils import prune

    prune.random_unstructured(model.get_output_embeddings(), "weight", amount=0.5)


def eager(model):
    model.set_attn_implementation("eager")
    in_place(model)


def _kind(model):
    tied = model.config.tie_word_embeddings and model.config.model_type == "llama"
    return "tied" if tied else model.config.model_type


CHANGES = [
    new_storage,
    new_parameter,
    in_place,
    through_data,
    one_number_through_data,
    one_row_through_data,
    rows_swapped_through_data,
    through_numpy,
    fused,
    foreach,
    loaded,
    assigned,
    doubled,
    another_layer,
    hooked,
    patched,
    partly_patched,
    normed,
    pruned,
    eager,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("kind", "training"), [("llama", False), ("llama", True), ("tied", False)])
def test_what_is_done_to_it_is_seen(change, kind, training):
    model = network(kind, training)
    lm = CausalLM(model)
    before = of_the_lm(lm)
    change(model)
    if change is not doubled:
        assert not torch.allclose(of_the_network(model), before, atol=1e-3), "the change is one"
    assert_seen(lm, model)
    model.get_output_embeddings().weight.data.mul_(0.5)  # and once more
    assert_seen(lm, model)


@pytest.mark.parametrize("kind", ["mistral", "gpt2"])
def test_what_is_done_to_networks_of_other_kinds_is_seen(kind):
    model = network(kind, training=True)
    lm = CausalLM(model)
    for change in (new_storage, one_row_through_data, fused, hooked, normed):
        change(model)
        assert_seen(lm, model)


@pytest.mark.parametrize("training", [False, True])
def test_what_is_done_to_its_adapters_is_seen(training):
    model = lora(network("llama", training)).train(training)
    lm = CausalLM(model)
    assert_seen(lm, model)
    with model.disable_adapter():
        assert_seen(lm, model)
    model.merge_adapter()
    assert_seen(lm, model)
    model.unmerge_adapter()
    assert_seen(lm, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_adapter("other", model.peft_config["default"])
    assert_seen(lm, model)
    model.set_adapter("other")
    assert_seen(lm, model)
    model.set_adapter("default")
    for name, weight in model.named_parameters():
        if "lora_A" in name:
            weight.data.neg_()
    assert_seen(lm, model)
    before = of_the_lm(lm)
    merged = model.merge_and_unload()
    assert_seen(lm, merged)
    torch.testing.assert_close(of_the_lm(lm), before, atol=1e-4, rtol=0)
    head(merged).data = torch.randn_like(head(merged))
    assert_seen(lm, merged)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"], ["up_proj", "lm_head"]])
def test_a_guide_begins_as_the_adapted_network_and_learns_beside_its_adapters(targets):
    from ppl_align.guides.targets import with_new_adapter

    model = lora(network(), targets).train()
    lm = CausalLM(model)
    adapted = with_new_adapter(lm.model, 2, "base", "name")
    torch.testing.assert_close(of_the_network(adapted), of_the_network(model), atol=2e-5, rtol=1e-5)
    learning = [weight for weight in adapted.parameters() if weight.requires_grad]
    assert {id(weight) for weight in learning}.isdisjoint(map(id, lm.model.parameters()))
    assert not lm.learned
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.cat([torch.tensor([PROMPT]).expand(len(TOKENS), -1), TOKENS], 1)
    for _ in range(2):  # what begins at zero has a gradient, its counterpart from the second step on
        adapted(input_ids=ids).logits.sum().backward()
        torch.optim.SGD(learning, lr=0.5).step()
    assert not torch.allclose(of_the_network(adapted), of_the_network(model), atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.merge_adapter()
    of_the_lm(lm)
    with pytest.raises(InputError, match=r"adapters are merged into name.*unmerge_adapter"):
        with_new_adapter(lm.model, 2, "base", "name")


def test_what_a_run_began_with_is_laid_out_anew_for_the_next_one():
    model = network()
    lm = CausalLM(model)
    program = program_over(lm)

    from ppl_align import Enumeration

    for _ in range(2):
        found = Enumeration().run(program).log_evidence
        torch.testing.assert_close(found, Enumeration().run(program_over(CausalLM(copy.deepcopy(model)))).log_evidence)
        head(model).data[2, 3] += 30.0
    assert lm.packed_layers == CausalLM(model).packed_layers > 0


def test_an_lm_over_the_network_of_an_lm_follows_the_callers():
    model = network()
    first = CausalLM(model)
    second = CausalLM(first.model)
    for change in (new_storage, one_number_through_data, hooked, doubled):
        change(model)
        assert_seen(second, model)
        assert_seen(first, model)


def test_a_guide_and_an_adapter_follow_the_weights_below_them(tmp_path):
    model = network()
    lm = CausalLM(model)
    guide = SVI(num_steps=2, num_particles=4, num_replicates=2, guide="lora").run(program_over(lm)).guide
    guide.save(tmp_path / "saved")
    adapted = CausalLM(model, adapter=tmp_path / "saved")
    one_number_through_data(model)
    new_storage(model)
    fresh = CausalLM(copy.deepcopy(model), adapter=tmp_path / "saved")
    torch.testing.assert_close(of_the_lm(adapted), of_the_lm(fresh), atol=2e-5, rtol=0)
    torch.testing.assert_close(of_the_lm(guide.sites["x"].lm), of_the_lm(fresh), atol=2e-5, rtol=0)
    another_layer(model)
    for lost in (adapted, guide.sites["x"].lm):
        with pytest.raises(InputError, match="has changed since the LM was made, below the adapter"):
            of_the_lm(lost)


def test_a_change_that_cannot_be_followed_is_said_in_one_line():
    model = network()
    lm = CausalLM(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(13)
    with pytest.raises(InputError, match="another vocabulary now; make the LM anew"):
        of_the_lm(lm)
    tied = network("llama", training=True)
    inner = tied.forward
    tied.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    with pytest.raises(UnsupportedModelError, match=r"replaced by a function that belongs to this network alone"):
        CausalLM(tied)


def test_compiled_networks_are_read_as_they_are_inside():
    model = network("llama", training=True)
    lm = CausalLM(torch.compile(model, backend="eager"))
    assert_seen(lm, model)
    through_data(model)
    assert_seen(lm, model)
    model.compile(backend="eager")
    assert_seen(CausalLM(model), network_like(model))


def network_like(model):
    plain = network(_kind(model))
    plain.load_state_dict(model.state_dict())
    return plain
