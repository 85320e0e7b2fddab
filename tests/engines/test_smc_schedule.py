"""When SMC refreshes its potentials: particles are compared with particles of which as much is known."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_align import SMC, Contains, Enumeration, ImportanceSampling, MarkovLM, completion, constrain, reward

WORDS = ["a", " b", " c", ".", "</s>"]
LOGITS = torch.randn(5, 5, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
LM = MarkovLM(LOGITS, LOGITS[0], eos_id=4, tokens=WORDS)
TASTE = torch.tensor([0.2, 1.0, -0.7, 0.4, 0.0], dtype=torch.float64)


def one_text(more):
    x = completion("x", LM, [], max_new_tokens=6)
    reward("r", lambda t: TASTE[t].sum(-1) + more, x.tokens, beta=0.35)


def two_texts(more):
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
    one = completion("one", LM, z[..., None], max_new_tokens=4)
    reward("a", lambda t: TASTE[t].sum(-1) + more, one.tokens, beta=0.5)
    two = completion("two", LM, ([1], one), max_new_tokens=4)
    reward("b", lambda t: TASTE[t].sum(-1) + more, two.tokens, beta=0.5)


@pytest.mark.parametrize("every", [1, 3, "word", "sentence"])
@pytest.mark.parametrize(("program", "units"), [(one_text, 1 / 0.35), (two_texts, 4)])
def test_a_constant_added_to_a_reward_changes_nothing(program, units, every):
    """exp(c / beta) is a factor of Z and says nothing about any text, on the way as little as at the end."""
    engine = SMC(64, 8, twist="prefix", every=every, ess_threshold=0.9)
    plain, lower, higher = (engine.run(program, more, seed=3) for more in (0.0, -3.0, 5.0))
    assert plain.history["resampled"].any(), "there is something to see"
    for other, more in ((lower, -3.0), (higher, 5.0)):
        for name, found in plain.completions.items():
            assert torch.equal(found.tokens, other.completions[name].tokens)
        torch.testing.assert_close(other.log_weight, plain.log_weight + more * units)


@pytest.mark.parametrize("every", [2, "word"])
def test_looking_ahead_at_some_places_only(every):
    """What a constraint will take is the same for all at first, and no reason to prefer those not yet looked at."""

    def program():
        constrain("has", Contains(" c b"), completion("x", LM, [], max_new_tokens=6))

    engines = (SMC(64, 100, twist="lookahead", every=every, ess_threshold=0.9), ImportanceSampling(64, 100))
    steered, plain = (float(engine.run(program).log_evidence.std()) for engine in engines)
    assert steered < 0.8 * plain


@pytest.mark.parametrize("every", [4, "word"])
def test_the_evidence_where_every_reward_is_negative(every):
    """The program that showed it: before, the median Zhat was a hundredth of Z."""
    engine = SMC(64, 100, twist="prefix", every=every)
    z = (engine.run(one_text, -3.0).log_evidence - Enumeration().run(one_text, -3.0).log_evidence).exp()
    plain = ImportanceSampling(64, 100).run(one_text, -3.0).log_evidence.std()
    assert engine.run(one_text, -3.0).log_evidence.std() < 3 * plain
    assert abs(float(z.mean()) - 1) < 4 * float(z.std()) / math.sqrt(len(z))
    assert float(z.median()) > 0.5
