"""``check_engine``: what is right passes, each kind of wrong fails the check meant for it."""

from __future__ import annotations

import dataclasses
import logging
import random
import re
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyro
import pytest
import torch
from conftest import SEED
from toys.broken_engines import (
    ONE,
    QUICK,
    SEVERAL,
    TWO,
    Broken,
    CannotBeSaved,
    ClearsParameters,
    FewReplicates,
    FlatPrior,
    ForgetsASite,
    HidesTheBill,
    LeavesParameters,
    LogOfTheMean,
    NoFactors,
    NoSeed,
    NotANumber,
    OneSeed,
    OnlyTheMode,
    PassesForExact,
    Raises,
    ReturnsNothing,
    ScalesRewards,
    SecretConfiguration,
    SwitchesGradientsOff,
    TooMuchEvidence,
    UsesNumpysNumbers,
    UsesPythonsNumbers,
    UsesTorchsNumbers,
    WeightsOfOthers,
)

from ppl_align import SMC, Engine, Enumeration, ImportanceSampling, Rejection, completion, reward
from ppl_align.core.errors import AllDeadError, InputError, RunError
from ppl_align.particles.particles import Particles
from ppl_align.posterior.of_particles import of_particles
from ppl_align.testing import PROGRAMS, ContractError, Oracle, check_engine, check_reward
from ppl_align.testing.checks import CHECKS, STATISTICAL
from ppl_align.testing.contract import Case
from ppl_align.testing.programs import EOS, FIXED
from ppl_align.testing.statistics import (
    RATE,
)


@dataclass(frozen=True)
class Mine(Engine):
    """Likelihood weighting, written from scratch: what a user would write."""

    num_particles: int = 48
    name: ClassVar[str] = "mine"

    def _infer(self, task):
        program, drawn = task.program(), Particles(self.num_particles)
        while (site := (drawn := program.run(drawn, draw=True)).pending) is not None:
            value = site.fn.sample()
            log_p = site.fn.log_prob(value).double().reshape(drawn.size, -1).sum(-1)
            drawn = drawn.write(site.name, value, log_p, log_p)
        return of_particles(drawn, drawn.log_potential[None])


def test_an_engine_of_ten_lines_keeps_the_contract():
    """It knows no replicates, so it is run with as many seeds."""
    report = check_engine(Mine(), TWO, seed=SEED, num_replicates=60)
    assert report, str(report)
    assert report.raise_if_failed() is report
    assert len(report.results) == 2 * (1 + len(CHECKS))


def test_a_population_that_died_is_an_estimate_of_zero(monkeypatch):
    """With two particles, ``hard_rejection`` now and then kills all of them: leaving those runs out would be a bias."""

    def program():
        x = completion("x", FIXED, [0], max_new_tokens=2)
        reward("has a 2", lambda t: torch.where((t == 2).any(-1), 0.0, -torch.inf), x.tokens)

    case = Case(Mine(6), "program", Oracle(program), seed=SEED, num_replicates=200, level=1e-4)
    if case.ran.status == "refused":  # the very first run may be the one that dies
        case = dataclasses.replace(case, seed=SEED + 1000)
    dead = int(case.pooled.log_evidence.isneginf().sum())
    assert case.pooled.log_weight.shape == (200, 6)
    assert dead > 0
    assert case.judge("Zhat").status == "passed"
    assert case.judge("weights").status == "passed"


