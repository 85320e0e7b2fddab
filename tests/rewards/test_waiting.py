"""Waiting for rewards: how many at a time, again for those that fail for a moment, and the bill."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ppl_align import CallableLM, ImportanceSampling, Posterior, completion, reward
from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError, RewardError
from ppl_align.core.turns import Outcome, Turns
from ppl_align.jobs.serving import serve
from ppl_align.rewards import evaluate
from ppl_align.rewards.waiting import patience

LM = CallableLM(4, lambda prefix: torch.zeros(len(prefix), 4), eos_id=3)


class Service:
    """Answers after a while; knows how many asked at a time. ``fails``: calls that raise before one is answered."""

    def __init__(self, seconds: float = 0.05, fails: int = 0) -> None:
        self.seconds, self.fails, self.calls, self.now, self.most = seconds, fails, 0, 0, 0

    async def __call__(self, texts: list[str]) -> list[float]:
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(self.seconds)
        self.now -= 1
        if self.calls <= self.fails:
            raise ConnectionError("503")
        return [float(len(text)) for text in texts]


def runs(service: Any, count: int = 6) -> list[Outcome[Posterior]]:
    works: list[Callable[[], Posterior]] = [lambda i=i: one_run(service, i) for i in range(count)]  # type: ignore[misc]
    return Turns(serve).run(works)


def one_run(service: Any, number: int) -> Posterior:
    def program(prompt: str) -> None:
        reward("length", service, completion("x", LM, prompt, max_new_tokens=2))

    return ImportanceSampling(8, 1).run(program, str(number % 3), seed=number)


def test_runs_wait_at_the_same_time_and_the_bill_says_how_long() -> None:
    service = Service()
    with measure() as cost:
        found = [one.get() for one in runs(service)]
    assert service.most == 6
    assert all(one.cost.seconds >= one.cost.reward_seconds >= service.seconds for one in found)
    assert service.seconds <= cost.reward_seconds < sum(one.cost.reward_seconds for one in found)


def test_no_more_at_a_time_than_wanted() -> None:
    service = Service(0.01)
    with patience(concurrency=2):
        found = [one.get() for one in runs(service)]
    assert service.most == 2
    alone = ImportanceSampling(8, 1).run(
        lambda: reward("length", service, completion("x", LM, "1", max_new_tokens=2)), seed=1
    )
    assert torch.equal(found[1].rewards["length"], alone.rewards["length"])


def test_what_fails_for_a_moment_is_tried_again() -> None:
    service = Service(0.0, fails=2)
    with patience(retries=2, pause=0.001), measure() as cost:
        assert evaluate("length", service, "abc").tolist() == 3.0
    assert service.calls == 3
    assert cost.reward_calls == 3, "each try is on the bill"
    with patience(retries=1, pause=0.001), pytest.raises(RewardError, match="ConnectionError: 503"):
        evaluate("length", Service(0.0, fails=2), "abc")


def test_a_plain_function_is_tried_again_too() -> None:
    calls = []

    def flaky(texts: list[str]) -> list[float]:
        calls.append(len(texts))
        if len(calls) < 3:
            raise TimeoutError("slow")
        return [1.0] * len(texts)

    with patience(retries=2, pause=0.001):
        found = runs(flaky, 2)
    assert all(one.error is None for one in found)


def test_what_the_user_has_to_mend_is_not() -> None:
    calls = []

    def wrong(texts: list[str]) -> list[float]:
        calls.append(texts)
        raise InputError("no such label")

    with patience(retries=3, pause=10.0), pytest.raises(InputError):
        evaluate("r", wrong, "abc")
    assert len(calls) == 1


def test_one_that_fails_leaves_the_others_alone() -> None:
    async def picky(texts: list[str]) -> list[float]:
        await asyncio.sleep(0)
        if "2" in texts[0]:
            raise ValueError("not today")
        return [0.0] * len(texts)

    def program(prompt: str) -> None:
        reward("r", picky, completion("x", LM, prompt, max_new_tokens=2).prompt)

    engine = ImportanceSampling(4, 1)
    found = Turns(serve).run([lambda i=i: engine.run(program, str(i), seed=i) for i in range(3)])  # type: ignore[misc]
    assert [one.error is None for one in found] == [True, True, False]
