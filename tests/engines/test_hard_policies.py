"""SVI where something is forbidden: policies under hard constraints in a world that answers, and clear refusals."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_align import SVI, Enumeration, ImportanceSampling, MarkovLM, completion, constrain, environment, reward
from ppl_align.constraints import Regex
from ppl_align.core.errors import AllDeadError, ModelError, RunError
from ppl_align.posterior.policy import decision_value

LETTERS = ["a", "b", "c"]
FIRST = torch.tensor([[0.6, 0.1, 0.3], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]], dtype=torch.float64)  # p0(letter | previous)
CHAIN = MarkovLM(FIRST.log(), FIRST[0].log(), tokens=LETTERS, name="letters")
ONE, OTHER = Regex("aa|ab|ba|ca"), Regex("aa|ab|bb|ca")
"""After "b" each of them still allows something, and nothing is allowed by both: a dead end."""
MET = ("aa", "ab", "ca")
PAY = {"aa": 0.0, "ab": 1.0, "ca": 0.5}
NUM = 2000


def forbidden():
    """The world picks the letter before the agent's two."""
    mood = environment("mood", dist.Categorical(probs=torch.tensor([0.5, 0.5], dtype=torch.float64)))
    said = completion("said", CHAIN, mood[..., None], max_new_tokens=2)
    constrain("one", ONE, said)
    constrain("other", OTHER, said)
    reward("pay", lambda texts: [PAY.get(text, 0.0) for text in texts], said, beta=0.5)


@pytest.fixture
def untrained(monkeypatch):
    """SVI that draws from its guide as it begins: the prior, kept to the constraints token by token."""
    monkeypatch.setattr(SVI, "train", lambda *args, **kwargs: [0.0])


def enumerated():
    """``(pi'(text | mood) [2, 3], J)``: the prior, kept to what both allow next, and given that it did not end dead."""
    law = torch.zeros(2, len(MET), dtype=torch.float64)
    log_p0 = torch.zeros_like(law)
    for mood in range(2):
        for i, (x, y) in enumerate(MET):
            first, second = FIRST[mood, LETTERS.index(x)], FIRST[LETTERS.index(x), LETTERS.index(y)]
            log_p0[mood, i] = (first * second).log()
            allowed = sum(FIRST[LETTERS.index(x), LETTERS.index(t[1])] for t in MET if t[0] == x)
            law[mood, i] = first * second / allowed
    law = law / law.sum(-1, keepdim=True)
    psi = torch.tensor([PAY[text] for text in MET], dtype=torch.float64) / 0.5
    return law, float((law * (psi + log_p0 - law.log())).sum(-1).mean())


