"""Two sites of one name are an error of one line, whatever they are and whichever engine runs the program."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from toys.rewards import lengths
from toys.worlds import HOST

from ppl_align import (
    SMC,
    SVI,
    Completion,
    Contains,
    Engine,
    Enumeration,
    ImportanceSampling,
    Rejection,
    TreePlanner,
    completion,
    constrain,
    environment,
    label,
    reward,
)
from ppl_align.core.errors import ModelError, PplAlignError

Site = Callable[[str, Completion], object]


SITES: dict[str, Site] = {
    "a completion": lambda name, x: completion(name, HOST, " hm", max_new_tokens=1),
    "a reward": lambda name, x: reward(name, lengths, x, upper=9.0),
    "a constraint": lambda name, x: constrain(name, Contains("yes"), x),
    "a tool": lambda name, x: environment(name, str.upper, x),
    "a world with luck": lambda name, x: environment(name, lambda text, rng: text, x),
    "a world of few values": lambda name, x: environment(name, dist.Categorical(torch.ones(2))),
    "a latent": lambda name, x: pyro.sample(name, dist.Categorical(torch.ones(2))),
    "an observation": lambda name, x: label(name, torch.zeros(()), 1),
    "a factor": lambda name, x: pyro.factor(name, torch.zeros(())),
}
ENGINES = [ImportanceSampling(4, 2), SMC(4, 2), SVI(num_steps=2), Enumeration(), Rejection(4, 2), TreePlanner()]


def called(first: Site, second: Site, *names: str) -> Callable[[], None]:
    def program() -> None:
        x = completion("x", HOST, " hm", max_new_tokens=1)
        first(names[0], x)
        second(names[-1], x)

    return program


@pytest.mark.parametrize("kind", SITES)
def test_twice_the_same_kind(kind: str) -> None:
    with pytest.raises(ModelError, match=r"two sites are called 'twice', an? .* and another: give every site") as error:
        ImportanceSampling(4, 2).run(called(SITES[kind], SITES[kind], "twice"))
    assert len(str(error.value).splitlines()) == 1
    said = "an environment" if "tool" in kind or "world" in kind else kind
    assert f"'twice', {said} and another" in str(error.value)


@pytest.mark.parametrize("kind", [kind for kind in SITES if kind != "a tool"])
def test_a_tool_and_something_else(kind: str) -> None:
    for order in ((SITES["a tool"], SITES[kind]), (SITES[kind], SITES["a tool"])):
        with pytest.raises(ModelError, match=r"two sites are called 'both', an? .*environment"):
            ImportanceSampling(4, 2).run(called(*order, "both"))


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_every_engine_says_so_before_it_draws(engine: Engine) -> None:
    for kind in ("a reward", "a tool", "a completion"):
        with pytest.raises(PplAlignError, match="two sites are called 'twice'"):
            engine.run(called(SITES[kind], SITES[kind], "twice"))


@pytest.mark.parametrize("kind", SITES)
def test_two_names_are_two_sites(kind: str) -> None:
    run = ImportanceSampling(4, 2).run
    assert run(called(SITES[kind], SITES[kind], "one", "two")).log_weight.shape == (2, 4)


def test_the_same_name_in_the_next_run_and_by_hand_is_fine() -> None:
    program = called(SITES["a tool"], SITES["a reward"], "one", "two")
    first, second = (ImportanceSampling(4, 2).run(program, seed=0) for _ in range(2))
    assert torch.equal(first.log_weight, second.log_weight)
    assert environment("tool", len, "ab") == environment("tool", len, "cd") == 2
