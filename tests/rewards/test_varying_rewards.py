"""Rewards that answer one text in two ways without moving a global generator: asked once a text, noted, and checked."""

from __future__ import annotations

import itertools
import os
import random
import time

import numpy as np
import pytest
import torch
from toys.worlds import HOST

from ppl_align import SMC, Enumeration, ImportanceSampling, completion, reward
from ppl_align.lints import lint
from ppl_align.rewards import Vader, each
from ppl_align.rewards.signs import may_vary

NUMBERS, DICE, NOISE = itertools.count(), random.Random(0), np.random.default_rng(0)
TORCH, CALLS, ASKED = torch.Generator(), [0], []


def of_a_counter():
    at = 0

    def judge(texts):
        nonlocal at
        at += 1
        return [float(at) for _ in texts]

    return judge


def of_a_cell(texts):
    CALLS[0] += 1
    return [float(CALLS[0]) for _ in texts]


def of_a_list(texts):
    ASKED.append(len(texts))
    return [float(len(ASKED)) for _ in texts]


class Tired:
    def __init__(self):
        self.asked = 0

    def __call__(self, texts):
        self.asked += 1
        return [self.score(text) for text in texts]

    def score(self, text):
        return len(text) / self.asked


class Client:
    """What stands between a judge and its service."""

    def ask(self, text):
        return DICE.random()


CLIENT = Client()


async def waited_for(texts):
    return [DICE.random() for _ in texts]


VARYING = {
    "an iterator": lambda texts: [float(next(NUMBERS)) for _ in texts],
    "a generator of its own": lambda texts: [DICE.random() for _ in texts],
    "a new generator": lambda texts: [random.Random().random() for _ in texts],
    "numpy's": lambda texts: NOISE.random(len(texts)).tolist(),
    "a new one of numpy's": lambda texts: [np.random.default_rng().random() for _ in texts],
    "torch's": lambda texts: torch.rand(len(texts), generator=TORCH).tolist(),
    "entropy": lambda texts: [float(os.urandom(1)[0]) for _ in texts],
    "a clock": lambda texts: [float(time.perf_counter_ns() % 9973) for _ in texts],
    "a counter": of_a_counter(),
    "a cell": of_a_cell,
    "a list that grows": of_a_list,
    "an object": Tired(),
    "a method": Tired().__call__,
    "a client": lambda texts: [CLIENT.ask(text) for text in texts],
    "one by one": each(lambda text: DICE.random()),
    "a service": waited_for,
}
LOG, COUNTS = [], {"n": 0}


def counted(completions, **_):
    COUNTS["n"] += len(completions)
    return [1.0 for _ in completions]


STEADY = {
    "plain": lambda texts: [float(len(text)) for text in texts],
    "logged": lambda texts: LOG.extend(texts) or [1.0 for _ in texts],
    "counted": counted,
    "shipped": Vader(),
    "one by one": each(len),
}


def program(judge):
    def model():
        reward("judge", judge, completion("x", HOST, " hm", max_new_tokens=1))

    return model


@pytest.mark.parametrize("kind", VARYING)
def test_it_is_noted_and_its_answer_kept(kind):
    posterior = ImportanceSampling(64, 2).run(program(VARYING[kind]))
    texts, r = posterior.completions["x"].texts(), posterior.rewards["judge"].reshape(-1).tolist()
    assert len(set(zip(texts, r, strict=True))) == len(set(texts))
    assert "'judge' may answer one text in two ways" in posterior.summary()
    assert posterior.cost.reward_calls == len(set(texts))


@pytest.mark.parametrize("kind", STEADY)
def test_a_steady_one_is_asked_once_a_text(kind):
    assert not may_vary(STEADY[kind])
    posterior = ImportanceSampling(64, 2).run(program(STEADY[kind]))
    assert posterior.cost.reward_calls == len(set(posterior.completions["x"].texts()))
    assert not any("two ways" in line for line in posterior.warnings)


@pytest.mark.parametrize("engine", [Enumeration(), SMC(16, num_replicates=2, twist="prefix")], ids=lambda e: e.name)
def test_each_text_is_asked_about_once_whatever_it_answers(engine):
    """A judge that has its price: also where a prefix is judged at every token, and by the pools of a run."""
    asked = []

    def judge(texts):
        asked.extend(texts)
        return [DICE.random() for _ in texts]

    def model():
        reward("judge", judge, completion("x", HOST, " hm", max_new_tokens=3))

    posterior = engine.run(model)
    assert len(asked) == len(set(asked)) == posterior.cost.reward_calls
    assert "'judge' may answer one text in two ways" in posterior.summary()


def test_check_says_by_how_many_nats():
    """+1 or -1 by a coin, at a beta of .5: four nats apart, half of the time."""
    coin = random.Random(3)

    def model():
        x = completion("x", HOST, " hm", max_new_tokens=3)
        reward("judge", each(lambda text: coin.choice([-1.0, 1.0])), x, beta=0.5)

    (found,) = [finding for finding in lint(model) if finding.lint == "reward with a state"]
    assert "'judge' gave other values when asked again, by" in found.text
    assert "and up to 4:" in found.text
    mean = float(found.text.split("by ")[1].split(" nats")[0])
    assert 0.5 < mean < 3.5
