"""Nested Monte Carlo: the policy it plays is the one of backward induction, in a world it leaves alone."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from toys.worlds import HOST, dialogue, game, risky, talk

from ppl_align import CallableLM, Enumeration, TreePlanner, completion, environment, reward
from ppl_align.claims import interaction, optimism
from ppl_align.claims._turns import Turns
from ppl_align.constraints import Contains
from ppl_align.core.errors import AllDeadError, InputError
from ppl_align.posterior.policy import decision_value
from ppl_align.program import constrain
from ppl_align.testing import Oracle
from ppl_align.testing.programs import two_completions


def agree(seen, expected):
    value, error = seen
    assert abs(value - expected) < 4 * error, f"{value:.4f} +- {error:.4f}, exactly {expected:.4f}"


def test_the_choice_of_the_claim():
    """Conditioning picks it with .700567, and wins with .858486."""
    run = TreePlanner(num_actions=32, num_outcomes=64, num_particles=300, max_histories=10**7).run(game)
    chosen = run.mean(risky)
    assert abs(chosen.value - 0.354344) < 4 * chosen.standard_error + 0.01
    agree(run.mean(lambda p: risky(p) * p["outcome"]), 0.1 * chosen.value)
    gets = 1 + (0.4 - 1) * chosen.value
    agree(run.mean("pay"), gets)
    value, error = decision_value(run)
    assert abs(value - 0.744341) < 4 * error + 0.02
    assert value - 4 * error < 0.744341
    assert run.target == "decision"
    assert run.environment == ("outcome",)
    assert run.log_evidence.isnan().all()


def policy(oracle, posterior, names):
    """The shares of each assignment of the sites, and how often each was played."""
    turns = Turns(oracle, ["first", "second"])
    best, conditioned = turns.play(turns.soft_bellman()[0]).exp(), turns.play(turns.policy_of(oracle.log_target)).exp()
    code = sum(3**i * oracle.values[name].reshape(-1) for i, name in enumerate(names))
    played = sum(3**i * getattr(posterior.particles[name], "tokens", posterior.particles[name]).reshape(-1)
                 for i, name in enumerate(names))  # fmt: skip
    shares = [torch.zeros(3 ** len(names), dtype=torch.float64).index_add(0, code, q) for q in (best, conditioned)]
    return *shares, torch.bincount(played, minlength=3 ** len(names)).double() / len(played)


def test_the_dialogue_of_the_claim():
    oracle = Oracle(dialogue)
    run = TreePlanner(num_actions=5, num_outcomes=5, num_particles=75, max_histories=10**6).run(dialogue)
    best, conditioned, played = policy(oracle, run, ["first", "mood", "second"])
    noise = math.sqrt(27 / run.log_weight.numel()) / 2
    assert (played - best).abs().sum() < noise + 0.1
    assert (played - best).abs().sum() < (played - conditioned).abs().sum()
    assert decision_value(run).value - 4 * decision_value(run).standard_error < oracle.posterior.optimism.best
    moods = torch.stack([run.particles["first"].tokens[..., 0].reshape(-1), run.particles["mood"].reshape(-1)], 1)
    world = interaction.hand_made()[1]["mood"].exp()
    for word in range(3):
        seen = moods[moods[:, 0] == word, 1]
        if len(seen) > 50:
            share = (seen == 2).double().mean()
            chance = float(world[word, 2])
            assert abs(share - chance) < 4 * math.sqrt(chance * (1 - chance) / len(seen)), (
                "thrilled as often as users are"
            )


def test_more_outcomes_more_sober():
    """An exponential of a noisy mean likes luck: with one outcome it is conditioning, nearly."""
    shares = []
    for num_outcomes in (1, 4, 64):
        run = TreePlanner(16, num_outcomes, num_particles=400, max_histories=10**7).run(game)
        shares.append(run.mean(risky).value)
    assert shares[0] > shares[1] + 0.05 > shares[2] + 0.08
    optimistic = TreePlanner(16, 1, num_particles=400, max_histories=10**7).run(game)
    assert optimistic.history["planned"].mean() > decision_value(optimistic).value + 0.5, "its plans promise too much"


def test_the_value_is_that_of_the_episodes():
    """J = E[psi] - KL bound: with two actions per plan the policy is known in closed form up to the plan's noise."""
    run = TreePlanner(2, 256, num_particles=500, max_histories=10**7).run(game)
    v = torch.tensor([1.0, 0.4], dtype=torch.float64)
    picked = torch.softmax(v, 0)[1] / 2 + 1 / 4  # two different actions with 1/2, else whatever both are
    agree(run.mean(risky), float(picked))
    share = torch.softmax(v, 0)
    bound = float((share * (2 * share).log()).sum()) / 2  # KL of the plan; nothing where both actions are the same
    agree(decision_value(run), 1 - 0.6 * float(picked) - bound)


