"""A plate anywhere leaves the sites outside of it as they were written: shapes of plain Pyro, dimensions by name."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SEED

from ppl_align import SMC, SVI, Enumeration, ImportanceSampling, Posterior, Rejection, completion, environment, reward
from ppl_align.core.errors import InputError
from ppl_align.engines.conditional import evidence_bounds
from ppl_align.lm.completions import tensor_of
from ppl_align.testing.oracle import Oracle
from ppl_align.testing.programs import FIXED, STEP, count_score


def text(name="text"):
    x = completion(name, FIXED, [0], max_new_tokens=2)
    reward(f"r of {name}", count_score, x.tokens, weight=0.2, upper=2 * STEP)
    return x


def latent(name, p=0.4):
    return pyro.sample(name, dist.Bernoulli(p))


def plate_after():
    latent("strictness")
    text()
    with pyro.plate("critics", 3):
        latent("y")


def plate_before():
    with pyro.plate("critics", 3):
        latent("y")
    latent("strictness")
    text()


def text_within():
    latent("strictness")
    with pyro.plate("critics", 2):
        text()
        latent("y")
    latent("after")


def several():
    latent("strictness")
    with pyro.plate("critics", 2):
        latent("y")
    text()
    with pyro.plate("judges", 3):
        latent("z")
    with pyro.plate("one", 1):
        latent("o")


def one_inside_another():
    latent("strictness")
    with pyro.plate("critics", 2):
        latent("y")
        with pyro.plate("rows", 2):
            latent("q")
    text()


def dimensions_by_hand():
    latent("strictness")
    with pyro.plate("rows", 2, dim=-2):
        latent("z")
        with pyro.plate("columns", 2, dim=-1):
            latent("q")
    with pyro.plate("far", 2, dim=-3):
        latent("f")
    text()


def only_one():
    latent("strictness")
    with pyro.plate("one", 1):
        latent("o")
        text()


def with_events():
    pyro.sample("strictness", dist.Normal(0.0, 1.0))
    pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("critics", 3):
        pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("d", dist.Dirichlet(torch.ones(4)))
    text()


PROGRAMS = [plate_after, plate_before, text_within, several, one_inside_another, dimensions_by_hand, only_one]
NAMES = {
    "y": ("critics",),
    "z": ("judges",),
    "o": ("one",),
    "q": ("rows", "critics"),
    "w": ("critics", "w_dim_1"),
    "d": ("critics", "d_dim_1"),
    "v": ("v_dim_0",),
}


def shapes_of_pyro(program):
    trace = pyro.poutine.trace(program).get_trace()
    sites = {n: node for n, node in trace.nodes.items() if node["type"] == "sample" and not node["is_observed"]}
    return {name: node["value"].shape for name, node in sites.items() if type(node["fn"]).__name__ != "_Subsample"}


@pytest.mark.parametrize("program", [*PROGRAMS, with_events], ids=lambda program: program.__name__)
def test_shapes_and_names_are_those_of_plain_pyro(program, tmp_path):
    expected = shapes_of_pyro(program)
    engines = [ImportanceSampling(6, 4), SMC(6, 4, twist="prefix"), SVI(1, 6, 4)]
    engines += [] if program is with_events else [Enumeration(), Rejection(2, 2)]
    for engine in engines:
        run = engine.run(program, seed=SEED)
        lead = run.log_weight.shape
        assert {name: tensor_of(value).shape for name, value in run.particles.items()} == {
            name: lead + shape for name, shape in expected.items()
        }, engine.name
        for posterior in (run, Posterior.load(run.save(tmp_path / "run.nc")), run.take(torch.zeros(2, 3).long())):
            data = posterior.to_arviz()["posterior"]
            assert data["strictness"].dims == ("chain", "draw")
            assert posterior.mean("strictness") == posterior.mean(lambda p: p["strictness"].double())
            for name, dims in NAMES.items():
                if name in expected and program is not dimensions_by_hand:
                    assert data[name].dims == ("chain", "draw", *dims), name
                    assert data[name].shape[2:] == expected[name]
    if program is dimensions_by_hand:
        assert data["z"].dims == ("chain", "draw", "rows", "z_dim_1")
        assert data["q"].dims == ("chain", "draw", "rows", "columns")
        assert data["f"].dims == ("chain", "draw", "far", "f_dim_1", "f_dim_2")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_means_are_those_without_the_plate(program):
    """Nothing ties the plate to the rest: the rest is as if there were none."""
    run = Enumeration().run(program)
    assert run.mean("strictness").value == pytest.approx(0.4, abs=1e-6)
    if program in (text_within, only_one):
        ones = run.mean(lambda p: (p["text"].tokens == 1).sum(-1).double().mean(-1)).value
    else:
        ones = run.mean(lambda words: words.count("1"), of="text").value
    alone = Enumeration().run(text).mean(lambda words: words.count("1"), of="text").value
    assert ones == pytest.approx(alone, abs=1e-6)


def test_texts_of_a_plate_have_to_be_summed_up():
    with pytest.raises(InputError, match=r"each particle has \[2\] texts there, one for each element of a plate"):
        ImportanceSampling(4, 4).run(text_within).mean(len, of="text")


def test_names_that_clash_with_dimensions():
    def program():
        latent("draw")
        with pyro.plate("chain", 2):
            latent("x")
        with pyro.plate("y", 2):
            latent("critics")
        latent("y of")
        text()

    data = ImportanceSampling(4, 4).run(program).to_arviz()["posterior"]
    assert data["draw_"].dims == ("chain", "draw")
    assert data["x"].dims == ("chain", "draw", "chain_")
    assert data["critics"].dims == ("chain", "draw", "y")


@pytest.mark.parametrize("name", ["text_position", "text_prompt", "text_dim_0", "text_text", "draw", "particle"])
def test_plates_called_as_something_of_a_text(name, tmp_path):
    def program():
        with pyro.plate(name, 2), pyro.plate(f"{name}_", 3):
            text()

    run = ImportanceSampling(4, 4).run(program)
    dims = run.to_arviz()["completions"]["text_tokens"].dims
    assert len(set(dims)) == 5
    loaded = Posterior.load(run.save(tmp_path / "run.nc"))
    assert torch.equal(loaded.completions["text"].tokens, run.completions["text"].tokens)
    assert dict(loaded.plates) == dict(run.plates) == {"text": (f"{name}_", name)}


@pytest.mark.parametrize("program", [plate_before, text_within, one_inside_another, dimensions_by_hand])
def test_what_is_given_back_to_the_program_has_its_room_again(program):
    """Retained draws, policies that are scored on the support."""
    exact = Enumeration().run(program)
    bounds = evidence_bounds(SMC(8, 4), program, exact=exact, seed=SEED)
    assert float(bounds.upper.mean()) == pytest.approx(float(exact.log_evidence), abs=1.0)
    oracle = Oracle(program)
    guide = SVI(num_steps=2, num_particles=4).run(program, seed=SEED).guide
    assert float(oracle.log_q(guide).detach().logsumexp(0)) == pytest.approx(0.0, abs=1e-4)


def test_a_world_that_answers_beside_a_plate():
    def program():
        x = text()
        with pyro.plate("critics", 2):
            latent("y")
        z = environment("answer", dist.Bernoulli(torch.sigmoid((x.tokens == 1).sum(-1).double())))
        reward("good", lambda z: z.double(), z, upper=1.0)

    exact = Enumeration().run(program)
    sampled = ImportanceSampling(400, 4).run(program, seed=SEED)
    assert sampled.optimism is not None
    got, error = sampled.optimism.executed_mean["good"]
    assert abs(got - exact.optimism.executed_mean["good"].value) < 5 * error
