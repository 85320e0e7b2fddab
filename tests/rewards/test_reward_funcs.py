"""Several reward functions at once: names, weights, columns, chat prompts, what they log."""

from __future__ import annotations

import asyncio
import functools
import pickle
import time

import numpy as np
import pyro
import pytest
import torch
from toys.lms import ChatLM

from ppl_align import Enumeration, completion, reward, reward_funcs
from ppl_align.core.errors import InputError, RewardError
from ppl_align.core.runs import run_memory
from ppl_align.core.text import Texts
from ppl_align.lm.prompts import ChatIds
from ppl_align.rewards import LengthReward, Vader, columns, evaluate, logged
from ppl_align.testing import Oracle

BIASED = torch.tensor([0.3, -0.2, 0.5, 0.0])


LM = ChatLM(4, lambda prefix: BIASED.expand(len(prefix), 4), eos_id=3, tokens=["a", "b", "c", "$"])
HELLO = [{"role": "user", "content": "a"}]


def length(completions, **_):
    return [float(len(text)) for text in completions]


def _count(letter, completions, **_):
    return [float(text.count(letter)) for text in completions]


def matches(completions, answer, **kwargs):
    return [float(text == a) for text, a in zip(completions, answer, strict=True)]


def expected(program_rewards, oracle, beta):
    """log Z from the oracle's support and r written down here."""
    r = sum(w * torch.tensor([f(text) for text in oracle.completions["x"].texts()]) for w, f in program_rewards)
    return float((oracle.log_prior + r / beta).logsumexp(0))


def test_each_function_is_a_factor_of_its_own():
    def program():
        x = completion("x", LM, "a", max_new_tokens=2)
        return reward_funcs(
            [length, functools.partial(_count, "b"), functools.partial(_count, "c")], x, 0.5, [1, -2, torch.tensor(0.5)]
        )

    oracle = Oracle(program)
    assert list(oracle.rewards) == ["length", "count", "count_2"]
    terms = [(1, len), (-2, lambda t: t.count("b")), (0.5, lambda t: t.count("c"))]
    assert float(oracle.log_evidence) == pytest.approx(expected(terms, oracle, 0.5), abs=1e-5)


def test_one_function_names_and_two_completions():
    def program():
        x = completion("x", LM, "a", max_new_tokens=1)
        y = completion("y", LM, x, max_new_tokens=1)
        reward_funcs(length, x)
        reward_funcs(["vader", LengthReward(unit="characters"), length], y, prefix="y_", weights=[0.5, 1.0, 0.0])

    oracle = Oracle(program)
    assert list(oracle.rewards) == ["length", "y_vader", "y_length", "y_length_2"]
    r = torch.tensor([len(a) + len(b) for a, b in zip(*(oracle.completions[n].texts() for n in "xy"), strict=True)])
    assert float(oracle.log_evidence) == pytest.approx(float((oracle.log_prior + r).logsumexp(0)), abs=1e-5)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: reward_funcs([], x), "there is no reward function in the list"),
        (lambda x: reward_funcs([length, length], x, weights=[1.0]), "1 weights for 2 reward function"),
        (lambda x: reward_funcs(length, x, weights=["a"]), "weight must be finite, got 'a'"),
        (lambda x: reward_funcs(length, x, 0.0), "beta must be positive"),
        (lambda x: reward_funcs(matches, x), r"needs the column 'answer': give it, .* reward_funcs\(..., answer=...\)"),
        (
            lambda x: reward_funcs(matches, x, answer=Texts(["a", "b"])),
            r"'answer' has shape \[2\], the completions have",
        ),
        (lambda x: reward_funcs(matches, x, answer="a", prompts="b"), "a column cannot be called 'prompts'"),
        (lambda x: reward_funcs("vadar", x), "did you mean 'vader'"),
        (lambda x: reward("r", lambda t: t.sum(-1), x.tokens, columns={"answer": 1}), "a tensor reads no columns"),
    ],
)
def test_bad_input_says_what_to_change(call, says):
    source = LM.completion(["a", "b", "a"], 2)
    x = completion("x", LM, ["a", "b", "a"], max_new_tokens=2)
    assert x.shape == source.batch_shape
    with pytest.raises(InputError, match=says):
        call(x)


# -- columns -------------------------------------------------------------------------------------------------


