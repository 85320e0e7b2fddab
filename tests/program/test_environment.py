"""What the world answers: asked once, replayed as it was, never steered."""

from __future__ import annotations

import gc
import math
from fractions import Fraction

import pyro
import pyro.distributions as dist
import pytest
import torch
from toys.worlds import ASSISTANT, GUEST, HOST, dialogue, speaker, talk

from ppl_align import (
    SMC,
    SVI,
    CallableLM,
    Contains,
    Enumeration,
    ImportanceSampling,
    LengthLimit,
    Posterior,
    Rejection,
    TreePlanner,
    choose,
    compare,
    completion,
    constrain,
    environment,
    reward,
)
from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError, ModelError, RunError
from ppl_align.core.text import Texts
from ppl_align.engines.smc.twisted import TwistedSMC
from ppl_align.guides.program import ProgramGuide
from ppl_align.particles.particles import Particles
from ppl_align.program import Program
from ppl_align.program.sketch import sketch

# -- functions ---------------------------------------------------------------------------------------------------------


def test_a_tool_is_asked_once_about_each_distinct_input():
    asked = []

    def tool(text, times):
        asked.append((text, times))
        return text * times

    with measure() as cost:
        answers = environment("tool", tool, Texts(["a", "b", "a"]), torch.tensor([2, 1, 2]))
    assert answers.tolist() == ["aa", "b", "aa"]
    assert asked == [("a", 2), ("b", 1)]
    assert cost.environment_calls == 2


def test_numbers_come_back_as_a_tensor():
    lengths = environment("length", len, Texts(["a", "bcd"]))
    assert lengths.tolist() == [1, 3]
    assert lengths.dtype == torch.long
    assert environment("half", lambda n: n / 2, lengths).tolist() == [0.5, 1.5]
    assert environment("greeting", lambda name: f"hello {name}", "you") == "hello you"


def searching():
    query = completion("query", HOST, " hm", max_new_tokens=2)
    found = environment("search", lambda text: {"yes": " no", "no": " hm"}.get(text.split()[0], " yes"), query)
    answer = completion("answer", HOST, found, max_new_tokens=1)
    reward("same", lambda texts: [float(a == b) for a, b in map(str.split, texts)], found + answer.text, upper=1)


def test_a_tool_without_randomness_is_part_of_the_program_and_nothing_else():
    exact = Enumeration().run(searching)
    assert exact.environment == ()
    assert exact.optimism is None
    # P(found, answer agree) under p0, by hand: first word yes -> no, no -> hm, hm -> yes
    agree = 0.5 * 0.3 + 0.3 * 0.2 + 0.2 * 0.5
    assert math.isclose(float(exact.log_evidence), math.log(1 - agree + agree * math.e), rel_tol=1e-9)
    run = ImportanceSampling(num_particles=200).run(searching)
    assert run.cost.environment_calls == 3**2, "one call for each query, however often the program is executed"
    value, error = run.mean("same")
    assert abs(value - exact.mean("same").value) < 4 * error


def test_an_answer_is_executed_again_as_it_was():
    def program():
        word = completion("word", HOST, " hm", max_new_tokens=1)
        said = environment("said", lambda text, rng: f"{text} {rng.random()}", word)
        if said.shape == (5,):
            seen.append(said.tolist())
        completion("next", HOST, " hm", max_new_tokens=1)

    seen: list = []
    run = ImportanceSampling(num_particles=5, num_replicates=1).run(program)
    assert len({answer.split()[1] for answer in seen[-1]}) == 5, "each particle has a seed of its own"
    assert seen[-1] == seen[-2], "the program was executed anew after the last completion"
    values = {name: getattr(value, "tokens", value)[0] for name, value in run.particles.items()}
    Program(program).run(Particles(5, values), draw=False)
    assert seen[-1] == seen[-3], "and now once more"


def test_by_hand_each_element_has_its_own_randomness():
    answers = environment("die", lambda text, rng: text + str(rng.random()), Texts(["a", "a"]))
    assert answers.flat[0] != answers.flat[1]


def noisy():
    said = completion("said", HOST, " hm", max_new_tokens=1)
    reply = environment("reply", lambda text, z: text if z < 2 else " no", said, noise=dist.Categorical(torch.ones(3)))
    reward("agrees", lambda texts: [float(text == " yes") for text in texts], reply, beta=0.5, upper=1.0)


def test_noise_with_few_values_can_be_enumerated():
    exact = Enumeration().run(noisy)
    assert exact.environment == ("reply",)
    assert math.isclose(float(exact.log_evidence), math.log(1 + 0.5 * (2 / 3) * (math.e**2 - 1)), rel_tol=1e-6)
    assert math.isclose(
        exact.optimism.executed_mean["agrees"].value, (2 / 3) * float(exact.mean(_says_yes).value), rel_tol=1e-6
    )
    value, error = SMC(num_particles=300).run(noisy).mean("agrees")
    assert abs(value - exact.mean("agrees").value) < 4 * error


