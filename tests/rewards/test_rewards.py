"""Rewards: how they are called, what may come back, how often they are asked, and what is said when one fails."""

from __future__ import annotations

import asyncio
import functools
import math
import pickle

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from torch import nn
from toys.rewards import LM, TEXTS, lengths, make_completion

from ppl_align import reward
from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError, RewardError
from ppl_align.core.runs import run_memory
from ppl_align.core.text import Texts
from ppl_align.lm.completions import Completion
from ppl_align.particles.particles import Particles
from ppl_align.rewards import Vader, chat, columns, each, evaluate


class Spy:
    """Remembers every call."""

    def __init__(self, fn):
        self.fn, self.calls = fn, []

    def __call__(self, texts):
        self.calls.append(list(texts))
        return self.fn(texts)


# -- f(texts) ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert",
    [list, tuple, np.array, pd.Series, torch.tensor, lambda v: torch.tensor(v, dtype=torch.bfloat16),
     lambda v: torch.tensor(v, requires_grad=True), lambda v: [int(x) for x in v], lambda v: list(map(np.float32, v)),
     lambda v: list(map(torch.tensor, v)), lambda v: [nn.Parameter(torch.tensor(x)) for x in v]],
)  # fmt: skip
def test_any_sequence_of_numbers_is_an_answer(convert):
    r = evaluate("length", lambda texts: convert(lengths(texts)), TEXTS)
    assert r.tolist() == [1, 2, 1, 3]
    assert r.dtype == torch.float64
    assert r.device.type == "cpu"
    assert not r.requires_grad


def test_none_is_nan_and_minus_infinity_stays():
    r = evaluate("r", lambda texts: [None, -math.inf, True], Texts(["a", "bb", "ccc"]))
    assert r[0].isnan()
    assert r[1:].tolist() == [-math.inf, 1.0]


def test_the_batch_shape_is_kept():
    texts = Texts(["a", "bb", "ccc", "dddd"], (2, 2))
    assert evaluate("r", lengths, texts).tolist() == [[1, 2], [3, 4]]
    assert evaluate("r", lengths, "abc").shape == torch.Size()
    assert evaluate("r", lengths, "abc") == 3
    assert evaluate("r", lengths, make_completion().reshape(2, 2)).tolist() == [[2, 1], [2, 3]]
    single = Completion(torch.tensor([0, 1, 7]), LM.completion([3], 3))
    assert evaluate("r", lengths, single).shape == torch.Size()


def test_an_empty_batch_asks_nobody():
    spy = Spy(lengths)
    assert evaluate("r", spy, Texts([])).shape == (0,)
    assert spy.calls == []


def test_partial_methods_builtins_and_async_functions_work():
    async def slow(texts):
        await asyncio.sleep(0)
        return lengths(texts)

    class Judge:
        def judge(self, texts):
            return lengths(texts)

    for fn in (functools.partial(lengths), Judge().judge, slow, functools.wraps(lengths)(lambda *a: lengths(*a))):
        assert evaluate("r", fn, TEXTS).tolist() == [1, 2, 1, 3]


# -- counting and remembering ----------------------------------------------------------------------------------


def test_distinct_texts_are_asked_once_per_call_and_counted():
    spy = Spy(lengths)
    with measure() as cost:
        evaluate("r", spy, TEXTS)
        evaluate("r", spy, TEXTS)
    assert spy.calls == [["a", "bb", "ccc"]] * 2
    assert cost.reward_calls == 6


def test_inside_a_run_every_text_is_asked_once():
    spy = Spy(lengths)
    with measure() as cost, run_memory():
        evaluate("r", spy, TEXTS)
        with run_memory():  # an engine inside an engine shares the memory
            assert evaluate("r", spy, TEXTS).tolist() == [1, 2, 1, 3]
        assert evaluate("r", spy, Texts(["bb", "new"])).tolist() == [2, 3]
    assert spy.calls == [["a", "bb", "ccc"], ["new"]]
    assert cost.reward_calls == 4
    evaluate("r", spy, "a")
    assert spy.calls[-1] == ["a"], "nothing is remembered after the run"


def test_two_rewards_or_two_names_do_not_share_answers():
    ones, twos = (lambda texts: [1.0 for _ in texts]), (lambda texts: [2.0 for _ in texts])
    spy = Spy(lengths)
    with run_memory():
        assert evaluate("r", ones, "a") == 1
        assert evaluate("r", twos, "a") == 2
        evaluate("one name", spy, "a")
        evaluate("another", spy, "a")
    assert len(spy.calls) == 2


