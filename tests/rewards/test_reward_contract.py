"""``check_reward``: what is right passes, each kind of wrong fails the check meant for it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from toys.rewards import noisy

from ppl_align.rewards import Vader, columns, each
from ppl_align.testing import check_reward


def relative(texts):
    longest = max(map(len, texts)) or 1
    return [len(text) / longest for text in texts]


def by_place(texts):
    return [float(i) for i, _ in enumerate(texts)]


def greedy(texts):
    seen = set()
    return [float(text not in seen and not seen.add(text)) for text in texts]


class Bounded:
    upper, lower = 100.0, 1.0

    def __call__(self, texts):
        return [float(len(text)) for text in texts]


def in_place(completions, **_):
    completions.sort()
    return [0.0] * len(completions)


def not_empty(texts):
    return [text[0] == "a" for text in texts]


@pytest.mark.parametrize(
    ("fn", "check", "says"),
    [
        (relative, "single", "expected .* for .* on its own, as in the batch, got 1"),
        (noisy, "deterministic", "asked again"),
        (by_place, "order", "in another order"),
        (greedy, "duplicates", "with each text twice in the batch, got 0"),
        (Bounded(), "bounds", "expected at most its upper = 100 for .*, got"),
        (lambda texts: [math.nan] * len(texts), "finite", "got nan"),
        (lambda texts: [math.inf] * len(texts), "finite", "got inf"),
        (lambda texts: ["good"] * len(texts), "numbers", "expected a number or None for '', got 'good'"),
        (lambda texts: [1.0], "length", "expected 27 answers, got 1 answers"),
        (lambda texts: 1.0, "length", "expected 27 answers, got 1.0"),
        (in_place, "inputs", "expected the completions it was given to stay as they were"),
        (not_empty, "empty text", "it raised IndexError"),
        (not_empty, "runs", "IndexError: string index out of range, on ''"),
    ],
)
def test_each_kind_of_broken_reward_fails_the_check_meant_for_it(fn, check, says):
    report = check_reward(fn)
    (failure,) = [failure for failure in report.failures if failure.check == check]
    assert not report
    assert re.search(says, failure.line), failure.line
    assert "\n" not in failure.line


@dataclass(frozen=True)
class AtLeast:
    lower: float = 0.0

    def __call__(self, texts):
        return [-math.inf if "bad" in text else float(len(text)) for text in texts]


def applies_sometimes(texts):
    return [None if not text else -math.inf if "dull" in text.lower() else 1.0 for text in texts]


async def asynchronous(completions, **_):
    return [float(len(text)) for text in completions]


def exact_match(prompts, completions, answer):
    return [float(a in text and bool(p)) for p, text, a in zip(prompts, completions, answer, strict=True)]


@pytest.mark.parametrize(
    ("fn", "arguments"),
    [
        (Vader(), {}),
        ("vader", {}),
        (applies_sometimes, {}),
        (AtLeast(), {}),
        (asynchronous, {}),
        (each(len), {}),
        (lambda texts: torch.tensor([float(len(text)) for text in texts]), {}),
        (lambda texts: np.array([len(text) for text in texts]), {}),
        (exact_match, {"answer": "good"}),
        (exact_match, {"texts": ["a", "b"], "prompts": ["x", ""], "answer": ["a", "c"]}),
        (columns(exact_match, answer="good"), {"prompts": "Say:"}),
    ],
)
def test_rewards_of_every_kind_pass(fn, arguments):
    report = check_reward(fn, **arguments)
    assert report, str(report)


def test_checks_that_cannot_look_are_inconclusive():
    report = check_reward(lambda texts: 3.0)
    assert [failure.check for failure in report.failures] == ["length"]
    assert {result.check for result in report.inconclusive} >= {"single", "order", "duplicates"}


def test_a_reward_without_bounds_has_none_to_check():
    report = check_reward(applies_sometimes)
    assert report
    assert "bounds none stated" in " ".join(str(report).replace("\n", " ").split())
    assert report.verdict.endswith("all 10 checks passed")
