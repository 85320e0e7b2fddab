"""A trained adapter as a prior."""

from __future__ import annotations

import copy
import warnings
from types import MethodType

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from toys.oracles import canonical_sequences
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ppl_align import SMC, SVI, CausalLM, Enumeration, ImportanceSampling, completion, reward
from ppl_align.core.errors import InputError, WeightsNotFound


@pytest.fixture(scope="module")
def trained(tiny_llama, tmp_path_factory):
    """A guide, and the folder it was saved in."""

    def program():
        x = completion("x", tiny_llama, [1, 2], max_new_tokens=3)
        reward("r", lambda t: 1.5 * (t == 2).sum(-1), x.tokens)

    engine = SVI(num_steps=8, num_particles=8, num_replicates=2, guide="lora", learning_rate=0.1)
    guide = engine.run(program, seed=0).guide
    folder = tmp_path_factory.mktemp("saved") / "praise"
    guide.save(folder)
    return guide, folder


@pytest.fixture(scope="module")
def base(tiny_llama, tmp_path_factory):
    """The network of ``tiny_llama`` in a folder, as a user would have it."""
    folder = tmp_path_factory.mktemp("base")
    tiny_llama.model.save_pretrained(folder)
    words = Tokenizer(WordLevel({str(v): v for v in range(7)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


TOKENS = canonical_sequences(7, 3, (6,), 6)


def scores(lm):
    return lm.completion([1, 2], 3).log_prob(TOKENS)


def test_a_saved_guide_comes_back_as_a_prior(tiny_llama, trained, base):
    guide, folder = trained
    part = guide.sites["x"]
    want = part.log_prob(tiny_llama.completion([1, 2], 3).expand([len(TOKENS)]), TOKENS).detach().float()
    before = scores(tiny_llama)
    assert not torch.allclose(want, before, atol=0.01), "it has learned something"
    for lm in (CausalLM(str(base), adapter=folder), CausalLM(tiny_llama.model, adapter=folder)):
        torch.testing.assert_close(scores(lm), want, rtol=0, atol=1e-5)
        assert lm.name.endswith("+praise")
        assert not any(p.requires_grad for p in lm.model.parameters())
    torch.testing.assert_close(scores(tiny_llama), before, rtol=0, atol=0)


def test_lms_with_and_without_an_adapter_share_the_frozen_weights(trained, base):
    _, folder = trained
    plain = CausalLM(str(base))
    before = scores(plain)
    adapted = CausalLM(str(base), adapter=folder)
    torch.testing.assert_close(scores(plain), before, rtol=0, atol=0)
    torch.testing.assert_close(scores(CausalLM(str(base))), before, rtol=0, atol=0)
    assert not torch.allclose(scores(adapted), before, atol=0.01)
    shared = {p.data_ptr() for p in plain.model.parameters()}
    assert all(p.data_ptr() in shared for name, p in adapted.model.named_parameters() if "lora" not in name)


def test_it_is_a_prior_like_any_other(trained, base):
    lm = CausalLM(str(base), adapter=trained[1])

    def program():
        x = completion("x", lm, [1], max_new_tokens=2)
        reward("r", lambda t: 0.5 * (t == 3).sum(-1), x.tokens)

    exact, sampled = Enumeration().run(program), ImportanceSampling(400, 4).run(program)
    assert float(sampled.log_evidence.mean()) == pytest.approx(float(exact.log_evidence), abs=0.05)
    assert sampled.lm.endswith("+praise")
    again = SVI(num_steps=2, num_particles=4, num_replicates=1, guide="lora").run(program)
    assert again.guide.sites["x"].lm.name.endswith("+praise+lora")


def test_what_is_no_adapter_or_does_not_fit_is_said_in_one_line(trained, tiny_llama, tmp_path):
    _, folder = trained
    narrow = LlamaForCausalLM(_changed(tiny_llama.model.config, hidden_size=8))
    deep = LlamaForCausalLM(_changed(tiny_llama.model.config, num_hidden_layers=3))
    shallow = LlamaForCausalLM(_changed(tiny_llama.model.config, num_hidden_layers=1))
    for model, where, error, says in (
        (tiny_llama.model, tmp_path, WeightsNotFound, "is no adapter: it holds no adapter_config.json"),
        (narrow, folder, InputError, "does not fit LlamaForCausalLM: size mismatch"),
        (deep, folder, InputError, "does not fit LlamaForCausalLM: the network alone has"),
        (shallow, folder, InputError, "does not fit LlamaForCausalLM: the adapter alone has"),
        (torch.nn.Sequential(torch.nn.Linear(2, 2)), folder, InputError, "does not fit"),
    ):
        if not hasattr(model, "config"):
            model.config = tiny_llama.model.config
        with pytest.raises(error, match=says) as caught:
            CausalLM(model, adapter=where)
        assert "\n" not in str(caught.value)


def _changed(config, **values):
    return type(config)(**{**config.to_dict(), **values})


# -- networks in training ------------------------------------------------------------------------------------------


@pytest.fixture
def student(tiny_llama):
    """A network in the middle of its training, as PEFT makes it: dropout on, adapters that require gradients."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=40, lora_dropout=0.5, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = peft.get_peft_model(LlamaForCausalLM(tiny_llama.model.config), config).train()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return network


def trainable(network):
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


PRIORS = [
    Enumeration(),
    ImportanceSampling(200, 8),
    SMC(200, num_replicates=8, twist="prefix"),
    SVI(num_steps=5, num_particles=200, num_replicates=8),
    SVI(num_steps=2, num_particles=200, num_replicates=8, guide="lora"),
]


@pytest.mark.parametrize("engine", PRIORS, ids=["exact", "importance", "smc", "head", "lora"])
def test_a_network_in_training_is_a_prior_and_goes_on_training(student, engine):
    before, learned = {k: v.clone() for k, v in student.state_dict().items()}, list(trainable(student))

    def program():
        x = completion("x", lm, [1, 2], max_new_tokens=2)
        reward("r", lambda t: (t == 2).double().sum(-1), x.tokens)

    lm = CausalLM(student)
    run = engine.run(program)
    exact = Enumeration().run(program).log_evidence.exp()
    found = run.log_evidence.exp()
    error = float(found.std()) / len(found) ** 0.5 if len(found) > 1 else 1e-9
    assert abs(float(found.mean() - exact)) < 4 * error, "one network throughout, without dropout"
    assert student.training
    assert list(trainable(student)) == learned != []
    assert all(parameter.grad is None for parameter in student.parameters())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_the_prior_is_the_network_as_it_is_by_now(student):
    lm = CausalLM(student)
    before = scores(lm)
    optimiser = torch.optim.SGD(trainable(student).values(), lr=1.0)
    student(input_ids=TOKENS[:8, :2], labels=TOKENS[:8, :2]).loss.backward()
    optimiser.step()
    after = scores(lm)
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(after, scores(CausalLM(copy.deepcopy(student))), rtol=1e-4, atol=1e-5)
    assert {p.data_ptr() for p in lm.model.parameters()} == {p.data_ptr() for p in student.parameters()}, "no copy"
    assert not after.requires_grad


def nudged(parameters):
    for parameter in parameters:
        parameter.data.add_(0.5 * torch.randn_like(parameter))


def fused(parameters):
    parameters = list(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    torch.optim.AdamW(parameters, lr=0.1, fused=True).step()


@pytest.mark.parametrize("change", [nudged, fused])
def test_a_change_that_the_weights_do_not_tell_of_is_seen(tiny_llama, change):
    network = LlamaForCausalLM(tiny_llama.model.config)
    lm = CausalLM(network)
    before = scores(lm)
    change(network.parameters())
    torch.testing.assert_close(scores(lm), scores(CausalLM(network)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, scores(lm), atol=1e-3)
    assert lm.packed_layers == 0
    assert CausalLM(network.requires_grad_(False)).packed_layers == tiny_llama.packed_layers


def test_the_twin_of_a_network_with_a_forward_of_its_own_has_one_of_its_own(student):
    """As mixed precision gives it: bound to the network that is being trained, dropout and all."""
    plain = scores(CausalLM(student))
    network = student.base_model.model
    network.forward = MethodType(type(network).forward, network)
    lm = CausalLM(student)
    torch.testing.assert_close(scores(lm), plain)
    torch.testing.assert_close(scores(CausalLM(network)), plain)
    assert network.training


def test_what_an_lm_is_unfrozen_for_is_said_in_one_line(student):
    lm = CausalLM(student)

    def program():
        completion("x", lm, [1], max_new_tokens=2)

    lm.model.train()
    with pytest.raises(InputError, match=r"in training mode, where dropout .* call lm.model.eval\(\) first"):
        ImportanceSampling(4).run(program)
    lm.model.eval()
    assert not lm.learned
    lm.model.requires_grad_(True)
    assert lm.learned
    with pytest.raises(InputError, match=r"parameters that require gradients: call lm.model.requires_grad_\(False\)"):
        SVI(num_steps=1, guide="lora").run(program)


def test_a_network_in_training_is_not_moved_by_its_twin(student):
    with pytest.raises(InputError, match="network in training is on cpu"):
        CausalLM(student, device="meta")