def test_a_reward_written_inside_the_model_is_remembered_across_executions():
    asked = []

    def body(scale):
        def scaled(texts):
            asked.append(len(texts))
            return [scale * len(t) for t in texts]

        return evaluate("r", scaled, TEXTS), evaluate("e", each(lambda text: scale + len(text)), TEXTS)

    one, two = 1000, 2000
    with measure() as cost, run_memory():
        first = body(one)
        again = body(one)
        assert asked == [3]
        assert torch.equal(first[0], again[0])
        other = body(two)
    assert asked == [3, 3], "a closure over another value is another reward"
    assert other[0].tolist() == [2000, 4000, 2000, 6000]
    assert other[1].tolist() == [2001, 2002, 2001, 2003]
    assert cost.reward_calls == 12


def test_shipped_rewards_are_equal_to_themselves():
    with measure() as cost, run_memory():
        evaluate("r", Vader(), TEXTS)
        evaluate("r", Vader(), TEXTS)
        evaluate("r", "vader", TEXTS)
    assert cost.reward_calls == 3


def test_an_unhashable_reward_is_remembered_by_identity():
    class Unhashable(Spy):
        __hash__ = None

        def __eq__(self, other):
            return True

    one, two = Unhashable(lengths), Unhashable(lengths)
    with run_memory():
        for fn in (one, two, one):
            evaluate("r", fn, "a")
    assert (len(one.calls), len(two.calls)) == (1, 1)


# -- TRL -----------------------------------------------------------------------------------------------------


def test_a_trl_reward_gets_lists_of_strings_and_ids():
    seen = {}

    def trl(prompts, completions, completion_ids, **kwargs):
        seen.update(kwargs, prompts=prompts, completions=completions, completion_ids=completion_ids)
        kwargs["log_extra"]("letters", completions)
        kwargs["log_metric"]("mean", 0.5)
        return [float(len(c)) for c in completions]

    with measure() as cost:
        assert evaluate("r", trl, make_completion()).tolist() == [2, 1, 2, 3]
    assert seen["prompts"] == ["d", "e", "d"]
    assert seen["completions"] == ["ab", "c", "abc"]
    assert seen["completion_ids"] == [[0, 1, 7], [2, 7], [0, 1, 2]], "the terminal token belongs, padding does not"
    assert seen["trainer_state"].global_step == 0
    assert cost.reward_calls == 3


def test_keywords_that_a_signature_does_not_take_are_dropped():
    def trl(completions):
        return lengths(completions)

    def logging(completions, log_metric, *, log_extra):
        log_metric("a", 1.0)
        log_extra("b", completions)
        return lengths(completions)

    for fn in (trl, logging, lambda **kw: lengths(kw["completions"])):
        assert evaluate("r", fn, make_completion()).tolist() == [2, 1, 2, 3]


def test_what_a_trl_reward_sees_is_what_tells_texts_apart():
    same_text = make_completion(rows=((0, 7, 7),) * 4, prompts=((3,), (4,), (3,), (3,)))
    calls = []

    def text_only(completions, **_):
        calls.append(completions)
        return [0.0] * len(completions)

    def with_prompts(prompts, completions):
        calls.append(completions)
        return [1.0 if p == "d" else 2.0 for p in prompts]

    assert evaluate("r", text_only, same_text).tolist() == [0] * 4
    assert evaluate("r", with_prompts, same_text).tolist() == [1, 2, 1, 1]
    assert calls == [["a"], ["a", "a"]]


def test_trl_rewards_also_read_plain_texts_unless_they_need_more():
    assert evaluate("r", lambda completions, **kw: lengths(completions), TEXTS).tolist() == [1, 2, 1, 3]
    assert evaluate("r", lambda completions, prompts=None: lengths(completions), TEXTS).tolist() == [1, 2, 1, 3]
    with pytest.raises(InputError, match="'r' reads prompts: give it the completion itself"):
        evaluate("r", lambda prompts, completions: lengths(completions), TEXTS)
    handmade = Completion(torch.tensor([[0, 1]]), text=Texts(["ab"]))
    with pytest.raises(InputError, match="'r' reads prompts"):
        evaluate("r", lambda prompts, completions: lengths(completions), handmade)


def test_async_trl_rewards_work_with_and_without_a_running_loop():
    async def trl(completions, **kwargs):
        await asyncio.sleep(0)
        return lengths(completions)

    async def notebook():
        return evaluate("r", trl, TEXTS)

    assert evaluate("r", trl, TEXTS).tolist() == [1, 2, 1, 3]
    assert asyncio.run(notebook()).tolist() == [1, 2, 1, 3]


