"""What an agent that conditions would get, played out: no bias from the few continuations that it chooses among."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from conftest import SEED
from torch import Tensor
from toys.lms import AB
from toys.worlds import dialogue, game, talk

from ppl_align import Enumeration, ImportanceSampling, completion, constrain, environment, reward
from ppl_align.constraints import Contains
from ppl_align.engines.environment import coupling, optimism
from ppl_align.particles.particles import Particles
from ppl_align.program import Program
from ppl_align.runner.known_constraints import known_constraints
from ppl_align.runner.runner import Runner
from ppl_align.testing.oracle import Oracle

P = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
Q = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)


def test_two_draws_keep_their_laws_and_agree_as_often_as_can_be() -> None:
    n = 20_000
    for p, q in zip(P, Q, strict=True):
        i, j = coupling.couple(p.expand(n, -1), q.expand(n, -1))
        for drawn, law in ((i, p), (j, q)):
            seen = torch.bincount(drawn, minlength=4) / n
            assert ((seen - law).abs() <= 4.5 * (law * (1 - law) / n).sqrt()).all()
        agree = float(torch.minimum(p, q).sum())
        assert abs(float((i == j).double().mean()) - agree) <= 4.5 * math.sqrt(agree * (1 - agree) / n)


def runner_of(model: Callable[[], None]) -> Runner:
    program = Program(model)
    return Runner(program, constraints=known_constraints(program))


def worth(x: Tensor) -> Tensor:
    return (x == 1).sum(-1).double() - 0.5 * (x == 0).sum(-1).double()


def free(beta: float = 0.7) -> None:
    x = completion("x", AB, "", max_new_tokens=3)
    reward("r", worth, x.tokens, beta=beta)


def confined() -> None:
    x = completion("x", AB, "", max_new_tokens=3)
    constrain("c", Contains("b"), x)
    reward("r", worth, x.tokens, beta=0.7)


def rejecting() -> None:
    x = completion("x", AB, "", max_new_tokens=3)
    reward("r", lambda t: torch.where((t == 1).any(-1), worth(t), -torch.inf), x.tokens, beta=0.7)


def hot() -> None:
    free(beta=0.25)


@pytest.mark.parametrize("tries", [4, 8])
@pytest.mark.parametrize("program", [free, confined, rejecting, hot], ids=lambda program: program.__name__)
def test_a_turn_has_the_law_of_conditioning_in_the_mean(
    program: Callable[[], None], tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statistic of what is said, against the table of the exact posterior; plain choice among K is far off."""
    monkeypatch.setattr(coupling, "MAX_ROUNDS", 1000)
    exact, size = Enumeration().run(program), 3000
    torch.manual_seed(SEED)
    said = coupling.condition(runner_of(program), Particles(size), tries)
    assert float(said.lost.double().mean()) < 0.03, "of the rejecting one, a few find nothing in seven tries"
    tokens = said.histories.values["x"]
    counted = torch.zeros(size, dtype=torch.float64).index_add(0, said.owner, said.sign)
    assert torch.equal(counted, torch.ones(size, dtype=torch.float64)), "signs cancel but for one"
    for f in (worth, lambda t: (t[..., 0] == 1).double(), lambda t: (t == 2).any(-1).double()):
        each = torch.zeros(size, dtype=torch.float64).index_add(0, said.owner, said.sign * f(tokens))
        value = float((exact.weights * f(exact.particles["x"].tokens)).sum())  # type: ignore[union-attr]
        each = each[~said.lost]
        assert abs(float(each.mean()) - value) < 4.5 * float(each.std()) / math.sqrt(size)


def test_chains_that_find_nothing_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coupling, "MAX_ROUNDS", 3)

    def hopeless() -> None:
        x = completion("x", AB, "", max_new_tokens=3)
        reward("r", lambda t: torch.full(t.shape[:-1], -torch.inf), x.tokens)

    said = coupling.condition(runner_of(hopeless), Particles(20), 4)
    assert said.lost.all()


