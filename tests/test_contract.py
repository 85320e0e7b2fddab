"""``check_engine`` and ``check_reward``: what is right passes, each kind of wrong fails the check meant for it."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
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
from scipy import stats

from ppl_align import SMC, Engine, Exact, ImportanceSampling, Rejection, completion, reward
from ppl_align.cost import Cost
from ppl_align.engines.sweep import assemble
from ppl_align.errors import AllDeadError, InputError, RunError
from ppl_align.program import Program
from ppl_align.rewards import Vader, columns, each
from ppl_align.testing import PROGRAMS, ContractError, Oracle, Report, check_engine, check_reward
from ppl_align.testing.checks import CHECKS, STATISTICAL
from ppl_align.testing.contract import Case
from ppl_align.testing.programs import EOS, FIXED
from ppl_align.testing.report import Result
from ppl_align.testing.statistics import (
    RATE,
    bonferroni_z,
    evidence_z,
    g_test,
    gradient_test,
    key_rows,
    mean_z,
    probabilities,
    say_p,
    say_z,
    two_sided,
    weighting_test,
)

ONE = {"with_eos": PROGRAMS["with_eos"]}
QUICK = [name for name in CHECKS if name != "arviz"]
TWO = {name: PROGRAMS[name] for name in ("upstream_latent", "two_completions")}


# -- an engine of one's own ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mine(Engine):
    """Likelihood weighting, written from scratch: what a user would write."""

    num_particles: int = 48
    name: ClassVar[str] = "mine"

    def _infer(self, task):
        values, log_prior = {}, {}
        program = Program(task.model, task.args, task.kwargs, self.num_particles)
        while (execution := program.run(values, draw=True)).pending is not None:
            values |= execution.drawn
            log_prior |= execution.log_prior
            site = execution.pending
            values[site.name] = site.fn.sample()
            log_prior[site.name] = site.fn.log_prob(values[site.name]).double().reshape(self.num_particles, -1).sum(-1)
        return assemble(execution, values, execution.log_potential[None], log_prior, log_prior)


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


# -- engines that break it ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken(ImportanceSampling):
    """Importance sampling, with something done to its result."""

    num_particles: int = 32

    def broken(self, posterior):
        return posterior

    def run(self, model, *args, **kwargs):
        return self.broken(super().run(model, *args, **kwargs))


class NoFactors(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, factors={})


class FlatPrior(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, log_prior={k: v.reshape(-1) for k, v in posterior.log_prior.items()})


class NotANumber(Broken):
    def broken(self, posterior):
        posterior.log_weight[0, 0] = math.nan
        return posterior


class FewReplicates(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, log_weight=posterior.log_weight[:-1])


class SecretConfiguration(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, config={"model": object()})


class OneSeed(Broken):
    def run(self, model, *args, seed=0, **kwargs):
        return dataclasses.replace(super().run(model, *args, seed=0, **kwargs), seed=seed)


class NoSeed(Broken):
    count: ClassVar = itertools.count()

    def run(self, model, *args, seed=0, **kwargs):
        return dataclasses.replace(super().run(model, *args, seed=next(self.count), **kwargs), seed=seed)


class UsesTorchsNumbers(Broken):
    def broken(self, posterior):
        torch.rand(1)
        return posterior


class UsesNumpysNumbers(Broken):
    def broken(self, posterior):
        np.random.rand()  # noqa: NPY002
        return posterior


class UsesPythonsNumbers(Broken):
    def broken(self, posterior):
        random.random()
        return posterior


class LeavesParameters(Broken):
    def broken(self, posterior):
        pyro.param("left behind", torch.tensor(0.0))
        return posterior


class ClearsParameters(Broken):
    def broken(self, posterior):
        pyro.clear_param_store()
        return posterior


class SwitchesGradientsOff(Broken):
    def broken(self, posterior):
        torch.set_grad_enabled(False)
        return posterior


class ForgetsASite(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, log_prior={k: v + 0.1 for k, v in posterior.log_prior.items()})


class ScalesRewards(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, rewards={k: 2 * v for k, v in posterior.rewards.items()})


class HidesTheBill(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, cost=Cost(seconds=1.0))


class CannotBeSaved(Broken):
    def broken(self, posterior):
        posterior.save = lambda path: (_ for _ in ()).throw(OSError("no disk"))
        return posterior


class TooMuchEvidence(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, log_weight=posterior.log_weight + 0.1)


class LogOfTheMean(Broken):
    """E[log Zhat] instead of log E[Zhat]: weights that are as good as any, up to their mean."""

    def broken(self, posterior):
        geometric = posterior.log_weight.mean(-1, keepdim=True) - posterior.log_evidence[:, None]
        return dataclasses.replace(posterior, log_weight=posterior.log_weight + geometric)


class WeightsOfOthers(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, log_weight=posterior.log_weight.roll(1, -1))


class OnlyTheMode(Broken):
    """The evidence of all, the particles of the most probable assignment."""

    def broken(self, posterior):
        best = posterior.log_weight.new_full(posterior.log_weight.shape, Oracle(PROGRAMS["with_eos"]).log_evidence)
        x, oracle = posterior.particles["x"], Oracle(PROGRAMS["with_eos"])
        x.tokens[:] = oracle.values["x"][oracle.log_target.argmax()]
        return dataclasses.replace(posterior, log_weight=best + 1e-3 * torch.randn(best.shape, dtype=best.dtype))


class PassesForExact(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, exact=True)


class Raises(Broken):
    def broken(self, posterior):
        raise KeyError("x")


class ReturnsNothing(Broken):
    def broken(self, posterior):
        return None


SEVERAL = (NoFactors, FewReplicates, NotANumber, TooMuchEvidence, LogOfTheMean, OnlyTheMode, PassesForExact)


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
        report = check_engine(Exact(), given)
        assert report, str(report)
        assert {result.subject for result in report.results} == {"with_eos", "tilted"}
    assert check_engine(Exact(), oracle)
    with pytest.raises(
        InputError, match=r"'tilted' needs arguments \(missing .* 'beta'\): wrap it: Oracle\(tilted, ...\)"
    ):
        check_engine(Exact(), [tilted])


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
    assert {result.check for result in report.inconclusive} == set(STATISTICAL)
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
        (lambda: check_engine(Exact(), []), "at least one program"),
        (lambda: check_engine(Exact(), [PROGRAMS["with_eos"]] * 2), "same name"),
        (lambda: check_engine(Exact(), num_replicates=10), "num_replicates must be .* at least 50"),
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


# -- reports ------------------------------------------------------------------------------------------------------


def test_a_report_is_a_table_of_at_most_80_columns_and_its_reasons():
    report = check_engine(TooMuchEvidence(), {**ONE, **TWO})
    shown = str(report)
    assert max(map(len, shown.splitlines())) <= 80
    head, *rows = shown.splitlines()
    assert head.split() == ["program", "run", *CHECKS]
    assert rows[1].split() == ["with_eos", *["ok"] * 7, "FAIL", rows[1].split()[-1]]
    assert "=> contract of importance: " in shown
    assert "- with_eos (Zhat" in shown
    with pytest.raises(AssertionError, match=r"with_eos \(Zhat"):
        report.raise_if_failed()


def test_the_whole_contract_fits_into_80_columns():
    results = [
        Result(subject, check, "failed" if check == "Zhat" else "passed", "it does not")
        for subject in PROGRAMS
        for check in ("run", *CHECKS)
    ]
    shown = str(Report("contract of anything", results))
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("program ") == 1, "one table"
    assert shown.count("it does not") == 1, "subjects with the same story share a line"
    assert "with_eos, fixed_length, whole_prefix and 13 more (Zhat): it does not" in " ".join(shown.split())


def test_a_report_about_one_thing_lists_its_checks_below_one_another():
    shown = str(check_reward(Vader()))
    assert shown.splitlines()[0].split() == ["check", "vader"]
    assert "=> contract of the reward vader: all 11 checks passed" in shown


def test_a_reward_without_bounds_has_none_to_check():
    report = check_reward(applies_sometimes)
    assert report
    assert "bounds none stated" in " ".join(str(report).replace("\n", " ").split())
    assert report.verdict.endswith("all 10 checks passed")


def test_numbers_far_out_are_said_in_words():
    assert (say_p(0.0), say_p(1e-5)) == ("p < 1e-300", "p = 1.0e-05")
    assert (say_z(1301551933.4), say_z(99.96)) == ("over 100 standard errors", "100.0 standard errors")


def test_an_empty_report_is_no_pass():
    assert not Report("nothing", [])


# -- statistics ---------------------------------------------------------------------------------------------------


def test_p_values_of_a_correct_engine_are_uniform():
    """Also far out: skewness is corrected for (Student's t would put 1% beyond the lower 0.5% point)."""
    program = PROGRAMS["downstream_latent"]
    oracle = Oracle(program)
    evidence, weights = [], []
    for seed in range(300):
        posterior = ImportanceSampling(4, 200).run(program, seed=1000 * SEED + seed)
        evidence.append(two_sided(evidence_z(posterior, oracle.log_evidence)[0], 200))
        weights.append(weighting_test(posterior, oracle.posterior).p_value)
    assert stats.kstest(evidence, "uniform").pvalue > RATE / 4
    for p_values in (evidence, weights):
        for level in (0.1, 0.01):  # at most: Bonferroni over the cells is a bound
            hits = int((np.array(p_values) < level).sum())
            assert stats.binom.sf(hits - 1, len(p_values), level) > RATE / 8


def test_skewness_is_corrected_for():
    generator = torch.Generator().manual_seed(SEED)
    sample = (0.57 * torch.randn(300, 40_000, generator=generator, dtype=torch.float64) - 0.57**2 / 2).exp()
    z = mean_z(sample, 1.0)
    t = (sample.mean(0) - 1) / sample.std(0) * math.sqrt(300)
    edge = float(stats.t.isf(0.0005, 299))
    assert stats.binom.sf(int((z < -edge).sum()) - 1, 40_000, 0.0005) > RATE
    assert stats.binom.sf(int((z > edge).sum()) - 1, 40_000, 0.0005) > RATE
    assert stats.binom.sf(int((t < -edge).sum()) - 1, 40_000, 0.0005) < 1e-6, "it would matter"


def test_what_never_varies_must_agree_to_rounding():
    posterior = Exact().run(PROGRAMS["with_eos"])
    copies = dataclasses.replace(
        posterior,
        log_weight=posterior.log_weight.expand(60, -1).clone(),
        particles={k: v.reshape(-1).tokens.expand(60, -1, -1) for k, v in posterior.particles.items()},
    )
    log_z = posterior.log_evidence.item()
    assert abs(evidence_z(copies, log_z)[0]) < 1
    assert weighting_test(copies, posterior).p_value == pytest.approx(1.0)
    copies.log_weight += 1e-3
    assert abs(evidence_z(copies, log_z)[0]) > 100
    assert weighting_test(copies, posterior).p_value < 1e-9


def test_an_assignment_too_rare_to_be_visited_is_no_alarm():
    """``truncated`` has one of probability 7e-4: of 1200 exact draws, 4 in 10 sets hold none of them."""
    oracle = Oracle(PROGRAMS["truncated"])
    p_values = []
    for seed in range(200):
        p_values.append(weighting_test(oracle.sample(8, 150, seed=1000 * SEED + seed), oracle.posterior).p_value)
    for level in (0.1, 0.01):
        hits = int((np.array(p_values) < level).sum())
        assert stats.binom.sf(hits - 1, len(p_values), level) > RATE / 2


def test_g_test_knows_a_law_from_another():
    exact = Exact().run(PROGRAMS["with_eos"])
    law = probabilities(exact)
    rows, _ = key_rows(exact)
    generator = torch.Generator().manual_seed(SEED)

    def p_value(weights, size=400):
        drawn = torch.multinomial(weights, size, replacement=True, generator=generator).tolist()
        counts = {}
        for i in drawn:
            counts[rows[i]] = counts.get(rows[i], 0) + 1
        return g_test(counts, law).p_value

    right, wrong = exact.weights[0], sum(exact.log_prior.values())[0].exp()
    assert stats.kstest([p_value(right) for _ in range(300)], "uniform").pvalue > RATE
    assert p_value(wrong) < 1e-9
    assert g_test({("nowhere",): 1}, law).p_value == 0.0
    assert g_test({"a": 9}, {"a": 1.0}).p_value == 1.0


def test_gradient_test_sees_a_bias_and_nothing_else():
    generator = torch.Generator().manual_seed(SEED)
    gradient = torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64)
    noise = torch.randn(200, 500, 3, generator=generator, dtype=torch.float64)
    found = [gradient_test(gradient + n, gradient).p_value for n in noise]
    assert stats.binom.sf(sum(p < 0.05 for p in found) - 1, 200, 0.05) > RATE
    assert gradient_test(0.75 * gradient + noise[0], gradient).p_value < 1e-6
    assert gradient_test(-gradient + noise[0], gradient).p_value < 1e-30


def test_bonferroni_keeps_the_rate_of_the_family():
    z = bonferroni_z(40, rate=0.05)
    noise = torch.randn(4000, 40, generator=torch.Generator().manual_seed(SEED))
    alarms = int((noise.abs() > z).any(-1).sum())
    assert stats.binom.sf(alarms - 1, 4000, 0.05) > RATE


# -- rewards ------------------------------------------------------------------------------------------------------


def relative(texts):
    longest = max(map(len, texts)) or 1
    return [len(text) / longest for text in texts]


def noisy(texts):
    return [random.random() for _ in texts]


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