def test_a_simulated_user():
    oracle = Oracle(talk)
    best = oracle.posterior.optimism.best
    run = TreePlanner(num_actions=6, num_outcomes=24, num_particles=100, max_histories=10**6).run(talk)
    agree(run.mean(lambda p: (p["heard"].tokens == 1).double().mean(-1)), 0.7)
    assert decision_value(run).value < best + 4 * decision_value(run).standard_error


def test_the_world_may_speak_first_and_turns_may_have_several_sites():
    def program():
        asked = environment("asked", dist.Categorical(torch.tensor([0.3, 0.7])))
        mood = environment("mood", dist.Bernoulli(torch.tensor(0.5)))
        with pyro.plate("words", 2):
            said = completion("said", optimism.COIN, [], max_new_tokens=1)
        extra = pyro.sample("extra", dist.Bernoulli(torch.tensor(0.5)))
        luck = environment("luck", dist.Bernoulli(torch.tensor(0.25)))
        right = (said.tokens[..., 0] == asked).double().sum(-1, keepdim=True)
        pyro.factor("r", right * (1 + mood) + 2 * extra * luck)

    exact = Enumeration().run(program).optimism
    run = TreePlanner(num_actions=24, num_outcomes=8, num_particles=50, max_histories=10**6).run(program)
    agree(run.mean(lambda p: p["asked"].double().reshape(4, 50)), 0.7)
    value, error = decision_value(run)
    assert exact.best - 0.15 - 4 * error < value < exact.best + 4 * error


def test_constraints_confine_the_agent():
    def program():
        said = completion("said", HOST, " hm", max_new_tokens=2)
        constrain("has", Contains("no"), said)
        luck = environment("luck", dist.Bernoulli(torch.tensor(0.5)))
        reward("r", lambda t: luck * (t == 1).sum(-1), said.tokens, beta=1.0)

    exact = Enumeration().run(program).optimism
    run = TreePlanner(num_actions=16, num_outcomes=32, num_particles=100, max_histories=10**6).run(program)
    assert (run.particles["said"].tokens == 1).any(-1).all()
    value, error = decision_value(run)
    assert abs(value - exact.best) < 4 * error + 0.02


def test_a_constraint_on_a_later_turn_is_paid_for_in_the_plan():
    """What must be said in the end is hard to say after one opening, easy after the other: a plan has to know."""
    table = torch.tensor([[0.01, 0.99], [0.99, 0.01]], dtype=torch.float64).log()
    after = CallableLM(2, lambda prefix: table[prefix[:, -1]], tokens=["a", "b"])

    def program():
        opening = completion("opening", optimism.COIN, [], max_new_tokens=1)
        luck = environment("luck", dist.Bernoulli(torch.tensor(0.5)))
        said = completion("said", after, (opening,), max_new_tokens=1)
        constrain("has", Contains("a"), said)
        reward("r", lambda t: luck * (t == 0).sum(-1), said.tokens)

    best = Enumeration().run(program).optimism.best
    assert best == pytest.approx(math.log(0.5 * 0.01 + 0.5 * 0.99) + 0.5)
    run = TreePlanner(num_actions=16, num_outcomes=8, num_particles=20, max_histories=10**6).run(program)
    agree(run.mean(lambda p: (p["opening"].tokens[..., 0] == 1).double()), 0.99)
    value, error = decision_value(run)
    assert abs(value - best) < 4 * error + 0.02
    assert run.history["planned"].mean() < best + 0.1, "plans promise no more than there is"


def test_same_seed_same_draws_and_the_state_is_left_alone():
    before = torch.get_rng_state()
    one, two, other = (TreePlanner(num_particles=20).run(game, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.particles["action"].tokens, two.particles["action"].tokens)
    assert torch.equal(one.history["planned"], two.history["planned"])
    assert not torch.equal(one.history["planned"], other.history["planned"])


def test_it_refuses_politely():
    with pytest.raises(InputError, match="no environment"):
        TreePlanner().run(two_completions)
    with pytest.raises(
        InputError, match=r"TreePlanner would play 131,072 histories \(4,096 for each of 4 x 8 episodes"
    ):
        TreePlanner(num_actions=8, num_outcomes=8).run(dialogue)
    with pytest.raises(InputError, match="num_actions must be a whole number of at least 2"):
        TreePlanner(num_actions=1)

    def hopeless():
        said = completion("said", optimism.COIN, [], max_new_tokens=1)
        environment("luck", dist.Bernoulli(0.5))
        reward("never", lambda t: torch.full(t.shape[:-1], -torch.inf), said.tokens)

    with pytest.raises(AllDeadError, match="every action of a plan"):
        TreePlanner().run(hopeless)
