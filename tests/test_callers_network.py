"""A network in memory is the caller's: nothing is done to it, and what the caller does to it is seen."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings
from functools import partial
from types import MethodType

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM, MistralConfig

from ppl_align import SMC, SVI, CausalLM, completion, reward
from ppl_align.errors import InputError, UnsupportedModelError

SIZES = {"vocab_size": 11, "eos_token_id": 6, "bos_token_id": None, "pad_token_id": None, "initializer_range": 0.6}
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attention_dropout": 0.5,
}
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


KINDS = [*((kind, False) for kind in CONFIGS), *((kind, True) for kind in CONFIGS)]


@pytest.mark.parametrize(("kind", "training"), KINDS)
@pytest.mark.parametrize("wrap", [lambda model: model, lora], ids=["plain", "peft"])
def test_the_network_is_afterwards_what_it_was_before(kind, training, wrap):
    model = wrap(network(kind, training)).train(training)
    model.of_the_user = threading.Lock()
    before = everything(model)
    lm = CausalLM(model)

    def program():
        x = completion("x", lm, PROMPT, max_new_tokens=2)
        reward("r", lambda t: (t == 2).double().sum(-1), x.tokens)

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


# -- what the caller does to it ------------------------------------------------------------------------------------


def head(model: nn.Module) -> nn.Parameter:
    return model.get_output_embeddings().weight


def new_storage(model):
    head(model).data = torch.randn_like(head(model))


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

    def program():
        x = completion("x", lm, PROMPT, max_new_tokens=2)
        reward("r", lambda t: (t == 2).double().sum(-1), x.tokens)

    from ppl_align import Exact

    for _ in range(2):
        found = Exact().run(program).log_evidence
        torch.testing.assert_close(found, Exact().run(_over(CausalLM(copy.deepcopy(model)))).log_evidence)
        head(model).data[2, 3] += 30.0
    assert lm.packed_layers == CausalLM(model).packed_layers > 0


def _over(lm):
    def program():
        x = completion("x", lm, PROMPT, max_new_tokens=2)
        reward("r", lambda t: (t == 2).double().sum(-1), x.tokens)

    return program


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
    guide = SVI(num_steps=2, num_particles=4, num_replicates=2, guide="lora").run(_over(lm)).guide
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
