"""A guide's parameters can be read; guides save and load, over the LM that they were trained for."""

import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from toys.tiny import tiny_llama, tiny_tokenizer

from ppl_align import SMC, SVI, CausalLM, ImportanceSampling, MarkovLM, Mixture, completion, load_guide, reward
from ppl_align.core.errors import InputError
from ppl_align.guides import AutoGuide
from ppl_align.lm.names import portable


def markov(shift=0.0):
    return MarkovLM(torch.arange(9.0).reshape(3, 3) / 9 + shift * torch.eye(3), torch.zeros(3), eos_id=0)


def network(seed=0):
    return CausalLM(tiny_llama(seed), tiny_tokenizer())


def make(lm, latents=False, T=3):
    def program():
        if latents:
            pyro.sample("coin", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
            pyro.sample("die", dist.Categorical(torch.ones(3) / 3))
        x = completion("x", lm, [1], max_new_tokens=T)
        reward("twos", lambda t: (t == 2).sum(-1).double(), x.tokens, beta=0.5)

    return program


def trained(program, kind, **options):
    return SVI(num_steps=5, num_particles=8, num_replicates=2, guide=kind, **options).run(program, seed=1)


CASES = [
    (markov, "table", False),
    (markov, "table", True),
    (markov, "markov", True),
    (network, "head", False),
    (network, "head", True),
    (network, "lora", False),
    (network, "lora", True),
    (lambda: Mixture([network(), network(1)]), "head", False),
    (lambda: Mixture([markov(), markov(1.0)]), "table", False),
]
IDS = [f"{kind}{'+latents' if latents else ''}-{i}" for i, (_, kind, latents) in enumerate(CASES)]


@pytest.mark.parametrize(("lm", "kind", "latents"), CASES, ids=IDS)
def test_a_guide_comes_back_as_it_was(lm, kind, latents, tmp_path):
    if kind == "lora":
        pytest.importorskip("peft")
    program = make(lm(), latents)
    guide = trained(program, kind).guide
    assert guide.parameters
    assert all(isinstance(v, torch.Tensor) and not v.requires_grad for v in guide.parameters.values())
    assert any(float(v.abs().max()) > 0 for v in guide.parameters.values())
    assert all(name.startswith(("x.", "z.", "coin.", "die.")) for name in guide.parameters)
    guide.save(tmp_path / "guide")
    again = load_guide(tmp_path / "guide", lm())
    assert set(again.parameters) == set(guide.parameters) or kind == "lora"  # the frozen parts of an adapter are not
    for engine in (ImportanceSampling(16, 2, proposal=guide), SMC(16, 2, proposal=guide)):
        one = engine.run(program, seed=5)
        two = type(engine)(16, 2, proposal=again).run(make(lm(), latents), seed=5)
        torch.testing.assert_close(one.log_weight, two.log_weight)
        assert torch.equal(one.particles["x"].tokens, two.particles["x"].tokens)
    assert again.provenance == guide.provenance
    assert not list(tmp_path.glob(".*"))


def test_the_parameters_are_those_that_pyro_trains():
    program = make(markov(), latents=True)
    seen = {}

    def watch(done, total, note):
        seen.update({name.replace("\n", "."): value.detach().clone() for name, value in pyro.get_param_store().items()})

    guide = SVI(num_steps=4, num_particles=8, num_replicates=1).run(program, progress=watch).guide
    assert set(guide.parameters) == set(seen)
    for name, value in guide.parameters.items():
        torch.testing.assert_close(value, seen[name])


def test_sites_that_share_a_network_share_its_parameters(tmp_path):
    pytest.importorskip("peft")
    lm = network()

    def program():
        completion("x", lm, [1], max_new_tokens=2)
        y = completion("y", lm, [2], max_new_tokens=2)
        reward("twos", lambda t: (t == 2).sum(-1).double(), y.tokens)

    guide = trained(program, "lora").guide
    ids = [value.data_ptr() for value in guide.parameters.values()]
    assert len(ids) == len(set(ids))
    again = load_guide(guide.save(tmp_path / "g"), lm)
    assert again.sites["x"] is again.sites["y"]


def test_parameters_of_a_guide_of_ones_own_are_as_they_are_used():
    lm = markov()

    def own():
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        pyro.param("shift", torch.tensor(0.5))
        completion("x", lm, [1], max_new_tokens=1)
        pyro.sample("z", dist.Normal(0.0, scale))

    def program():
        completion("x", lm, [1], max_new_tokens=1)
        pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = SVI(num_steps=1, num_particles=4, num_replicates=1, guide=own, learning_rate=1e-6).run(program).guide
    assert set(guide.parameters) == {"scale", "shift"}
    assert float(guide.parameters["scale"]) == pytest.approx(2.0, abs=1e-3)
    with pytest.raises(InputError, match="program of your own"):
        guide.save("anywhere")


def test_an_untrained_guide_has_no_parameters_and_nothing_to_save(tmp_path):
    guide = AutoGuide(make(markov()))
    assert guide.parameters == {}
    with pytest.raises(InputError, match="was not trained"):
        guide.save(tmp_path / "g")
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    ("lm", "other", "kind"),
    [
        (markov, lambda: markov(1.0), "table"),
        (markov, lambda: markov(1.0), "markov"),
        (network, lambda: network(1), "head"),
        (network, lambda: network(1), "lora"),
        (network, lambda: CausalLM(tiny_llama()), "head"),  # another tokenizer: none
        (network, markov, "head"),
    ],
)
def test_it_loads_onto_no_other_lm(lm, other, kind, tmp_path):
    if kind == "lora":
        pytest.importorskip("peft")
    trained(make(lm()), kind).guide.save(tmp_path / "g")
    with pytest.raises(InputError, match="was trained for") as caught:
        load_guide(tmp_path / "g", other())
    assert "\n" not in str(caught.value)
    assert lm().fingerprint in str(caught.value)
    assert other().fingerprint in str(caught.value)
    with pytest.raises(InputError, match="was given no LM"):
        load_guide(tmp_path / "g")