def test_a_column_has_one_value_for_all_or_a_batch():
    texts = Texts(["a", "b", "c", "c"], (2, 2))
    seen = []

    def reads(completions, answer, **kwargs):
        seen.extend(answer)
        return [float(text == a) for text, a in zip(completions, answer, strict=True)]

    assert evaluate("r", reads, texts, {"answer": "c"}).tolist() == [[0, 0], [1, 1]]
    assert evaluate("r", reads, texts, {"answer": Texts(["a", "c"])}).tolist() == [[1, 0], [0, 1]]
    assert evaluate("r", reads, texts, {"answer": Texts(["a", "b", "c", "b"], (2, 2))}).tolist() == [[1, 1], [1, 0]]
    assert evaluate("r", reads, texts, {"answer": np.array(["a", "c"], dtype=object)}).tolist() == [[1, 0], [0, 1]]
    seen.clear()
    evaluate("r", reads, "a", {"answer": ["several", "values"], "prompt": "dropped, as by TRL", "unread": 1})
    assert seen == [["several", "values"]], "a list is one value"
    seen.clear()
    evaluate("r", reads, Texts(["a", "b"]), {"answer": torch.tensor([1, 2])})
    assert seen == [1, 2]


def test_a_plate_of_rows_has_a_plate_of_answers():
    def program():
        with pyro.plate("rows", 2):
            x = completion("x", LM, ["a", "b"], max_new_tokens=1)
            reward_funcs(matches, x, 0.25, answer=Texts(["b", "c"]))

    p = torch.softmax(BIASED, -1).double()
    z = [1 + p[v] * (torch.tensor(1 / 0.25).exp() - 1) for v in (1, 2)]
    assert float(Enumeration().run(program).log_evidence) == pytest.approx(float(torch.stack(z).log().sum()), abs=1e-6)


def test_a_latent_can_be_a_column():
    def program():
        which = pyro.sample("which", pyro.distributions.Categorical(torch.ones(2)))
        x = completion("x", LM, "a", max_new_tokens=1)

        def at(completions, option):
            return [float(text == "ab"[o]) for text, o in zip(completions, option, strict=True)]

        reward("at", at, x, beta=0.5, columns={"option": which})

    p = torch.softmax(BIASED, -1).double()
    z = 0.5 * sum(1 + p[v] * (torch.tensor(2.0).double().exp() - 1) for v in (0, 1))
    assert float(Enumeration().run(program).log_evidence) == pytest.approx(float(z.log()), abs=1e-6)


def test_columns_are_part_of_what_is_remembered():
    asked = []

    def counts(completions, answer, extra=None, **_):
        asked.extend(zip(completions, map(str, answer), strict=True))
        return [float(text == str(a)) for text, a in zip(completions, answer, strict=True)]

    texts = Texts(["a", "b", "a"])
    with run_memory():
        for _ in range(2):  # as a model's body does: new lists with the same contents
            assert evaluate("r", counts, texts, {"answer": ["a"], "unread": 1}).tolist() == [0, 0, 0]
        assert len(asked) == 2, "two distinct texts, once"
        assert evaluate("r", counts, texts, {"answer": "a"}).tolist() == [1, 0, 1]
        assert evaluate("r", counts, texts, {"answer": "b"}).tolist() == [0, 1, 0]
        assert evaluate("r", counts, texts, {"answer": Texts(["a", "b", "x"])}).tolist() == [1, 1, 0]
        assert len(asked) == 7, "of the last three only (a, x) is new"
        evaluate("r", counts, "1", {"answer": 1})
        evaluate("r", counts, "1", {"answer": True})
        evaluate("r", counts, "1", {"answer": 1, "extra": {"k": [1]}})
        evaluate("r", counts, "1", {"answer": 1, "extra": {"k": [1]}})
        assert len(asked) == 10, "1 is not True; an equal dictionary is the same one"
        for _ in range(2):
            evaluate("c", columns(counts, answer=["z"]), "z")
        assert len(asked) == 11


def test_a_run_asks_each_text_and_answer_once():
    asked = []

    def counts(completions, answer, **_):
        asked.extend(zip(completions, answer, strict=True))
        return [float(text == a) for text, a in zip(completions, answer, strict=True)]

    def program():
        x = completion("x", LM, "a", max_new_tokens=2)
        reward_funcs([counts, functools.partial(counts, other=1)], x, answer="b")

    posterior = Enumeration().run(program)
    assert len(asked) == 2 * len(set(asked)) == 2 * len(posterior.table())


# -- chat ----------------------------------------------------------------------------------------------------


