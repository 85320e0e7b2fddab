"""What half precision does to log p is measured, and stated wherever a run is read."""

from __future__ import annotations

import pytest
import torch
from toys.networks import PROMPT, network, program_over

from ppl_align import SMC, SVI, CausalLM, Enumeration, ImportanceSampling, Posterior, compare
from ppl_align.lm.decoding import Population

HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return network()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_has_no_error_and_says_nothing(net, dtype):
    lm = CausalLM(net, dtype=dtype, verify=False)
    assert lm.log_prob_error == 0.0
    run = ImportanceSampling(8, 2).run(program_over(lm, 3, 0.5))
    assert not any("log p is off" in line for line in run.warnings)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_error_is_that_of_drawing_against_scoring(kind, dtype):
    model = network(kind)
    model.config.eos_token_id = model.generation_config.eos_token_id = None  # else some texts are too short to tell
    lm = CausalLM(model, dtype=dtype)
    source = lm.completion(list(PROMPT), 16).expand([200])
    before = torch.get_rng_state()
    drawn = Population(source, generator=torch.Generator().manual_seed(9)).run()
    lengths = (~source.ended_before(drawn.tokens)).sum(-1)
    off = drawn.log_p - source.log_prob(drawn.tokens).double()
    want = float((off.square() / lengths).mean().sqrt())
    assert want / 4 < lm.log_prob_error < 4 * want
    assert 0 < lm.log_prob_error < torch.finfo(dtype).eps * 64
    assert torch.equal(before, torch.get_rng_state()), "the global random stream is the user's"


def test_it_is_measured_once(net, monkeypatch):
    lm = CausalLM(net, dtype=torch.bfloat16)
    first = lm.log_prob_error
    monkeypatch.setattr("ppl_align.lm.causal.measured_error", lambda lm: pytest.fail("again"))
    assert lm.log_prob_error == first


ENGINES = [
    Enumeration(),
    ImportanceSampling(64, 4),
    SMC(64, num_replicates=4, twist="prefix"),
    SVI(num_steps=3, num_particles=16, num_replicates=4),
    SVI(num_steps=2, num_particles=16, num_replicates=4, guide="lora"),
]


@pytest.mark.parametrize("engine", ENGINES, ids=["exact", "importance", "smc", "head", "lora"])
def test_every_run_states_it_once(net, engine, tmp_path):
    lm = CausalLM(net, dtype=torch.bfloat16)
    run = engine.run(program_over(lm, 3, 0.5))
    said = [line for line in run.warnings if "log p is off" in line]
    assert said == [f"log p is off by about {lm.log_prob_error * 3**0.5:.2g} nats a text (bfloat16)"]
    assert said[0] in str(run)
    compared = compare({"one": run})
    assert said[0] in str(compared)
    assert Posterior.load(run.save(tmp_path / "run.nc")).warnings == run.warnings
    exact = Enumeration().run(program_over(lm, 3, 0.5)).log_evidence.exp()
    found = run.log_evidence.exp()
    error = float(found.std()) / len(found) ** 0.5 if len(found) > 1 else 1e-9
    assert abs(float(found.mean() - exact)) < 4 * error + 3 * lm.log_prob_error


@pytest.mark.parametrize("dtype", HALF)
def test_weights_of_draws_of_the_prior_are_their_factors_and_nothing_else(net, dtype):
    """log p as drawn stands above and below the line: scored again, it would be off by 0.01."""
    lm = CausalLM(net, dtype=dtype)
    for engine in (ImportanceSampling(64, 2), ImportanceSampling(64, 2, proposal=lm)):
        run = engine.run(program_over(lm, 3, 0.5))
        torch.testing.assert_close(run.log_weight, run.factors["r"].double().reshape(2, 64), atol=2e-6, rtol=0)


def test_the_error_of_a_converted_network_is_near_what_converting_it_did():
    """bfloat16 keeps 8 bits: logits of size 4 are off by about 0.01, whichever way they are read."""
    lm = CausalLM(network(), dtype=torch.bfloat16)
    assert 1e-4 < lm.log_prob_error < 0.1