def test_what_was_trained_at_one_precision_serves_at_another(tmp_path):
    half = CausalLM(tiny_llama().to(torch.bfloat16), tiny_tokenizer())
    trained(make(network()), "head").guide.save(tmp_path / "g")
    assert half.fingerprint != network().fingerprint
    ImportanceSampling(4, 1, proposal=load_guide(tmp_path / "g", half)).run(make(half))


def test_two_lms_each_get_their_own_part(tmp_path):
    a, b = markov(), markov(1.0)

    def program():
        completion("x", a, [1], max_new_tokens=2)
        y = completion("y", b, [1], max_new_tokens=2)
        reward("twos", lambda t: (t == 2).sum(-1).double(), y.tokens)

    guide = trained(program, "table").guide
    guide.save(tmp_path / "g")
    again = load_guide(tmp_path / "g", markov(1.0), markov())
    assert {site: lm.fingerprint for site, lm in again.lms.items()} == {"x": a.fingerprint, "y": b.fingerprint}


# -- files ------------------------------------------------------------------------------------------------


def test_a_half_written_folder_never_stays(tmp_path, monkeypatch):
    guide = trained(make(markov()), "table").guide
    guide.save(tmp_path / "g")
    before = {path.name: path.read_bytes() for path in (tmp_path / "g").iterdir()}
    real = Path.write_text

    def full(self, *args, **kwargs):
        if self.name == "guide.json":
            raise OSError(28, "No space left on device")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    for folder in ("g", "new"):
        with pytest.raises(InputError, match=f"cannot save to .*{folder}: No space left"):
            guide.save(tmp_path / folder)
    assert [path.name for path in tmp_path.iterdir()] == ["g"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "g").iterdir()} == before


def test_interrupted_by_hand_it_leaves_nothing(tmp_path, monkeypatch):
    guide = trained(make(markov()), "table").guide

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupt)
    with pytest.raises(KeyboardInterrupt):
        guide.save(tmp_path / "g")
    assert list(tmp_path.iterdir()) == []


def test_only_a_guide_is_replaced(tmp_path):
    guide = trained(make(markov()), "table").guide
    (tmp_path / "empty").mkdir()
    guide.save(tmp_path / "empty")
    guide.save(tmp_path / "empty")  # again
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    with pytest.raises(InputError, match="is not empty"):
        guide.save(tmp_path / "notes")
    assert (tmp_path / "notes" / "diary.txt").read_text() == "dear diary"
    with pytest.raises(InputError, match="it is a file"):
        guide.save(tmp_path / "notes" / "diary.txt")


def test_broken_folders_are_told_in_one_line(tmp_path):
    lm = markov()
    folder = trained(make(lm), "table").guide.save(tmp_path / "g")
    with pytest.raises(InputError, match="holds no guide"):
        load_guide(tmp_path, lm)
    index = json.loads((folder / "guide.json").read_text())
    for broken, said in (
        ("{", "cannot be read"),
        (json.dumps(index | {"format": 99}), "newer ppl-align"),
        (json.dumps({k: v for k, v in index.items() if k != "sites"}), "incomplete"),
        (json.dumps(index | {"sites": {"x": {**index["sites"]["x"], "tensors": {"tables.1": "gone"}}}}), "incomplete"),
        (json.dumps(index | {"sites": {"x": {**index["sites"]["x"], "kind": "dream"}}}), "incomplete"),
        ("[]", "incomplete"),
    ):
        (folder / "guide.json").write_text(broken)
        with pytest.raises(InputError, match=said) as caught:
            load_guide(folder, lm)
        assert "\n" not in str(caught.value)
    (folder / "guide.json").write_text(json.dumps(index))
    (folder / "guide.safetensors").write_bytes(b"\x00" * 10)
    with pytest.raises(InputError, match="cannot be read"):
        load_guide(folder, lm)


def test_nothing_of_this_machine_is_in_the_folder(tmp_path):
    """Neither in the index nor in the adapter: the base model goes by its own name."""
    pytest.importorskip("peft")
    tiny_llama().save_pretrained(tmp_path / "my-model")
    tiny_tokenizer().save_pretrained(tmp_path / "my-model")
    lm = CausalLM(str(tmp_path / "my-model"))
    assert portable(lm.name) == "my-model"
    for kind in ("head", "lora"):
        folder = trained(make(lm), kind).guide.save(tmp_path / kind)
        texts = {p.name: p.read_text() for p in folder.iterdir() if p.suffix in (".json", ".md")}
        assert [name for name, text in texts.items() if str(tmp_path) in text] == []
        assert "my-model" in texts["guide.json"]
        if kind == "lora":
            assert json.loads(texts["adapter_config.json"])["base_model_name_or_path"] == "my-model"
    moved = (tmp_path / "my-model").rename(tmp_path / "elsewhere")
    load_guide(tmp_path / "head", CausalLM(str(moved)))


def test_a_loaded_guide_is_a_pyro_guide_once_it_knows_its_program(tmp_path):
    lm = markov()
    program = make(lm)
    folder = trained(program, "table").guide.save(tmp_path / "g")
    with pyro.get_param_store().scope():
        load_guide(folder, lm, model=program)()
        with pytest.raises(InputError, match="model=program"):
            load_guide(folder, lm)()
