"""Runs that take turns know nothing of each other, and end as they would alone."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_align.core.cost import count, count_share, measure
from ppl_align.core.pyro_stack import handlers
from ppl_align.core.seeds import generators
from ppl_align.core.turns import Asked, Turns, ask, taking_turns


def echo(asked: Sequence[Asked]) -> None:
    for one in asked:
        one.answer(one.question)


def of(works: Sequence[Callable[[], Any]], serve: Callable[[Sequence[Asked]], None] = echo) -> list[Any]:
    return [outcome.get() for outcome in Turns(serve).run(works)]


def test_everybody_asks_before_anybody_is_answered() -> None:
    log: list[list[int]] = []

    def serve(asked: Sequence[Asked]) -> None:
        log.append([one.question for one in asked])
        echo(asked)

    def work(number: int) -> Callable[[], list[int]]:
        return lambda: [ask(10 * number + turn) for turn in range(number)]

    assert of([work(n) for n in range(4)], serve) == [[], [10], [20, 21], [30, 31, 32]]
    assert log == [[10, 20, 30], [21, 31], [32]]


def test_only_those_who_are_answered_go_on() -> None:
    def serve(asked: Sequence[Asked]) -> None:
        asked[-1].answer(len(asked))

    assert of([lambda: ask(0)] * 3, serve) == [1, 2, 3]


def draws(seed: int) -> Callable[[], list[float]]:
    def work() -> list[float]:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        found = []
        for _ in range(3):
            found += [float(torch.rand(())), random.random(), float(np.random.rand())]  # noqa: NPY002
            ask(None)
        return found

    return work


def test_random_numbers_are_each_run_s_own() -> None:
    before = generators()
    together = of([draws(seed) for seed in range(3)])
    assert generators() == before
    with torch.random.fork_rng():
        state = random.getstate(), np.random.get_state()  # noqa: NPY002
        for seed, found in enumerate(together):
            assert of([draws(seed)]) == [found]
        assert (random.getstate(), str(np.random.get_state())) == (state[0], str(state[1]))  # noqa: NPY002


def test_pyro_is_each_run_s_own() -> None:
    def work(number: int) -> Callable[[], tuple[list[str], int, float]]:
        def program() -> None:
            pyro.param(f"p{number}", torch.tensor(float(number)), constraint=dist.constraints.positive)
            with pyro.plate("own", 2 + number):
                ask(None)
                pyro.sample(f"x{number}", dist.Normal(0.0, 1.0))

        def run() -> tuple[list[str], int, float]:
            trace = pyro.poutine.trace(program).get_trace()
            ask(None)
            value = pyro.get_param_store()[f"p{number}"]
            return (
                sorted(pyro.get_param_store()),
                len(trace.nodes[f"x{number}"]["value"]),
                float(value.unconstrained().detach()),
            )

        return run

    found = of([work(n) for n in (1, 2, 3)])
    assert [(names, size) for names, size, _ in found] == [([f"p{n}"], 2 + n) for n in (1, 2, 3)]
    assert [value for *_, value in found] == pytest.approx(np.log([1, 2, 3]))
    assert sorted(pyro.get_param_store()) == []
    assert handlers() == []


def test_context_variables_warnings_and_gradients_are_each_run_s_own() -> None:
    mine: ContextVar[int] = ContextVar("mine", default=-1)
    filters = warnings.filters[:]

    def work(number: int) -> Callable[[], tuple[int, bool, int]]:
        def run() -> tuple[int, bool, int]:
            mine.set(number)
            with torch.set_grad_enabled(number % 2 == 0), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                ask(None)
                warnings.warn(f"number {number}", stacklevel=1)
                ask(None)
                return mine.get(), torch.is_grad_enabled(), len(caught)

        return run

    assert of([work(n) for n in range(3)]) == [(0, True, 1), (1, False, 1), (2, True, 1)]
    assert mine.get() == -1
    assert warnings.filters == filters


def test_an_error_ends_its_own_run_only() -> None:
    def fails() -> None:
        ask(None)
        raise ValueError("mine")

    good, bad = Turns(echo).run([lambda: ask(1), fails])
    assert good.get() == 1
    with pytest.raises(ValueError, match="mine"):
        bad.get()


def test_a_refusal_is_met_where_it_was_asked_for() -> None:
    def serve(asked: Sequence[Asked]) -> None:
        for one in asked:
            one.refuse(KeyError(one.question))

    def work() -> str:
        try:
            ask("that")
        except KeyError as error:
            return f"no {error}"
        return "yes"

    assert of([work, work], serve) == ["no 'that'"] * 2


def test_an_interrupt_unwinds_everybody() -> None:
    ended = []

    def work(number: int) -> Callable[[], None]:
        def run() -> None:
            try:
                while True:
                    ask(None)
            except Exception:
                ended.append("swallowed")
            finally:
                ended.append(number)

        return run

    rounds = iter(range(3))

    def serve(asked: Sequence[Asked]) -> None:
        if next(rounds) == 2:
            raise KeyboardInterrupt
        echo(asked)

    before = generators()
    with pytest.raises(KeyboardInterrupt):
        Turns(serve).run([work(n) for n in range(3)])
    assert ended == [0, 1, 2]
    assert generators() == before


def test_nobody_answered_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="2 runs wait, and none of them was answered"):
        Turns(lambda asked: None).run([lambda: ask(1)] * 2)


def test_who_is_alone_has_nobody_to_ask() -> None:
    assert not taking_turns()
    assert of([taking_turns]) == [True]
    with pytest.raises(LookupError, match="nobody is there to answer"):
        ask(1)


def test_bills() -> None:
    def serve(asked: Sequence[Asked]) -> None:
        count(lm_forwards=1)
        echo(asked)

    def work(number: int) -> Callable[[], tuple[int, int]]:
        def run() -> tuple[int, int]:
            with measure() as cost:
                ask(None)
                count_share(lm_forwards=1)
                count(reward_calls=number)
            return cost.lm_forwards, cost.reward_calls

        return run

    with measure() as cost:
        assert of([work(n) for n in (1, 2, 3)], serve) == [(1, 1), (1, 2), (1, 3)]
    assert (cost.lm_forwards, cost.reward_calls) == (1, 6), "a forward that three share is one forward"


def test_plates_are_whole_for_the_run_that_wants_them_and_no_other() -> None:
    """Runs that enter and leave in another order than they came: Pyro's own function is there again at the end."""
    from pyro.poutine.subsample_messenger import SubsampleMessenger

    from ppl_align.program.subsamples import whole_plates

    plain = SubsampleMessenger._subsample

    def size() -> int:
        with pyro.plate("data", 6, subsample_size=2) as index:
            return len(index)

    def wanting(turns: int) -> list[int]:
        with whole_plates() as found:
            sizes = [size()]
            for _ in range(turns):
                ask(None)
            sizes.append(size())
        assert found == {"data": (2, 6)}
        return [*sizes, size()]

    def without() -> list[int]:
        ask(None)
        return [size()]

    def serve(asked: Sequence[Asked]) -> None:
        for one in asked:
            one.answer(None)

    found = Turns(serve).run([lambda: wanting(1), lambda: wanting(3), without])
    assert [one.get() for one in found] == [[6, 6, 2], [6, 6, 2], [2]]
    assert SubsampleMessenger._subsample is plain