def test_a_policy_writes_again_what_ended_dead_and_the_world_is_left_alone(untrained):
    run = SVI(num_particles=NUM, num_replicates=4).run(forbidden)
    law, j = enumerated()
    size = run.log_weight.numel()
    assert run.log_weight.eq(0).all()
    assert not run.warnings
    texts, moods = run.particles["said"].texts(), run.particles["mood"].reshape(-1)
    assert set(texts) == set(MET), "no draw breaks a hard constraint"
    # weights of zero for dead ends would tilt the world: P(mood = 1) = .357
    assert abs(float(moods.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(size)
    for mood in range(2):
        here = [text for text, m in zip(texts, moods.tolist(), strict=True) if m == mood]
        for text, p in zip(MET, law[mood].tolist(), strict=True):
            assert abs(here.count(text) / len(here) - p) < 4 * math.sqrt(p * (1 - p) / len(here))
    found, error = decision_value(run)
    assert error < 0.02
    assert abs(found - j) < 4 * error, "tries that were thrown away are paid for"


def test_a_constraint_that_is_never_met_is_given_up(untrained, monkeypatch):
    monkeypatch.setattr("ppl_align.runner.infeasible.MAX_TRIES", 2)
    with pytest.raises(RunError, match="'said' ended without meeting its hard constraints 2 times in a row") as caught:
        SVI(num_particles=NUM, num_replicates=4).run(forbidden)
    assert "\n" not in str(caught.value)


def test_a_policy_that_meets_a_likelihood_of_zero_has_no_finite_value(untrained):
    """The world forbids it now and then, whatever the agent says: J is -inf, and that is said."""

    def harsh():
        said = completion("said", CHAIN, [0], max_new_tokens=1)
        luck = environment("luck", dist.Bernoulli(torch.tensor(0.1, dtype=torch.float64)))
        reward("safe", lambda tokens: torch.where(luck == 1, -torch.inf, 0.0), said.tokens)

    run = SVI(num_particles=200).run(harsh)
    assert run.log_weight.eq(0).all()
    assert decision_value(run).value == -math.inf
    (line,) = run.warnings
    assert "(at 'safe'): its J is -inf" in line


# -- what SVI says of draws of likelihood zero -------------------------------------------------------------------------


def own():
    """A guide of the user's own, which nothing keeps to the constraints."""
    weights = pyro.param("p", torch.zeros(3, dtype=torch.float64))
    completion("said", MarkovLM(FIRST.log(), weights, tokens=LETTERS, name="letters"), [], max_new_tokens=2)


def kept():
    said = completion("said", CHAIN, [], max_new_tokens=2)
    constrain("one", ONE, said)
    constrain("other", OTHER, said)


def unkept():
    constrain("one", ONE, completion("said", CHAIN, [], max_new_tokens=2))


NEXT = torch.cat([FIRST.log(), torch.full((3, 1), -torch.inf)], 1)
ENDLESS = MarkovLM(torch.cat([NEXT, NEXT[:1]]), NEXT[0], eos_id=3, tokens=[*LETTERS, "</s>"], name="endless")


def unforeseen():
    """A look ahead writes empty texts, which have no first letter; the LM never does."""
    said = completion("said", ENDLESS, [], max_new_tokens=2)
    said.text.map(lambda text: ord(text[0]))
    constrain("one", ONE, said)


@pytest.mark.parametrize(
    ("engine", "program", "says"),
    [
        (SVI(), kept, "dead ends: .* draws kept to '(one|other)' while they could"),
        (SVI(guide=own), unkept, "do not meet 'one', and nothing keeps them to it"),
        (SVI(), unforeseen, "do not meet 'one', and nothing keeps them to it. .* right after its completion"),
    ],
    ids=["kept", "own", "unforeseen"],
)
def test_what_is_said_of_draws_that_break_a_constraint(engine, program, says):
    with pytest.raises(RunError, match=says) as caught:
        engine.run(program)
    assert "\n" not in str(caught.value)


def test_a_constraint_that_was_not_foreseen_is_remarked_on_and_named_where_all_die():
    """Engines that weigh reject at the end what they could not draw within; without constraints there is no hint."""
    run = ImportanceSampling(64, 16).run(unforeseen)
    assert any("constraint on 'said' acts only at the end, as a rejection" in line for line in run.warnings)
    z = run.log_evidence.exp()
    assert abs(z.mean() - math.exp(Enumeration().run(unforeseen).log_evidence)) < 4 * z.std() / len(z) ** 0.5

    def hopeless(constrained):
        said = completion("said", ENDLESS, [], max_new_tokens=2)
        said.text.map(lambda text: 1 / len(text))
        if constrained:
            constrain("one", ONE, said)
        pyro.factor("never", torch.full(said.shape, -torch.inf))

    with pytest.raises(AllDeadError, match=r"the constraint on 'said' acts only at the end.*ZeroDivisionError"):
        ImportanceSampling(8).run(hopeless, True)
    with pytest.raises(AllDeadError) as caught:
        ImportanceSampling(8).run(hopeless, False)
    assert "constraint" not in str(caught.value)


def test_a_constraint_met_by_the_users_own_guide_is_no_obstacle():
    def careful():
        completion("action", MarkovLM(FIRST.log(), FIRST[0].log(), tokens=LETTERS), [], max_new_tokens=1)

    def program():
        constrain("letters", Regex("[abc]"), completion("action", CHAIN, [], max_new_tokens=1))

    assert SVI(guide=careful, num_steps=2).run(program).log_weight.isfinite().all()


def test_dynamic_structure_is_named_while_svi_learns():
    def program():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.01, dtype=torch.float64)))
        if bool((z > 0).any()):
            pyro.factor("bonus", z)

    with pytest.raises(ModelError, match=r"structure changes from run to run \(site 'bonus'\)"):
        SVI(num_steps=200).run(program)