@pytest.mark.parametrize(
    ("engine", "check", "says"),
    [
        (NoFactors, "shapes", r"expected factors of \['r'\], got nothing"),
        (FlatPrior, "shapes", r"expected log_prior\['x'\] of shape \[200, 32\], got \[6400\]"),
        (NotANumber, "shapes", "log_weight below .inf, got NaN"),
        (FewReplicates, "shapes", "expected 200 replicates, got 199"),
        (SecretConfiguration, "shapes", "TypeError: Object of type object is not JSON serializable"),
        (OneSeed, "seed", "expected different results from the seeds 0 and 1, got the same"),
        (NoSeed, "seed", "the same result from seed 0 twice"),
        (UsesTorchsNumbers, "state", "expected torch's global random numbers to be left alone"),
        (UsesNumpysNumbers, "state", "expected numpy's global random numbers to be left alone"),
        (UsesPythonsNumbers, "state", "expected Python's global random numbers to be left alone"),
        (LeavesParameters, "state", "expected Pyro's parameter store to be left alone"),
        (ClearsParameters, "state", "expected Pyro's parameter store to be left alone"),
        (SwitchesGradientsOff, "state", "expected torch's gradient mode to be left alone"),
        (ForgetsASite, "scores", r"expected log_prior\['x'\] = -?[\d.]+ when scored again, got"),
        (ScalesRewards, "scores", r"expected rewards\['r'\] = "),
        (HidesTheBill, "cost", "expected cost.lm_forwards = 4, as counted from outside, got 0"),
        (CannotBeSaved, "arviz", "raised OSError: no disk"),
        (TooMuchEvidence, "Zhat", r"expected E\[Zhat / Z\] = 1, measured 1\.\d+ ± [\d.]+ over 200 replicates, p = "),
        (LogOfTheMean, "Zhat", r"expected E\[Zhat / Z\] = 1, measured 0\.\d+ ±"),
        (
            WeightsOfOthers,
            "weights",
            r"the worst of \d+ is off by (over 100|\d+\.\d) standard errors over 200 replicates",
        ),
        (OnlyTheMode, "weights", r"the worst of \d+ is off by (over 100|\d+\.\d) standard errors"),
        (PassesForExact, "Zhat", "expected log Z = "),
        (PassesForExact, "weights", "expected the exact probabilities, got one that is off by"),
        (Raises, "run", "expected a Posterior, it raised KeyError: 'x'"),
        (ReturnsNothing, "run", "expected a Posterior, got NoneType"),
    ],
)
def test_each_kind_of_broken_engine_fails_the_check_meant_for_it(engine, check, says):
    """And no other check, a few apart that break several things at once."""
    (failure,) = [failure for failure in results(engine(), check) if failure.check == check]
    assert failure.status == "failed"
    assert re.search(says, failure.line), failure.line
    assert "\n" not in failure.line
    if engine not in SEVERAL:
        assert {result.check for result in results(engine(), check) if result.status != "passed"} == {check}


def test_the_unbroken_engine_passes_the_same_call():
    assert {result.status for result in results(Broken(), "arviz")} == {"passed"}


def results(engine, check):
    """All checks of ``with_eos``; the slow one where it is asked for."""
    case = Case(engine, "with_eos", Oracle(PROGRAMS["with_eos"]), seed=0, num_replicates=200, level=RATE / 100)
    return case.results([name for name in CHECKS if name in (check, *QUICK)])


def test_the_callers_state_is_put_back_whatever_the_engine_does():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    pyro.param("mine", torch.tensor(2.0))
    expected = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    for engine in (UsesTorchsNumbers, UsesNumpysNumbers, UsesPythonsNumbers, ClearsParameters, SwitchesGradientsOff):
        Case(engine(), "with_eos", Oracle(PROGRAMS["with_eos"]), num_replicates=50).results(["state", "seed"])
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert (np.random.get_state()[1] == expected[1]).all()  # noqa: NPY002
    assert random.getstate() == expected[2]
    assert torch.is_grad_enabled()
    assert [name for name, _ in pyro.get_param_store().items()] == ["mine"]
    pyro.clear_param_store()


def test_too_few_particles_are_inconclusive_and_no_pass():
    report = check_engine(ImportanceSampling(2), {"fixed_length": PROGRAMS["fixed_length"]}, seed=SEED)
    assert not report.failures
    assert [result.check for result in report.inconclusive] == ["Zhat", "weights"]
    assert not report
    with pytest.raises(ContractError, match=r"Zhat, weights\): inconclusive: spread [\d.]+, give the engine more part"):
        report.raise_if_failed()


@pytest.mark.parametrize("error", [InputError, RunError, AllDeadError])
def test_a_refused_program_is_listed_and_another_one_must_run(error):
    class Picky(ImportanceSampling):
        def run(self, model, *args, **kwargs):
            if model.__name__ != "with_eos":
                raise error("only with_eos, please")
            return super().run(model, *args, **kwargs)

    report = check_engine(Picky(32), {**ONE, **TWO}, seed=SEED)
    assert report
    assert [result.subject for result in report.refused] == list(TWO)
    assert "upstream_latent, two_completions: refused: only with_eos, please" in str(report)
    none_ran = check_engine(Picky(32), TWO)
    assert not none_ran
    with pytest.raises(ContractError, match="nothing could be checked"):
        none_ran.raise_if_failed()