def test_a_reward_that_reads_the_trainer_state_is_warned_about_once():
    def moving(completions, trainer_state):
        return [float(trainer_state.global_step)] * len(completions)

    with pytest.warns(UserWarning, match="'r' reads trainer_state: a reward that changes"):
        evaluate("r", moving, TEXTS)
    assert evaluate("r", moving, TEXTS).tolist() == [0] * 4, "a second warning would be an error here"


def test_chat_rewards_are_wrapped():
    def trl(prompts, completions, **kwargs):
        assert prompts[0] == [{"role": "user", "content": "d"}]
        return [float(len(messages[0]["content"])) for messages in completions]

    assert evaluate("r", chat(trl), make_completion()).tolist() == [2, 1, 2, 3]
    assert evaluate("r", chat(columns(trl, answer="x")), make_completion()).tolist() == [2, 1, 2, 3]
    with pytest.raises(RewardError, match=r"expect chat messages: wrap it: ppl_align.rewards.chat\(fn\)"):
        evaluate("r", lambda completions: [c[0]["content"] for c in completions], TEXTS)


def test_data_columns_are_bound():
    def exact(completions, answer, **kwargs):
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    with pytest.raises(InputError, match=r"needs the column 'answer': give it, reward\(..., columns="):
        evaluate("r", exact, TEXTS)
    with run_memory():
        assert evaluate("r", columns(exact, answer="bb"), TEXTS).tolist() == [0, 1, 0, 0]
        assert evaluate("r", columns(exact, answer="a"), TEXTS).tolist() == [1, 0, 1, 0]
    assert evaluate("r", columns(chat(lambda completions, answer: [0.0 for _ in answer]), answer=1), "a") == 0


# -- each ----------------------------------------------------------------------------------------------------


def test_each_turns_a_function_of_one_text_into_a_reward():
    assert evaluate("r", each(len), TEXTS).tolist() == [1, 2, 1, 3]
    assert each(len)(completions=[[{"role": "assistant", "content": "abc"}]], prompts=[""]) == [3]
    assert each(len).__name__ == "len"
    assert repr(each(len)) == "each(len)"
    assert pickle.loads(pickle.dumps(each(len)))(["ab"]) == [2]

    async def judge(text):
        return len(text)

    assert evaluate("r", each(judge), TEXTS).tolist() == [1, 2, 1, 3]
    with pytest.raises(InputError, match=r"each\(...\) wraps a function, got int"):
        each(3)


# -- tensors -------------------------------------------------------------------------------------------------


def test_a_tensor_goes_to_a_function_of_tensors():
    value = torch.arange(6.0).reshape(3, 2)
    with measure() as cost:
        r = evaluate("r", lambda x: -x.sum(-1), value)
    assert r.tolist() == [-1, -5, -9]
    assert r.dtype == torch.float64
    assert cost.reward_calls == 3
    assert evaluate("r", lambda x: x.sum(), torch.tensor([1.0, 2.0])) == 3, "one vector, no batch"


def test_a_tensor_reward_must_keep_the_batch():
    value = torch.zeros(3, 2)
    with pytest.raises(RewardError, match=r"'r' of a tensor of shape \[3, 2\] has shape \[2\]: it must keep the batch"):
        evaluate("r", lambda x: x.sum(0), value)
    with pyro.plate("particles", 3), pytest.raises(RewardError, match=r"has shape \[\]: it must keep the batch"):
        evaluate("r", lambda x: x.sum(), value)
    with pytest.raises(RewardError, match="must be a tensor, not float"):
        evaluate("r", lambda x: 1.0, value)
    with pytest.raises(RewardError, match=r"'r' raised ZeroDivisionError: .*, on a tensor of shape \[3, 2\]"):
        evaluate("r", lambda x: 1 / 0, value)
    with pytest.raises(RewardError, match=r"'r' is NaN for the value \[1.0, 0.0\]"):
        evaluate("r", lambda x: x[:, 1] / x[:, 1], torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    with pytest.raises(RewardError, match=r"'r' is \+inf for the value \[2.0\]"):
        evaluate("r", lambda x: torch.where(x > 1, torch.inf, x), torch.tensor([1.0, 2.0]))


# -- in a program --------------------------------------------------------------------------------------------


def test_a_reward_in_a_program():
    from ppl_align import completion
    from ppl_align.program import Program

    def model():
        x = completion("x", LM, [3], max_new_tokens=3)
        reward("length", each(lambda text: None if text == "c" else float(len(text))), x, beta=0.5, weight=3.0)

    tokens = make_completion().tokens
    execution = Program(model).run(Particles(4, {"x": tokens}), draw=True)
    assert execution.factors["length"].tolist() == [12, 0, 12, 18]
    assert execution.rewards["length"].nan_to_num(-1).tolist() == [2, -1, 2, 3]
