"""What goes on around a run: one memory for all that it asked, and runs that are a means to an end."""

from __future__ import annotations

import contextlib
import logging
import warnings

import pyro.distributions as dist
import pytest
import torch

from ppl_align import SMC, Enumeration, ImportanceSampling, completion, environment, moment_constraint, reward
from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError
from ppl_align.core.runs import is_top_level, nested_run, on_run_end, remembered, run_memory
from ppl_align.lm.score_cache import log_prob_of
from ppl_align.rewards import evaluate
from ppl_align.testing.programs import EOS, LADDER


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- memory ------------------------------------------------------------------------------------------------------


def lengths(texts):
    return [len(text) for text in texts]


def ask():
    """One question each, of a reward, of the world, and of a language model."""
    evaluate("length", lengths, "a text")
    environment("answer", str.upper, "a question")
    log_prob_of(EOS.completion([0], 3), torch.tensor([[1, 2, 2]]))


@pytest.mark.parametrize("inner", [contextlib.nullcontext, run_memory])
def test_one_memory_for_rewards_the_world_and_language_models(inner):
    """Everything is asked once in a block, and again in the next; an inner block shares what the outer one knows."""
    for block, times in ((run_memory, 1), (run_memory, 1), (contextlib.nullcontext, 5)):
        with measure() as cost, block():
            for _ in range(5):
                with contextlib.nullcontext() if block is contextlib.nullcontext else inner():
                    ask()
        assert (cost.reward_calls, cost.environment_calls, cost.scored_tokens) == (times, times, 3 * times)


def test_what_is_remembered_belongs_to_its_block():
    assert remembered("part", list) is None
    with run_memory():
        remembered("part", list).append(1)
        with run_memory():
            assert remembered("part", list) == [1]
        assert remembered("part", list) == [1]
        assert remembered("another", list) == []
    with run_memory():
        assert remembered("part", list) == []


def test_remarks_are_made_once_at_the_end_of_the_outer_block():
    asked = []

    def remark():
        asked.append(1)
        return "so it was"

    assert on_run_end("key", lambda: remark) is None
    with run_memory() as remarks:
        with run_memory() as inner:
            assert on_run_end("key", lambda: remark) is remark
        on_run_end("key", lambda: lambda: "never: the key is taken")
        with nested_run():
            assert on_run_end("other", lambda: remark) is remark, "something to write to, which nobody calls"
        assert (inner, remarks, asked) == ([], [], [])
    assert (remarks, asked) == (["so it was"], [1])
    with contextlib.suppress(InputError), run_memory() as remarks:
        on_run_end("key", lambda: remark)
        raise InputError("it went wrong")
    assert (remarks, asked) == ([], [1]), "only if it ended well"


# -- means to an end ------------------------------------------------------------------------------------------------


def says_one(texts):
    return [float("1" in text) for text in texts]


def steep(completion_ids, **_):
    return [1000.0 * float(sum(LADDER[ids])) for ids in completion_ids]


def constrained(feature=says_one, target=0.7, **settings):
    """A program that lints have something to say about: a reward that does not tell texts apart."""
    moments = moment_constraint({"moments": feature}, {"moments": target}, **settings)

    def program():
        x = completion("x", EOS, [0], max_new_tokens=4)
        reward("flat", lambda texts: [1.0 for _ in texts], x)
        moments(x)

    return moments, program


FLAT = "reward 'flat' is 1 on every draw: it does not tell them apart"


def test_a_run_that_fits_a_moment_says_each_thing_once(caplog):
    moments, program = constrained()
    run = ImportanceSampling(64).run(program)
    assert moments.fitted is not None
    assert lines(caplog) == [FLAT], "for the user's run, and not for the pool"
    assert run.warnings == (FLAT,)
    caplog.clear()
    again = ImportanceSampling(64).run(program)
    assert lines(caplog) == [FLAT]
    assert again.warnings == (FLAT,)


def test_a_fit_by_hand_is_silent_and_tells_when_asked(caplog):
    moments, program = constrained()
    moments.fit(program)
    assert lines(caplog) == []
    assert moments.fitted.noticed == (FLAT,)
    assert f"Warning: {FLAT}." in str(moments.fitted)
    moments.fit(program, engine=SMC(200, 1))
    assert lines(caplog) == [], "nor does it say that SMC without a twist is importance sampling"
    SMC(200, 1).run(program)
    assert any("is importance sampling" in line for line in lines(caplog))


def test_what_the_fit_itself_has_to_say_is_a_warning_of_every_run_that_uses_it():
    _, program = constrained(steep, 2650.0, num_pool=400)
    with pytest.warns(UserWarning, match="effective draws of 400 carry the fit") as heard:
        run = ImportanceSampling(64).run(program)
    assert sum("carry the fit" in str(warning.message) for warning in heard) == 1
    assert [line for line in run.warnings if "carry the fit" in line] == [str(heard[0].message)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert any("carry the fit" in line for line in ImportanceSampling(64, 1).run(program, seed=1).warnings)


def test_a_fit_that_fails_fails_the_run():
    _, program = constrained(target=1.5)
    with pytest.raises(InputError, match="cannot be met"):
        ImportanceSampling(16).run(program)


def test_what_an_agent_would_get_is_measured_for_the_users_run_only(caplog):
    def program():
        x = completion("x", EOS, [0], max_new_tokens=2)
        luck = environment("luck", dist.Bernoulli(torch.where(x.tokens[..., 0] == 1, 0.8, 0.3)))
        reward("pay", lambda tokens: (tokens[..., 0] == 1).double() + luck, x.tokens)

    with nested_run():
        assert not is_top_level()
        pool = Enumeration().run(program)
    assert is_top_level()
    assert (pool.optimism, lines(caplog)) == (None, [])
    run = Enumeration().run(program)
    assert run.optimism is not None
    assert len(lines(caplog)) == 1
    assert torch.equal(run.log_weight, pool.log_weight)


def test_aside_changes_no_number():
    _, program = constrained()
    loud = ImportanceSampling(64).run(program, seed=3)
    with nested_run():
        quiet = ImportanceSampling(64).run(program, seed=3)
    assert torch.equal(loud.log_weight, quiet.log_weight)
    assert quiet.warnings == loud.warnings, "whoever started it may read what it noticed"