def test_completions_are_messages_exactly_where_the_prompt_is():
    seen = {}

    def reads(prompts, completions, completion_ids, **kwargs):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids)
        for prompt, text in zip(prompts, completions, strict=True):
            if isinstance(prompt, list):
                prompt.append("spoiled"), text.append("spoiled")
        return [0.0] * len(prompts)

    def show(prompt, texts=None):
        x = completion("x", LM, prompt, max_new_tokens=2)
        x.tokens = torch.tensor([1, 3]).expand(*x.shape, 2)
        for _ in range(2):
            evaluate("r", reads, x)
        return seen

    assert show("a") == {"prompts": ["a"], "completions": ["b"], "ids": [[1, 3]]}
    assert show(HELLO)["prompts"] == [[*HELLO, "spoiled"]], "given anew each time"
    assert seen["completions"] == [[{"role": "assistant", "content": "b"}, "spoiled"]]
    assert show([HELLO, [{"role": "user", "content": "b"}]])["prompts"][1][0]["content"] == "b"
    assert show((HELLO, "b"))["completions"] == ["b"], "a prompt of several parts is text"
    assert HELLO == [{"role": "user", "content": "a"}]


def test_a_chat_and_a_text_of_the_same_ids_are_asked_about_apart():
    def kind(completions):
        return [float(isinstance(text, str)) for text in completions]

    with run_memory():
        for prompt, r in (("a", 1), (HELLO, 0), ("a", 1)):
            x = completion("x", LM, prompt, max_new_tokens=1)
            x.tokens = torch.tensor([1])
            assert float(evaluate("r", kind, x)) == r


def test_rewards_of_texts_and_shipped_ones_do_not_care_about_chat():
    x = completion("x", LM, HELLO, max_new_tokens=3)
    assert float(evaluate("r", lambda texts: [float(len(t)) for t in texts], x)) == len(x.text)
    assert float(evaluate("r", LengthReward(unit="characters"), x)) == len(x.text)
    assert float(evaluate("r", Vader(), x)) == 0.0
    with pytest.raises(RewardError, match=r"a completion is too: read completion\[0\]\['content'\]"):
        evaluate("r", lambda completions: [text.count("a") for text in [c.strip() for c in completions]], x)


def test_ids_of_a_chat_stay_ids():
    ids = LM.completion(HELLO, 2).prompts[0]
    assert isinstance(ids, ChatIds)
    assert ids == (0,)
    assert hash(ids) == hash((0,))
    copied = pickle.loads(pickle.dumps(ids))
    assert (copied, copied.messages) == (ids, HELLO)
    expanded = LM.completion(HELLO, 2).expand([3]).reshaped([3, 1])
    assert expanded.prompts[0].messages == HELLO


# -- async, logging ------------------------------------------------------------------------------------------


def test_async_functions_wait_at_the_same_time():
    together, most = [0], [0]

    async def slow(completions, **kwargs):
        together[0] += 1
        most[0] = max(most[0], together[0])
        await asyncio.sleep(0.05)
        together[0] -= 1
        return [1.0] * len(completions)

    x = completion("x", LM, "a", max_new_tokens=1)
    started = time.perf_counter()
    found = reward_funcs([slow, slow, length, slow], x)
    assert list(found) == ["slow", "slow_2", "length", "slow_3"]
    assert most == [3]
    assert time.perf_counter() - started < 5

    async def broken(completions, **kwargs):
        raise OSError("no network")

    with pytest.raises(RewardError, match=r"reward 'broken' raised OSError: no network, on the text"):
        reward_funcs([slow, broken], x)


def test_what_is_logged_is_seen_only_inside_the_block():
    def logs(completions, log_metric, log_extra):
        sizes = [float(len(text)) for text in completions]
        log_metric("size", sum(sizes) / len(sizes))
        log_extra("size", sizes)
        log_extra("first", [text[:1] for text in completions])
        return sizes

    evaluate("r", logs, "unheard")
    with logged() as log:
        assert log.metrics == {}
        assert list(log.table.columns) == ["reward", "completion"]
        evaluate("r", logs, Texts(["a", "bb", "a"]))
        evaluate("r", logs, "cccc")
        with logged() as inner:
            evaluate("r", logs, "d")
    evaluate("r", logs, "unheard")
    assert log.metrics == {"size": pytest.approx((1 + 2 + 4) / 3)}, "every text counts once"
    assert log.table.values.tolist() == [["r", "a", 1, "a"], ["r", "bb", 2, "b"], ["r", "cccc", 4, "c"]]
    assert inner.metrics == {"size": 1.0}

    def uneven(completions, log_extra):
        log_extra("size", [1])
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match="reward 'r' logs 1 values of 'size' for 2 text"):
        evaluate("r", uneven, Texts(["a", "b"]))
