"""SVI trains on subsamples and weighs with the whole plate, against the full program by enumeration."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SEED

from ppl_align import SVI, Enumeration, MarkovLM, completion, reward
from ppl_align.core.errors import ModelError

LM = MarkovLM(torch.tensor([[0.2, 0.5, -0.4], [0.1, -0.7, 0.6], [-0.3, 0.9, 0.0]], dtype=torch.float64))
DATA = torch.tensor([0.3, 1.4, -0.2, 0.8, 1.9, 0.1], dtype=torch.float64)


def model(subsample_size=None):
    z = pyro.sample("z", dist.Bernoulli(0.4))
    x = completion("x", LM, [0], max_new_tokens=2)
    reward("r", lambda t: (t == 2).sum(-1).double(), x.tokens, weight=0.5 + z)
    ones = (x.tokens == 1).sum(-1).double()
    with pyro.plate("data", 6, dim=-1, subsample_size=subsample_size) as index:
        pyro.sample("y", dist.Normal(ones, 1.5), obs=DATA[index])


def test_the_weights_are_those_of_the_whole_plate():
    """Zhat is unbiased for the evidence of the full program, which a subsample's likelihood would not be."""
    exact = Enumeration().run(model)
    run = SVI(num_steps=40, num_particles=64, num_replicates=40).run(model, 2, seed=SEED)
    ones = (run.particles["x"].tokens == 1).sum(-1).double()
    expected = dist.Normal(ones[..., None], 1.5).log_prob(DATA).sum(-1)
    torch.testing.assert_close(run.factors["y"], expected, rtol=0, atol=1e-6)
    ratio = (run.log_evidence - exact.log_evidence).exp()
    assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / 40**0.5
    for what in ("r", "z"):
        value, error = run.mean(what)
        assert abs(value - exact.mean(what).value) < 4.5 * error
    (line,) = (w for w in run.warnings if "subsample" in w)
    assert "2 of 6 of plate 'data'" in line
    assert "whole plate" in line


def test_without_a_subsample_nothing_is_said():
    assert not any("subsample" in line for line in SVI(num_steps=1).run(model, None).warnings)
    assert not any("subsample" in line for line in SVI(num_steps=1).run(model, 6).warnings)


def test_training_sees_subsamples_and_the_rest_does_not():
    seen = []

    def spying(size):
        with pyro.plate("data", 6, dim=-1, subsample_size=size) as index:
            seen.append(len(index))
        completion("x", LM, [0], max_new_tokens=2)

    SVI(num_steps=3, num_particles=4).run(spying, 2)
    assert seen.count(2) == 6  # guide and model, three steps
    assert set(seen) == {2, 6}


def test_a_guide_of_your_own():
    def guide(size):
        p = pyro.param("p", torch.tensor(0.5), constraint=dist.constraints.unit_interval)
        pyro.sample("z", dist.Bernoulli(p))
        completion("x", LM, [0], max_new_tokens=2)

    exact = Enumeration().run(model)
    run = SVI(num_steps=5, num_particles=64, num_replicates=20, guide=guide).run(model, 3, seed=SEED)
    ratio = (run.log_evidence - exact.log_evidence).exp()
    assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / 20**0.5


def test_a_latent_for_each_element_is_refused():
    def local():
        x = completion("x", LM, [0], max_new_tokens=2)
        with pyro.plate("data", 6, dim=-1, subsample_size=2):
            z = pyro.sample("local", dist.Bernoulli(0.5))
            pyro.factor("f", 0.1 * z * (x.tokens == 1).sum(-1))

    with pytest.raises(ModelError, match="latent 'local' is inside of plate 'data', which takes a subsample of 2 of 6"):
        SVI(num_steps=1).run(local)


def test_a_loop_over_a_subsample_is_refused():
    def loop(latents):
        x = completion("x", LM, [0], max_new_tokens=2)
        for i in pyro.plate("data", 6, subsample_size=2):
            if latents:
                pyro.sample(f"local{i}", dist.Bernoulli(0.5))
            pyro.sample(f"y{i}", dist.Normal((x.tokens == 1).sum(-1).double(), 1.5), obs=DATA[i])

    for latents in (False, True):
        with pytest.raises(ModelError, match="plate 'data' is a loop over a subsample of 2 of 6"):
            SVI(num_steps=3).run(loop, latents)
