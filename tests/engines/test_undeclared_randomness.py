"""A program that says something else when it is executed again is an error of every engine, whatever changes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import count

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from toys.rewards import lengths, noisy
from toys.worlds import HOST

from ppl_align import (
    SMC,
    SVI,
    Completion,
    Engine,
    Enumeration,
    ImportanceSampling,
    MarkovLM,
    Regex,
    Rejection,
    TreePlanner,
    completion,
    constrain,
    environment,
    reward,
)
from ppl_align.core.cost import measure
from ppl_align.core.errors import ModelError
from ppl_align.core.runs import run_memory

Source = Callable[[], float]
_generator, _counter = np.random.default_rng(0), count()
SOURCES: dict[str, Source] = {
    "random": random.random,
    "torch": lambda: float(torch.rand(())),
    "the old NumPy": lambda: float(np.random.rand()),  # noqa: NPY002
    "a generator of NumPy's": lambda: float(_generator.random()),
    "the clock": lambda: time.perf_counter() * 1e4 % 1,
    "a counter": lambda: next(_counter) * 0.381966 % 1,
}


Thing = Callable[[float, Completion], object]
# What engines say that look for themselves, before any draw is executed again.
OWN = "the bounds of the rewards change from run to run|the constraint on 'x' changes"
THINGS: dict[str, tuple[Thing, str]] = {
    "the number of sites": (
        lambda u, x: [pyro.factor(f"f{i}", torch.zeros(())) for i in range(1 + int(u * 1e6) % 7)],
        "structure changes|other sites",
    ),
    "the name of a site": (lambda u, x: pyro.factor(f"f{u:.12f}", torch.zeros(())), "structure changes|other sites"),
    "a prompt": (
        lambda u, x: completion("y", HOST, [0] * (1 + int(u * 1e6) % 50), max_new_tokens=1),
        "'y' has another prompt",
    ),
    "a language model": (
        lambda u, x: completion("y", MarkovLM(torch.tensor([[u, 0.0], [0.0, u]]).double()), [0], max_new_tokens=1),
        "'y' has another language model",
    ),
    "a factor": (lambda u, x: pyro.factor("f", torch.tensor(-u)), "'f' has another log-factor"),
    "an observed value": (
        lambda u, x: pyro.sample("o", dist.Normal(0.0, 1.0), obs=torch.tensor(u)),
        "'o' has another observed value",
    ),
    "the weight of a reward": (
        lambda u, x: reward("r", lengths, x, weight=-u, lower=0.0),
        "'r' has another weight / beta",
    ),
    "a bound": (lambda u, x: reward("r", lengths, x, upper=9.0 + u), "'r' has another bound"),
    "a constraint": (
        lambda u, x: constrain("c", Regex(f"(?s).*|q{{{int(u * 1e6) % 97}}}"), x),
        "'c' has another constraint|the constraint on 'x' changes",
    ),
    "the prior of a latent": (lambda u, x: pyro.sample("z", dist.Bernoulli(0.25 + u / 2)), "'z' has another prior"),
}
ENGINES = [
    ImportanceSampling(16, 2),
    SMC(num_particles=16, num_replicates=2),
    Rejection(4, 2),
    SVI(num_steps=2),
    Enumeration(),
    TreePlanner(),
]


def program(source: Source, thing: Thing) -> Callable[[], None]:
    def model() -> None:
        x = completion("x", HOST, " hm", max_new_tokens=2)
        environment("luck", dist.Categorical(torch.ones(2)))  # TreePlanner wants a world
        thing(source(), x)
        reward("known", lengths, x, beta=9.0, weight=-1.0, lower=0.0, upper=9.0)

    return model


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_in_every_thing(source: str, thing: str) -> None:
    said, words = THINGS[thing]
    with pytest.raises(ModelError, match=words) as error:
        ImportanceSampling(64, 2).run(program(SOURCES[source], said))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("thing", ["an observed value", "a prompt", "the weight of a reward", "a bound"])
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_every_engine(engine: Engine, thing: str) -> None:
    likely = {"an observed value": lambda u, x: pyro.sample("o", dist.Bernoulli(0.3), obs=torch.tensor(float(u < 0.5)))}
    with pytest.raises(ModelError, match=f"has another|{OWN}"):
        engine.run(program(random.random, likely.get(thing, THINGS[thing][0])))


def test_a_coin_that_is_tossed_in_a_program_is_found() -> None:
    """Twenty runs, each of which would miss it once in 2^15."""
    for seed in range(20):
        with pytest.raises(ModelError, match="'coin' has another log-factor"):
            ImportanceSampling(4, 2).run(
                program(random.random, lambda u, x: pyro.factor("coin", torch.tensor(float(u < 0.5)))), seed=seed
            )


def test_a_length_that_changes_while_a_guide_is_trained() -> None:
    with pytest.raises(ModelError, match=r"'y' has shape|has another settings") as error:
        SVI(num_steps=20).run(program(random.random, lambda u, x: completion("y", HOST, [0], 1 + int(u * 1e6) % 5)))
    assert len(str(error.value).splitlines()) == 1


def test_a_language_model_that_is_made_anew_is_the_same_if_its_numbers_are() -> None:
    def model() -> None:
        x = completion("x", MarkovLM(torch.tensor([[0.5, 0.0], [0.0, 0.5]]).double()), [0], max_new_tokens=2)
        reward("r", lengths, x)

    assert ImportanceSampling(16).run(model).log_evidence.isfinite().all()


def test_declared_randomness_is_none() -> None:
    """The same sources as latents, in the world, in a reward (asked once a text) and before the program."""
    noise = random.random()

    def model() -> None:
        x = completion("x", HOST, " hm", max_new_tokens=2)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        said = environment("luck", lambda text, rng: text + rng.choice([" yes", " no"]), x)
        tool = environment("tool", lambda text: random.choice([" yes", " no"]), x)
        y = completion("y", HOST, (x, said, tool, " hm"), max_new_tokens=1)
        reward("judge", noisy, y)
        pyro.factor("f", noise * z)

    for engine in (ImportanceSampling(16, 2), SMC(num_particles=16, num_replicates=2)):
        assert engine.run(model).log_weight.shape == (2, 16)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_no_further_question_is_asked(engine: Engine) -> None:
    """Each distinct text once: what is executed again answers from the run's memory."""
    asked: list[str] = []

    def judge(texts: list[str]) -> list[float]:
        asked.extend(texts)
        return [-1.0 for _ in texts]

    def model() -> None:
        x = completion("x", HOST, " hm", max_new_tokens=1)
        environment("luck", dist.Categorical(torch.ones(2)))
        reward("r", judge, x, upper=0.0)

    engine.run(model)
    assert len(asked) == len(set(asked))


def test_a_reward_that_draws_is_noted_and_its_answer_kept() -> None:
    def model() -> None:
        reward("judge", noisy, completion("x", HOST, " hm", max_new_tokens=1))

    posterior = ImportanceSampling(64, 2).run(model)
    texts, r = posterior.completions["x"].texts(), posterior.rewards["judge"].reshape(-1).tolist()
    assert len(set(zip(texts, r, strict=True))) == len(set(texts))
    assert any("'judge' drew random numbers" in line for line in posterior.warnings)
    assert "'judge' drew random numbers" in posterior.summary()


def test_a_run_within_a_run_is_not_checked_twice() -> None:
    with run_memory(), measure() as cost:
        ImportanceSampling(16, 2).run(lambda: completion("x", HOST, " hm", max_new_tokens=1))
    assert cost.lm_forwards <= 1
