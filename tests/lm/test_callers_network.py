"""A network in memory is the caller's: nothing is done to it."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn
from toys.networks import (
    CONFIGS,
    PROMPT,
    SIZES,
    TOKENS,
    assert_seen,
    everything,
    lora,
    network,
    new_storage,
    of_the_lm,
    of_the_network,
    program_over,
)
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from ppl_align import SMC, SVI, CausalLM
from ppl_align.core.errors import InputError

KINDS = [*((kind, False) for kind in CONFIGS), *((kind, True) for kind in CONFIGS)]


@pytest.mark.parametrize(("kind", "training"), KINDS)
@pytest.mark.parametrize("wrap", [lambda model: model, lora], ids=["plain", "peft"])
def test_the_network_is_afterwards_what_it_was_before(kind, training, wrap):
    model = wrap(network(kind, training)).train(training)
    model.of_the_user = threading.Lock()
    before = everything(model)
    lm = CausalLM(model)
    program = program_over(lm)

    SMC(8, num_replicates=2, twist="prefix").run(program)
    SVI(num_steps=2, num_particles=4, num_replicates=2, guide="lora").run(program)
    assert everything(model) == before
    del model.of_the_user
    assert_seen(lm, model)


@pytest.mark.parametrize("training", [False, True])
def test_it_is_copied_pickled_and_saved_as_without_an_lm(training, tmp_path):
    model = network("llama", training)
    lm = CausalLM(model)
    of_the_lm(lm)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(of_the_network(again), of_the_network(model), atol=0, rtol=0)
        assert "forward" not in again.lm_head.__dict__
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    torch.testing.assert_close(of_the_network(read), of_the_network(model), atol=0, rtol=0)
    model.save_pretrained(tmp_path)
    saved = LlamaForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(of_the_network(saved), of_the_network(model), atol=0, rtol=0)


def test_the_lms_own_network_can_be_copied_and_pickled():
    lm = CausalLM(network())
    assert lm.packed_layers > 0
    for again in (copy.deepcopy(lm.model), pickle.loads(pickle.dumps(lm.model))):
        again.lm_head.weight.data.mul_(2)
        torch.testing.assert_close(of_the_lm(CausalLM(again)), of_the_network(again), atol=2e-5, rtol=0)
        assert not torch.allclose(of_the_lm(lm), of_the_network(again), atol=1e-3)


@pytest.mark.parametrize("adapted", [False, True])
def test_an_lm_can_be_copied_and_pickled(adapted):
    """And so can what holds one: guides, posteriors, mixtures."""
    model = lora(network()) if adapted else network()
    lm = CausalLM(model)
    want = of_the_lm(lm)
    for again in (copy.deepcopy(lm), pickle.loads(pickle.dumps(lm)), copy.copy(lm)):
        torch.testing.assert_close(of_the_lm(again), want, atol=2e-5, rtol=0)
        assert again.packed_layers == lm.packed_layers
        assert again.fingerprint == lm.fingerprint
    apart = copy.deepcopy(lm)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    torch.testing.assert_close(of_the_lm(apart), want, atol=2e-5, rtol=0)
    assert_seen(lm, model)


def test_modes_are_not_set_by_the_networks_own_methods():
    """Some layers merge their adapters into the weights when they are put into evaluation mode."""

    class Merging(nn.Linear):
        def train(self, mode: bool = True) -> Merging:
            if not mode:
                self.weight.data += 1.0
            return super().train(mode)

    model = network("llama", training=True)
    model.lm_head = Merging(16, 11, bias=False)
    before = model.lm_head.weight.clone()
    lm = CausalLM(model)
    of_the_lm(lm)
    assert torch.equal(model.lm_head.weight, before)


def test_weights_that_a_network_rescales_for_itself_are_left_to_the_caller():
    from transformers import RwkvConfig, RwkvForCausalLM

    sizes = {key: SIZES[key] for key in ("vocab_size", "eos_token_id", "bos_token_id")}
    model = RwkvForCausalLM(RwkvConfig(**sizes, hidden_size=8, num_hidden_layers=3, rescale_every=1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    want = of_the_network(model)
    lm = CausalLM(model, verify=False)
    with torch.no_grad():
        ids = torch.cat([torch.tensor([PROMPT]).expand(len(TOKENS), -1), TOKENS], 1)
        found = lm.model(input_ids=ids, use_cache=False).logits[:, 1:-1].double().log_softmax(-1)
    torch.testing.assert_close(found.gather(-1, TOKENS[..., None])[..., 0], want, atol=2e-3, rtol=0)  # epsilons
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# -- another type, another place -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_type_is_that_of_a_copy_which_no_longer_follows(kind, dtype, tmp_path):
    model = network(kind, training=True)
    model.save_pretrained(tmp_path)
    before = everything(model)
    lm = CausalLM(model, dtype=dtype, verify=False)
    assert everything(model) == before
    assert {weight.dtype for weight in lm.model.parameters()} == {dtype}
    assert str(dtype).removeprefix("torch.") in repr(lm)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    kept = of_the_lm_at_once(lm)
    torch.testing.assert_close(kept, of_the_lm_at_once(CausalLM(read, verify=False)), atol=0, rtol=0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.3)
    assert torch.equal(of_the_lm_at_once(lm), kept)


def of_the_lm_at_once(lm):
    return lm.token_log_probs([PROMPT] * len(TOKENS), TOKENS)


def test_the_type_and_the_place_that_it_has_make_no_copy():
    model = network()
    lm = CausalLM(model, dtype=torch.float32, device="cpu")
    new_storage(model)
    assert_seen(lm, model)
    assert torch.equal(of_the_lm(CausalLM(model, dtype="float32")), of_the_lm(lm))


def test_another_place_is_that_of_a_copy():
    model = network()
    before = everything(model)
    lm = CausalLM(model, device="meta", verify=False)
    assert {weight.device.type for weight in lm.model.parameters()} == {"meta"}
    assert lm.device.type == "meta"
    assert everything(model) == before


def test_options_that_would_do_nothing_are_refused():
    with pytest.raises(InputError, match="revision= is for reading a network from disk"):
        CausalLM(network(), revision="main")
    with pytest.raises(InputError, match=r"dtype=torch\.int8 is no floating type"):
        CausalLM(network(), dtype=torch.int8)
    with pytest.raises(InputError, match="dtype='half16' is no floating type"):
        CausalLM(network(), dtype="half16")
