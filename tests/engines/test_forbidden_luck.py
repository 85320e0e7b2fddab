"""How optimistic it is to condition where likelihoods can be zero: a bound that holds, what is infinite or unknown."""

from __future__ import annotations

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_align import CallableLM, Enumeration, ImportanceSampling, completion, environment, reward
from ppl_align.engines.environment import optimism
from ppl_align.posterior.optimism import Optimism

OPENS = torch.tensor(
    [0.1, 0.9], dtype=torch.float64
)  # the probability that the agent's word opens, by the world's lock


def words(opens):
    """One word, "key" (of this probability, by the last token of the prompt) or "rock"."""
    table = torch.stack([1 - opens, opens], -1).log()
    return CallableLM(2, lambda prefix: table[prefix[:, -1]], tokens=["rock", "key"], name="words")


def lock(opens=OPENS):
    """The world chooses a lock; then the agent has one word, and all but "key" is forbidden."""
    kind = environment("kind", dist.Categorical(probs=torch.ones(2, dtype=torch.float64) / 2))
    word = completion("word", words(opens), kind[..., None], max_new_tokens=1)
    reward("opens", lambda tokens: torch.where(tokens[..., 0] == 1, 0.0, -torch.inf), word.tokens, upper=0.0)


def test_the_bound_holds_where_all_continuations_may_be_forbidden(monkeypatch):
    """Leaving out the draws none of whose continuations is allowed would give .42, more than there is."""
    monkeypatch.setattr(optimism, "NUM_DRAWS", 10_000)
    exact = Enumeration().run(lock).optimism
    law = OPENS / OPENS.sum()
    assert math.isclose(exact.environment_tilt.value, float((law * (2 * law).log()).sum()), rel_tol=1e-9)
    tilt, error = ImportanceSampling(num_particles=50_000, num_replicates=1).run(lock).optimism.environment_tilt
    assert tilt < exact.environment_tilt.value + 3 * error
    assert abs(tilt - statistic(optimism.NUM_CONTINUATIONS)) < 4 * error
    assert tilt > exact.environment_tilt.value / 2, "and it says something"


def statistic(k):
    """E_p*[log(S / k + Z / k)] - E[log((1 + S') / (k + 1) + Z / k)], S and S' binomial: the bound, by enumeration."""
    z, counts = float(OPENS.mean()), torch.arange(k + 1, dtype=torch.float64)
    law = OPENS / OPENS.sum()
    after = sum(law[i] * (_binomial(k, OPENS[i]) * ((counts + z) / k).log()).sum() for i in range(2))
    without = (_binomial(k, OPENS.mean()) * ((1 + counts) / (k + 1) + z / k).log()).sum()
    return float(after - without)


def _binomial(k, p):
    return dist.Binomial(k, p).log_prob(torch.arange(k + 1, dtype=torch.float64)).exp()


def test_what_an_agent_gets_is_not_known_where_it_finds_nothing_to_say():
    """The lock can be opened; eight words are too few to be sure of finding the one that does."""
    found = ImportanceSampling(num_particles=400).run(lock).optimism
    assert math.isnan(found.executed_mean["opens"].value)
    assert found.posterior_mean["opens"].value == 0
    assert "not known when executed" in str(found)
    assert Enumeration().run(lock).optimism.executed_mean["opens"].value == 0
    assert math.isnan(Optimism.from_json(found.to_json()).executed_mean["opens"].value)


FATE = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64).log()  # of who dares not, and of who dares


def bet():
    """To dare is to be at the world's mercy: it may forbid all that follows."""
    dared = completion("dared", words(torch.tensor([0.5, 0.5], dtype=torch.float64)), [0], max_new_tokens=1)
    lost = environment("lost", dist.Categorical(logits=FATE[dared.tokens[..., 0]]))
    pyro.factor("fate", torch.where(lost == 1, -torch.inf, 1.0 * dared.tokens[..., 0]))
    reward("luck", lambda tokens: torch.where(lost == 1, -torch.inf, 0.0), dared.tokens)


def after_the_bet():
    """The same with a last word, which cannot help."""
    bet()
    completion("sigh", words(OPENS), [0], max_new_tokens=1)


@pytest.mark.parametrize("program", [bet, after_the_bet])
def test_an_agent_that_dares_has_no_finite_value_and_the_best_does_not_dare(program):
    found = Enumeration().run(program).optimism
    assert found.executed_mean["luck"].value == found.value == -math.inf
    assert math.isclose(found.best, math.log(0.5), rel_tol=1e-9), "not to dare: no likelihood, KL = log 2"
    assert found.posterior_mean["luck"].value == 0
    assert found.environment_tilt.value > 0
    assert "-inf when executed" in str(found)
    assert Optimism.from_json(found.to_json()) == found
    json.loads(found.to_json())


def test_a_reward_of_minus_infinity_is_what_it_gets():
    found = ImportanceSampling(num_particles=400).run(bet).optimism
    assert found.executed_mean["luck"] == (-math.inf, 0.0)
    assert math.isfinite(found.environment_tilt.value)


def test_what_the_prior_rules_out_does_not_count():
    """A choice of probability zero is in the table, and the agent's next word after it as well."""

    def program(*law):
        environment("weather", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
        first = pyro.sample("first", dist.Categorical(logits=torch.tensor(law, dtype=torch.float64).log()))
        word = completion("word", words(OPENS), (first % 2)[..., None], max_new_tokens=1)
        reward("opens", lambda tokens: tokens[..., 0], word.tokens, upper=1.0)

    with_zero, without = (Enumeration().run(program, *law).optimism for law in ((0.5, 0.5, 0.0), (0.5, 0.5)))
    assert math.isclose(with_zero.best, without.best, rel_tol=1e-9)
    assert math.isclose(with_zero.value, without.value, rel_tol=1e-9)


def test_what_an_agent_gets_is_not_known_where_few_tries_do_not_find_what_it_would_say(monkeypatch):
    """A world that matters to nothing, and one word in fifty that does: eight tries seldom hold it. They once were
    taken for all there is, and the harmless world was blamed for a reward lost."""
    fifty = CallableLM(50, lambda prefix: torch.zeros(len(prefix), 50, dtype=torch.float64), name="fifty")

    def program():
        environment("coin", dist.Bernoulli(torch.tensor(0.5)))
        word = completion("word", fifty, [], max_new_tokens=1)
        reward("r", lambda tokens: 8.0 * (tokens[..., 0] == 7).double(), word.tokens, upper=8.0)

    exact = Enumeration().run(program).optimism
    assert exact.environment_tilt.value == pytest.approx(0, abs=1e-6)
    found = ImportanceSampling(num_particles=2000).run(program).optimism
    assert math.isnan(found.executed_mean["r"].value)
    assert "not known when executed" in str(found)
    monkeypatch.setattr(optimism, "NUM_CONTINUATIONS", 2000)
    enough = ImportanceSampling(num_particles=2000).run(program).optimism
    got, error = enough.executed_mean["r"]
    assert abs(got - exact.executed_mean["r"].value) < 4 * error + 0.3, "of 32 draws perhaps none is the other word"