def _says_yes(particles):
    return (particles["said"].tokens[..., 0] == 0).double()


def test_inside_a_plate():
    def program():
        with pyro.plate("guests", 2):
            said = completion("said", HOST, [" yes", " no"], max_new_tokens=1)
            reply = environment("reply", GUEST, said, max_new_tokens=1)
            mood = environment("mood", lambda a, b, z: float(a == b) + z, said, reply, noise=dist.Bernoulli(0.5))
            reward("r", lambda m: m[..., 0], mood[..., None], beta=0.7)

    exact = Enumeration().run(program)
    value, error = ImportanceSampling(num_particles=2000).run(program).mean("r")
    assert abs(value - exact.mean("r").value) < 4 * error
    for part in exact.log_prior.values():
        assert part.shape == exact.log_weight.shape


def flattered():
    said = completion("said", HOST, " hm", max_new_tokens=1)
    reply = environment("reply", lambda text, rng: rng.choice(["well", "bad"]) + text, said)
    completion("more", HOST, said, max_new_tokens=1)
    reward("well", lambda texts: [float(text.startswith("well")) for text in texts], reply, upper=1.0)


ENGINES = (ImportanceSampling(), SMC(), SVI(num_steps=3), TreePlanner(), Rejection(num_particles=8))


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_what_the_world_said_can_be_read(engine, tmp_path):
    run = engine.run(flattered)
    table = run.table()
    assert (table["reply"].str.startswith("well") == (table["well"] == 1)).all()
    assert all(reply.endswith(said) for reply, said in zip(table["reply"], table["said"], strict=True))
    back = Posterior.load(run.save(tmp_path / "run.nc"))
    assert list(back.draws(5)["reply"]) == list(run.draws(5)["reply"])
    assert "world calls" in str(compare([run]))


# -- one clear line ----------------------------------------------------------------------------------------------------


async def patient(text):
    return text


def recursive(text):
    return environment("inner", len, text)


def a_site(text):
    return completion("inner", HOST, text, max_new_tokens=1).text


@pytest.mark.parametrize(
    ("world", "options", "error", "line"),
    [
        (lambda text: 1 / 0, {}, RunError, r"environment 'w' raised ZeroDivisionError: .*, asked about ' hm'"),
        (lambda: "a", {}, RunError, r"environment 'w' raised TypeError: .*1 was given"),
        (lambda text: [text], {}, RunError, r"one particle at a time.*asked about ' hm' it returned a list of 1"),
        (lambda text: None, {}, RunError, r"with a string or a number.*returned None"),
        (lambda text: math.nan, {}, RunError, r"returned nan"),
        (lambda text: 2**70, {}, RunError, r"environment 'w' answers with a number that 64 bits do not hold.*' hm'"),
        (lambda text: Fraction(10**400), {}, RunError, r"a number that 64 bits do not hold"),
        (lambda text: patient(text), {}, RunError, r"its function is async: make it a plain one .*asyncio\.run"),
        (recursive, {}, ModelError, r"environment 'w' is circular: its function runs 'inner'"),
        (a_site, {}, ModelError, r"environment 'w' is circular: its function runs 'inner'"),
        (3, {}, InputError, r"a function, a Pyro distribution or a language model, got int"),
        (dict, {}, InputError, r"got the class dict"),
        (len, {"noise": 2}, InputError, r"noise= takes a Pyro distribution, got int"),
        (len, {"max_new_tokens": 2}, InputError, r"max_new_tokens= goes with a language model"),
        (HOST, {"noise": dist.Bernoulli(0.5)}, InputError, r"a language model takes one prompt"),
        (dist.Bernoulli(0.5), {}, InputError, r"a distribution takes no inputs"),
    ],
)
def test_what_cannot_answer_says_so_in_one_line(world, options, error, line):
    def program():
        completion("said", HOST, " hm", max_new_tokens=1)
        environment("w", world, " hm", **options)

    with pytest.raises(error, match=line) as caught:
        ImportanceSampling(num_particles=4).run(program)
    assert "\n" not in str(caught.value)


def test_the_largest_whole_numbers_are_answers():
    assert environment("w", lambda text: 2**63 - 1, "a").tolist() == 2**63 - 1
    assert environment("w", lambda text: -(2**63), "a").tolist() == -(2**63)


def test_an_async_world_leaves_nothing_that_was_never_awaited(recwarn):
    with pytest.raises(RunError, match="async"):
        environment("w", patient, Texts(["a", "b"]))
    gc.collect()
    assert not list(recwarn)


