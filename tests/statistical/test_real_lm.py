"""SmolLM2 as an oracle: one new token is 49,152 sequences, two of the fifty likeliest 2,500."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import SEED

from ppl_align import SMC, SVI, CausalLM, Enumeration, ImportanceSampling, Rejection, completion, reward
from ppl_align.engines.conditional import evidence_bounds
from ppl_align.rewards import Vader
from ppl_align.testing import simulate
from ppl_align.testing.statistics import bonferroni_z, mean_z

pytestmark = [pytest.mark.statistical, pytest.mark.lm]
Z = bonferroni_z(20)


def one_word(lm: CausalLM, prompt: str = "The movie was really", beta: float = 0.3):
    word = completion("word", lm, prompt, max_new_tokens=1)
    reward("sentiment", Vader(), word, beta=beta)


def two_words(lm: CausalLM, prompt: str = "The movie was", beta: float = 0.4):
    words = completion("words", lm, prompt, max_new_tokens=2, top_k=50)
    reward("sentiment", Vader(), words, beta=beta)


ENGINES = {
    "importance": ImportanceSampling(400, 40),
    "smc": SMC(400, 40, twist="prefix", ess_threshold=0.9),
    "svi": SVI(num_steps=10, num_particles=64, num_replicates=40, rank=1),
    "rejection": Rejection(40, 20, max_draws=10**6),
}


@pytest.fixture(scope="module")
def exact(smollm2):
    return {model.__name__: Enumeration().run(model, smollm2) for model in (one_word, two_words)}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("model", [one_word, two_words])
def test_engines_on_a_real_lm(model, engine, exact, smollm2):
    truth = exact[model.__name__]
    posterior = engine.run(model, smollm2, seed=SEED)
    ratio = (posterior.log_evidence - truth.log_evidence).exp()
    assert float(ratio.std()) < 0.6
    assert abs(float(mean_z(ratio, 1.0))) < Z
    # proper weighting of the reward: E[Zhat sum_i W_i r_i] = Z E[r]
    weighted = ((posterior.log_weight - truth.log_evidence).exp() * posterior.rewards["sentiment"]).mean(-1)
    assert abs(float(mean_z(weighted, float(truth.mean("sentiment").value)))) < Z


def test_a_simulated_ending_certifies_itself(smollm2):
    """The middle that was written before its ending is an exact draw: log Z of that ending lies between the bounds."""

    def infill(ending="and was not hungry any more."):
        middle = completion("middle", smollm2, "A fox was hungry. She", max_new_tokens=1)
        completion("ending", smollm2, ("A fox was hungry. She", middle), starts_with=ending)

    simulation = simulate(infill, ending=" the two of them", seed=SEED)[0]
    bounds = evidence_bounds(
        ImportanceSampling(64, 8), infill, exact=simulation.draw, seed=SEED, **simulation.arguments
    )
    low, high = bounds.certificate(1e-3)
    # The 2,000 likeliest middles are summed exactly; the rest can only add to Z.
    source = smollm2.completion("A fox was hungry. She", 1)
    likeliest = source.lm.start(list(source.prompts)).log_probs[0].topk(2000)
    listed = Enumeration(candidates={"middle": [[int(v)] for v in likeliest.indices]}).run(
        infill, **simulation.arguments
    )
    rest = max(1 - math.fsum(likeliest.values.double().exp().tolist()), 0.0)
    most = math.log(math.exp(float(listed.log_evidence)) + rest)  # the others at best write the ending for certain
    assert low < most
    assert float(listed.log_evidence) < high
    assert torch.isfinite(bounds.upper).all()
