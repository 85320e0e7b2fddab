"""What is said when a reward fails: its name, the text, and what to do about it."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from toys.rewards import TEXTS, lengths

from ppl_align import CallableLM, Enumeration, completion, reward
from ppl_align.core.errors import BatchTextError, InputError, RewardError
from ppl_align.core.runs import run_memory
from ppl_align.rewards import Vader, evaluate
from ppl_align.rewards.answers import shorten

two_words = CallableLM(2, lambda prefix: torch.zeros(len(prefix), 2).double(), tokens=["a", "b"])


def test_an_exception_names_the_reward_and_finds_the_text():
    def fragile(texts):
        return [1 / (len(t) - 2) for t in texts]

    with pytest.raises(RewardError, match=r"^reward 'r' raised ZeroDivisionError: .*, on the text 'bb'$") as caught:
        evaluate("r", fragile, TEXTS)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_exception_that_only_the_batch_raises_shows_the_first_text():
    def only_together(texts):
        if len(texts) > 1:
            raise RuntimeError("too many\nand more lines")
        return [0.0]

    with pytest.raises(RewardError, match=r"RuntimeError: too many, on a batch of 3 texts, the first of them 'a'$"):
        evaluate("r", only_together, TEXTS)

    def refuses(texts):
        raise AssertionError

    with pytest.raises(RewardError, match=r"raised AssertionError, on the text 'a'$"):
        evaluate("r", refuses, "a")


def test_long_texts_are_shortened():
    with pytest.raises(RewardError) as caught:
        evaluate("r", lambda texts: [math.nan], "x" * 1000 + "\n")
    assert len(str(caught.value)) < 250
    assert r"\n" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(len(shorten("y" * 100, width)) <= width for width in (20, 31, 80))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (0.5, "returned the single number 0.5 for 3 text"),
        (None, "returned None for 3 text"),
        ("abc", "returned a str for"),
        ({"a": 1}, "returned a dict for"),
        (torch.zeros(3, 1), r"returned a Tensor of shape \[3, 1\]"),
        (torch.tensor(1.0), r"returned a Tensor of shape \[\]"),
        (np.zeros((1, 3)), r"returned a ndarray of shape \[1, 3\]"),
        ((x for x in (1, 2, 3)), "returned a generator"),
        ([1.0], "returned 1 for 3 text"),
        ([], "returned 0 for 3 text"),
    ],
)
def test_a_wrong_number_of_answers_says_what_came_back(answer, says):
    with pytest.raises(RewardError, match=rf"^reward 'r' must return .*{says}.*the first of them 'a'.*wrap it: .*each"):
        evaluate("r", lambda texts: answer, TEXTS)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (math.nan, "'r' is NaN for the text 'bb'; return None where a reward does not apply"),
        (math.inf, r"'r' is \+inf for the text 'bb'"),
        ("0.5", "'r' returned '0.5', which is no number, for the text 'bb'"),
        ([1.0], r"'r' returned \[1.0\], which is no number"),
        (1j, "which is no number"),
        (torch.tensor([1.0, 2.0]), "which is no number"),
    ],
)
def test_an_answer_that_is_no_finite_number_shows_its_text(answer, says):
    with pytest.raises(RewardError, match=says):
        evaluate("r", lambda texts: [0.0, answer, 0.0], TEXTS)


def test_functions_of_one_text_are_told_about_each():
    for fn in (lambda text: len(text), lambda text: "good" in text, lambda text: text.split()):
        with pytest.raises(RewardError, match=r"function of one text, wrap it: ppl_align.rewards.each\(fn\)"):
            evaluate("r", fn, TEXTS)


def test_things_that_are_no_reward_are_refused():
    with pytest.raises(InputError, match=r"'r': Vader is a class, write Vader\(\)"):
        evaluate("r", Vader, TEXTS)
    with pytest.raises(InputError, match=r"'r': a reward is a function, .* got int"):
        evaluate("r", 3, TEXTS)
    with pytest.raises(InputError, match="'r' reads a completion, its text or a tensor, got list"):
        evaluate("r", lengths, ["a"])


def test_errors_of_this_library_pass_through_unchanged():
    with pytest.raises(BatchTextError, match="this text is a batch"):
        evaluate("r", lambda texts: "a" in TEXTS, TEXTS)


def test_a_failed_call_is_not_remembered():
    calls = []

    def broken(texts):
        calls.append(texts)
        return [math.nan]

    with run_memory():
        for _ in range(2):
            with pytest.raises(RewardError):
                evaluate("r", broken, "a")
    assert len(calls) == 2


def test_a_rejection_under_a_negative_weight():
    """-inf times -1 would be +inf: evidence without bound, and weights that are no numbers."""

    def program(weight):
        x = completion("x", two_words, [], max_new_tokens=1)
        reward("r", lambda texts: [-math.inf if text == "a" else 1.0 for text in texts], x, weight=weight)

    assert float(Enumeration().run(program, 1.0).log_evidence) == pytest.approx(math.log(0.5) + 1)
    with pytest.raises(RewardError, match=r"reward 'r' rejects \(-inf\), and weight=-1 would turn that into \+inf"):
        Enumeration().run(program, -1.0)


def test_a_reward_that_holds_another_batch():
    """It is asked about distinct texts, so what it holds would be read out of line: refused, and how to write it."""

    def program(how):
        one, other = (completion(name, two_words, [], max_new_tokens=1) for name in ("one", "other"))
        texts = other.text
        fns = {
            "closure": lambda found: [float(a == b) for a, b in zip(found, texts.flat, strict=False)],
            "default": lambda found, texts=texts: [float(a == b) for a, b in zip(found, texts.flat, strict=False)],
            "partial": partial(lambda found, texts: [float(a == b) for a, b in zip(found, texts)], texts=texts),
        }
        reward("same", fns[how], one)

    for how in ("closure", "default", "partial"):
        with pytest.raises(InputError, match=r"'same' holds 'texts', a batch of 4, .* columns=\{'texts': texts\}"):
            Enumeration().run(program, how)

    def rightly():
        one, other = (completion(name, two_words, [], max_new_tokens=1) for name in ("one", "other"))
        equal = lambda completions, texts, **_: [float(a == b) for a, b in zip(completions, texts, strict=True)]  # noqa: E731
        reward("same", equal, one, columns={"texts": other.text})

    assert float(Enumeration().run(rightly).log_evidence) == pytest.approx(math.log((1 + math.e) / 2))