def test_text_and_numbers_do_not_mix():
    with pytest.raises(RunError, match="now with text, now with numbers"):
        environment("w", lambda text: text if text == "a" else 1, Texts(["a", "b"]))


def test_shapes_that_do_not_fit():
    with pytest.raises(InputError, match=r"shapes \(2,\), \(3,\), which do not fit together"):
        environment("w", lambda a, b: a, Texts(["a", "b"]), torch.zeros(3))


# -- a simulated user --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [ImportanceSampling, SMC])
def test_a_proposal_does_not_speak_for_the_world(engine):
    run = engine(num_particles=500, proposal=speaker(0.1, 0.1, 0.8)).run(talk)
    exact = Enumeration().run(talk)
    value, error = run.mean("mood")
    assert abs(value - exact.mean("mood").value) < 4 * error
    heard = run.particles["heard"].tokens
    if run.independent:  # as drawn, before any weight: the guest's own law, and no other
        assert abs(float((heard == 1).double().mean()) - 0.7) < 4 * 0.5 / heard.numel() ** 0.5
    assert run.environment == ("heard",)


def test_a_run_tells_its_sites_in_the_order_of_the_program():
    """Whose turn it was is read off the order; a guide may draw the agent's last word first."""

    def backwards(beta=1.0):
        completion("second", ASSISTANT, [0, 0], max_new_tokens=1)

    run = ImportanceSampling(num_particles=4, proposal=ProgramGuide(backwards)).run(dialogue)
    assert list(run.particles) == list(Enumeration().run(dialogue).particles) == ["first", "mood", "second", "verdict"]


def test_a_forecast_asks_the_world_as_often_as_a_run():
    with measure() as cost:
        Rejection(num_particles=8).forecast(searching)
    assert cost.environment_calls == 3**2


def test_a_twist_does_not_steer_the_world(monkeypatch):
    drawn = []
    original = SMC(num_particles=100, twist="prefix", ess_threshold=1.0)

    def spy(self, decode):
        drawn.append(decode.site.name)
        return kept(self, decode)

    kept = TwistedSMC.drew
    monkeypatch.setattr(TwistedSMC, "drew", spy)
    value, error = original.run(talk).mean("mood")
    assert set(drawn) == {"said"}
    assert abs(value - Enumeration().run(talk).mean("mood").value) < 4 * error


def test_constraints_behind_a_world_that_answers_with_numbers_are_known():
    def program():
        said = completion("said", HOST, " hm", max_new_tokens=1)
        count = environment("count", len, said)
        more = torch.where(count > 3, 1, 0)
        then = completion("then", HOST, choose(more, [" yes", " no"]), max_new_tokens=3)
        constrain("word", Contains("yes"), then)

    assert list(sketch(Program(program)).matchers) == ["then"]
    run = ImportanceSampling(num_particles=32, num_replicates=1).run(program)
    assert not run.log_weight.isneginf().any(), "every draw is from within"


three = CallableLM(3, lambda prefix: torch.tensor([0.4, 0.3, 0.3]).double().log().expand(len(prefix), -1), eos_id=2)


ENGINES = [ImportanceSampling(64), SMC(64), SVI(num_steps=2), Rejection(16), Enumeration()]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_constraint_that_the_world_sets_is_known_before_the_first_token(engine):
    """What is asked with an input that is one for all has one answer, and engines draw within what follows from it."""

    def program(question="how long?"):
        limit = environment("limit", lambda text: 2, question)
        x = completion("x", three, [0], max_new_tokens=3)
        constrain("short", LengthLimit(max_tokens=int(limit)), x)

    run = engine.run(program)
    written = [row for row, weight in zip(run.completions["x"].ids, run.weights.reshape(-1), strict=True) if weight > 0]
    assert max(map(len, written)) == 2
    if engine.name in ("importance", "smc"):
        z = run.log_evidence.exp()
        assert abs(z.mean() - (1 - 0.7**3)) < 4 * z.std() / len(z) ** 0.5


@pytest.mark.parametrize(
    "engine", [ImportanceSampling(4), SMC(4), SVI(num_steps=2), TreePlanner()], ids=lambda e: e.name
)
def test_a_constraint_that_changes_with_what_was_drawn_is_refused(engine):
    """Engines confine what they draw before the constraint is known, so they would confine it to something else."""

    def program():
        limit = environment("limit", lambda text, rng: rng.choice([2, 2]), three.decode([0]))
        x = completion("x", three, [0], max_new_tokens=3)
        constrain("short", LengthLimit(max_tokens=int(limit.max())), x)
        pyro.factor("luck", 0.1 * limit)

    with pytest.raises(ModelError, match="the constraint on 'x' changes with what was drawn before it"):
        engine.run(program)