def two_turns(con: bool = False) -> None:
    x = completion("x", AB, "", max_new_tokens=2)
    if con:
        constrain("c", Contains("b"), x)
    coin = dist.Categorical(torch.tensor([0.35, 0.65], dtype=torch.float64))
    o = environment("o", lambda text, z: "b" if (z == 1) == ("a" in text) else "a", x, noise=coin)
    y = completion("y", AB, ("a", x.text + o), max_new_tokens=2)
    end = environment("end", lambda text, z: "b" if (z == 1) == ("a" in text) else "a", y, noise=coin)
    pay = lambda texts: [t.count("b") - 0.3 * t.count("a") for t in texts]  # noqa: E731
    reward("r", pay, x.text + o + y.text + end, beta=0.7)


def three_turns() -> None:
    x = completion("x", AB, "", max_new_tokens=1)
    coin = dist.Categorical(torch.tensor([0.35, 0.65], dtype=torch.float64))
    o = environment("o", lambda text, z: "ab"[z] + text, x, noise=coin)
    y = completion("y", AB, ("a", o), max_new_tokens=1)
    o2 = environment("o2", lambda text, z: "ab"[z] + text, y, noise=coin)
    z = completion("z", AB, ("a", o2), max_new_tokens=1)
    reward("r", lambda texts: [float(t.count("b")) for t in texts], x.text + o + y.text + o2 + z.text, beta=0.8)


def sometimes() -> None:
    """A reward that does not apply where the world says nothing to it."""
    x = completion("x", AB, "", max_new_tokens=1)
    coin = dist.Categorical(torch.tensor([0.35, 0.65], dtype=torch.float64))
    o = environment("o", lambda text, z: "ab"[z] + text, x, noise=coin)
    y = completion("y", AB, ("a", o), max_new_tokens=2)
    pay = lambda texts: [None if "ba" in t else float(t.count("b")) for t in texts]  # noqa: E731
    reward("r", pay, o + y.text, beta=0.8)


PROGRAMS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "two turns": (two_turns, {}),
    "two turns, constrained": (two_turns, {"con": True}),
    "three turns": (three_turns, {}),
    "a reward that need not apply": (sometimes, {}),
    "dialogue": (dialogue, {}),
    "nothing left to say": (game, {}),
    "an LM answers": (talk, {}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_it_gets_is_unbiased(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against enumeration; the run's own draws are many, so that what is left is what the agent says afterwards."""
    program, options = PROGRAMS[name]
    monkeypatch.setattr(optimism, "NUM_DRAWS", 200)
    monkeypatch.setattr(coupling, "MAX_ROUNDS", 500)
    exact = Enumeration().run(program, **options).optimism
    found = ImportanceSampling(20_000, 1).run(program, seed=SEED, **options).optimism
    assert exact is not None
    assert found is not None
    (reward_name,) = exact.executed_mean
    value, error = found.executed_mean[reward_name]
    assert abs(value - exact.executed_mean[reward_name].value) < 4 * error
    assert 0 < error < 0.23


@pytest.mark.statistical
def test_over_many_seeds_at_its_usual_size() -> None:
    """Thirty-two draws and eight tries: the mean of what is printed, and its bar."""
    exact = Enumeration().run(two_turns).optimism
    assert exact is not None
    runs = [ImportanceSampling(250, 4).run(two_turns, seed=SEED + s).optimism for s in range(12)]
    values = torch.tensor([run.executed_mean["r"] for run in runs if run is not None], dtype=torch.float64)
    off = values[:, 0] - exact.executed_mean["r"].value
    assert abs(float(off.mean())) < 4 * float(off.std()) / math.sqrt(12)
    assert float((off.abs() < 1.96 * values[:, 1]).double().mean()) > 0.6


def test_the_oracle_agrees_with_the_table_that_the_others_are_held_to() -> None:
    assert Oracle(free).log_evidence == pytest.approx(float(Enumeration().run(free).log_evidence), abs=1e-6)