def test_programs_may_be_given_in_a_row_alone_or_as_oracles():
    def tilted(beta):
        x = completion("x", EOS, [], max_new_tokens=2)
        reward("r", lambda t: (t == 1).sum(-1).double(), x.tokens, beta=beta)

    oracle = Oracle(tilted, 0.7)
    for given in ([PROGRAMS["with_eos"], oracle], {"with_eos": PROGRAMS["with_eos"], "tilted": oracle}):
        report = check_engine(Enumeration(), given)
        assert report, str(report)
        assert {result.subject for result in report.results} == {"with_eos", "tilted"}
    assert check_engine(Enumeration(), oracle)
    with pytest.raises(
        InputError, match=r"'tilted' needs arguments \(missing .* 'beta'\): wrap it: Oracle\(tilted, ...\)"
    ):
        check_engine(Enumeration(), [tilted])


def test_an_engine_that_refuses_many_replicates_is_run_with_several_seeds():
    """960 accepted draws would take more than it allows itself; its own 64 do not."""
    engine = Rejection(16, 4, max_draws=4000)
    case = Case(engine, "with_eos", Oracle(PROGRAMS["with_eos"]), SEED, 60, RATE)
    with pytest.raises(RunError, match="more than max_draws=4000"):
        dataclasses.replace(engine, num_replicates=60).run(PROGRAMS["with_eos"], seed=SEED)
    assert case.opening[1] == 4
    assert case.pooled.log_weight.shape == (60, 16)
    report = check_engine(engine, {**ONE, **TWO, "raw_pyro": PROGRAMS["raw_pyro"]}, seed=SEED, num_replicates=60)
    assert {result.subject for result in report.refused} == {"upstream_latent", "raw_pyro"}
    assert report, str(report)
    assert report.verdict == (
        f"contract of rejection: 2 of 4 programs checked, all {2 * (1 + len(CHECKS))} checks passed; 2 refused"
    )


def test_one_seed_that_is_refused_leaves_it_undecided():
    class Moody(Mine):
        def run(self, model, *args, seed=0, **kwargs):
            if seed % 7 == 3:
                raise RunError("not today")
            return super().run(model, *args, seed=seed, **kwargs)

    report = check_engine(Moody(), ONE, seed=0, num_replicates=50)
    assert {result.check for result in report.inconclusive} == set(STATISTICAL) - {"scores"}, "one run tells that"
    assert "ran with seed 0, but not with seed 3: RunError: not today" in report.inconclusive[0].line
    assert not report.failures
    assert not report


def test_an_engine_without_a_name_is_told_to_take_one():
    class NoName(Engine):
        def _infer(self, task):
            raise AssertionError

    report = check_engine(NoName(), ONE)
    (failure,) = report.failures
    assert failure.line == 'an engine needs a name: write name: ClassVar[str] = "noname" in class NoName'


def test_what_an_engine_says_in_every_run_is_shown_once(caplog):
    class Talks(ImportanceSampling):
        def run(self, *args, **kwargs):
            warnings.warn("something to know", UserWarning, stacklevel=2)
            return super().run(*args, **kwargs)

    show = warnings.showwarning
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_engine(Talks(16), ONE, num_replicates=50)
    assert [str(warning.message) for warning in caught] == ["something to know"]
    assert warnings.showwarning is show
    with caplog.at_level(logging.WARNING):
        check_engine(SMC(16, twist=None), ONE, num_replicates=50)
        assert len(caplog.records) == 1
        check_engine(SMC(16, twist=None), ONE, num_replicates=50)
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: check_engine(ImportanceSampling), "takes an engine, such as .*got ImportanceSampling"),
        (lambda: check_engine("smc"), "takes an engine.*got str"),
        (lambda: check_engine(Enumeration(), []), "at least one program"),
        (lambda: check_engine(Enumeration(), [PROGRAMS["with_eos"]] * 2), "same name"),
        (lambda: check_engine(Enumeration(), num_replicates=10), "num_replicates must be .* at least 50"),
        (lambda: check_reward(3), "a reward is a function"),
        (lambda: check_reward(len, "one text"), "takes a list of texts"),
        (lambda: check_reward(len, ["one"]), "at least two texts"),
        (lambda: check_reward(lambda texts: [], answer="42"), "cannot read the column 'answer'"),
        (lambda: check_reward(lambda completions, answer: [], answer=["4", "2"]), "2 entries for 27 texts"),
        (lambda: check_reward(lambda completions, answer: []), "needs the column 'answer'"),
        (lambda: check_reward(lambda completions, completion_ids: []), "reads completion_ids: give them"),
    ],
)
def test_wrong_calls_are_one_clear_line(call, says):
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
