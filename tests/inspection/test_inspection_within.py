"""``inspect`` where there are hard constraints: its draws come from within them, and its numbers are exact."""

from __future__ import annotations

import math
import re

import pytest
import torch
from inspection.test_inspection import Truth, paid
from toys.constrained_programs import PROGRAMS
from toys.lms import AB

from ppl_align import Rejection, completion, constrain, inspect, reward
from ppl_align.constraints import Contains
from ppl_align.core.seeds import isolated
from ppl_align.inspection.pool import Pool, draw_pool
from ppl_align.inspection.predictive import answers, event, prior_rewards
from ppl_align.inspection.profile import profile
from ppl_align.inspection.strengths import log_evidence_slope, sensitivities, strength, useful_range
from ppl_align.program import Program
from ppl_align.runner.known_constraints import known_constraints
from ppl_align.testing import Oracle
from ppl_align.testing.oracle import entropy, kl_divergence

NAMES = ["regex_eos", "words", "second_completion", "both_completions", "plated", "cut_by_top_k", "contains"]


def pools(name: str, draws: int = 8000, seed: int = 0) -> tuple[Pool, Pool]:
    """Draws from within, and of the prior."""
    program, quiet = PROGRAMS[name], lambda done, total, note: None
    with isolated(seed):
        within = draw_pool(program, (), {}, draws, quiet, known_constraints(Program(program)))
        return within, draw_pool(program, (), {}, draws, quiet)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_over_beta(name: str) -> None:
    pool, _ = pools(name)
    assert pool.confined
    for factor in (0.7, 1.0, 3.0):
        truth, found = Truth(PROGRAMS[name], factor), strength(pool, factor)
        assert found.enough
        assert abs(found.log_evidence.value - truth.log_evidence) < 4.5 * found.log_evidence.standard_error + 1e-9
        assert abs(found.kl.value - truth.kl) < 4.5 * found.kl.standard_error < 0.5
        for which, r in truth.oracle.rewards.items():
            seen = found.rewards[which]
            assert abs(seen.value - truth.mean(r)) < 4.5 * seen.standard_error < 0.5
        moved = float(kl_divergence(truth.log_target, Truth(PROGRAMS[name], 1e9).log_target))
        assert abs(found.moved.value - moved) < 4.5 * found.moved.standard_error + 1e-6


@pytest.mark.parametrize("name", ["regex_eos", "second_completion"])
def test_what_rewards_do_and_what_is_said(name: str) -> None:
    pool, prior = pools(name, 20_000)
    truth, oracle = Truth(PROGRAMS[name]), Oracle(PROGRAMS[name])
    for found in sensitivities(pool):
        if found.name in pool.constraints:
            assert math.isnan(found.gain.value), "no draw breaks it"
            continue
        gain = float(kl_divergence(truth.log_target, Truth(PROGRAMS[name], without=found.name).log_target))
        assert abs(found.gain.value - gain) < 4.5 * found.gain.standard_error < 0.1
    step = 1e-4
    ends = [Truth(PROGRAMS[name], math.exp(sign * step)).log_evidence for sign in (1, -1)]
    slope = log_evidence_slope(pool)
    assert abs(slope.value - (ends[0] - ends[1]) / (2 * step)) < 4.5 * slope.standard_error
    said = answers(pool, prior)
    assert said is not None
    for estimate, log_p in ((said.prior_entropy, oracle.log_prior), (said.posterior_entropy, oracle.log_target)):
        assert abs(estimate.value - float(entropy(log_p))) < 4.5 * estimate.standard_error < 0.2
    site = list(oracle.completions)[-1]
    hit = torch.tensor(["aba" in text for text in oracle.completions[site].texts()], dtype=torch.float64)
    if len(oracle.completions) == 1:
        seen = event(pool, prior, "aba", lambda text: "aba" in text)
        for estimate, log_p in ((seen.prior, oracle.log_prior), (seen.posterior, oracle.log_target)):
            assert abs(estimate.value - float((log_p.exp() * hit).sum())) < 4.5 * estimate.standard_error < 0.1


def test_a_reward_under_the_prior_given_the_constraints() -> None:
    pool, _ = pools("regex_eos", 20_000)
    oracle, given = Oracle(PROGRAMS["regex_eos"]), Truth(PROGRAMS["regex_eos"], 1e9)
    r, p = oracle.rewards["taste"], given.log_target.exp()
    (found,) = prior_rewards(pool)
    mean = float((p * r).sum())
    assert abs(found.mean.value - mean) < 4.5 * found.mean.standard_error < 0.1
    assert found.sd == pytest.approx(math.sqrt(float((p * (r - mean).square()).sum())), rel=0.05)
    order = r.argsort()
    median = float(r[order][torch.searchsorted(p[order].cumsum(0), 0.5)])
    assert found.quantiles[2] == pytest.approx(median, abs=0.2)


@pytest.mark.parametrize(
    "name", ["regex_eos", pytest.param("second_completion", marks=pytest.mark.statistical), "plated"]
)
def test_the_profile_brackets_the_exact_one(name: str) -> None:
    oracle, repeats = Oracle(PROGRAMS[name]), 30
    found: dict[tuple[str, int | None], list[tuple[float, float]]] = {}
    for i in range(repeats):
        pool, _ = pools(name, 400, seed=i)
        with isolated(i + 900):
            drawn = profile(pool, 16, 8, lambda done, total, note: None)
        assert drawn is not None
        for cut in drawn.cuts[:-1]:
            assert cut.tokens is not None
            exact = paid(oracle, pool, cut.site, cut.tokens)
            found.setdefault((cut.site, cut.tokens), []).append((cut.lower.value - exact, cut.upper.value - exact))
    assert found
    for at, each in found.items():
        below, above = torch.tensor(each, dtype=torch.float64).unbind(-1)
        noise = 3.5 / math.sqrt(repeats)
        assert float(below.mean()) < noise * float(below.std()) + 1e-9, at
        assert float(above.mean()) > -noise * float(above.std()) - 1e-9, at


def test_a_beta_can_be_chosen_under_a_constraint() -> None:
    found = inspect(PROGRAMS["regex_eos"], num_draws=400, num_prefixes=0)
    low, high = useful_range(list(found.strengths)) or (math.nan, math.nan)
    assert low < 1 < high
    assert "400 draws from within 'format', 100 of the prior" in str(found)
    assert "given the constraints" in str(found)
    assert found.prior.num_draws == 100
    says = re.search(r"([0-9.]+)% of the prior meets the constraints", found.advice[1])
    meets = 100 * math.exp(Truth(PROGRAMS["regex_eos"], 1e9).log_evidence)
    assert says is not None
    assert float(says[1]) == pytest.approx(meets, rel=0.25)


def test_the_price_of_rejection_is_that_of_draws_of_the_prior() -> None:
    found = inspect(PROGRAMS["regex_eos"], num_draws=8000, num_prefixes=0)
    line = next(p for p in found.predictions if p.engine == "rejection")
    forecast = Rejection(num_particles=25, num_pilot=20_000).forecast(PROGRAMS["regex_eos"])
    error = math.hypot(line.num_draws.standard_error, forecast.standard_error / forecast.acceptance**2 * 100)
    assert abs(line.num_draws.value - 100 / forecast.acceptance) < 4.5 * error
    each = found.prior.cost.lm_tokens / found.prior.num_draws
    assert line.lm_tokens == pytest.approx(each * line.num_draws.value)


def constrained() -> None:
    constrain("a b in it", Contains("b"), completion("x", AB, "", max_new_tokens=3))


def test_a_hard_constraint_is_drawn_from_within() -> None:
    """What importance sampling would take is told by draws from within, not by the few of the prior that meet it."""
    found = inspect(constrained, num_draws=4000, num_prefixes=4)
    lines = {p.engine: p for p in found.predictions}
    assert found.pool.constraints == ("a b in it",)
    assert lines["rejection"].lm_tokens is not None
    oracle = Oracle(constrained)
    log_evidence = oracle.log_evidence  # KL = -log Z where w is 0 or 1
    assert abs(found.written.kl.value + log_evidence) < 4.5 * found.written.kl.standard_error
    p_a, p_b, _ = torch.tensor([0.3, 0.0, -0.5], dtype=torch.float64).softmax(0).tolist()
    # Until b is there, EOS is not allowed: a token weighs p(a) + p(b), and the last of "aa?" is b.
    ways = {  # text -> (probability of the draw, weight)
        "b..": (p_b / (p_a + p_b), p_a + p_b),
        "ab.": (p_a * p_b / (p_a + p_b) ** 2, (p_a + p_b) ** 2),
        "aab": (p_a**2 / (p_a + p_b) ** 2, (p_a + p_b) ** 2 * p_b),
    }
    z = sum(q * w for q, w in ways.values())
    assert math.log(z) == pytest.approx(log_evidence, abs=1e-6)
    each = sum(q * w**2 for q, w in ways.values()) / z**2
    draws = lines["importance"].num_draws
    assert draws.standard_error > 0
    assert abs(draws.value - found.goal * each) < 4.5 * draws.standard_error
    assert lines["smc"].at_least
    assert lines["smc"].num_draws.value == found.goal
    assert all(lines[engine].lm_tokens > 0 for engine in ("importance", "smc", "svi"))


def test_a_rejection_among_draws_from_within_is_no_task_for_svi() -> None:
    def picky() -> None:
        x = completion("x", AB, "", max_new_tokens=3)
        constrain("a b in it", Contains("b"), x)
        reward("no a first", lambda texts: [-math.inf if text.startswith("a") else 0.0 for text in texts], x)

    lines = {p.engine: p for p in inspect(picky, num_draws=200, num_prefixes=0).predictions}
    assert "no gradient" in lines["svi"].note
    assert lines["importance"].lm_tokens > 0


def test_what_no_draw_from_within_ends_well_has_no_price() -> None:
    def impossible() -> None:
        constrain("none", Contains("b"), completion("x", AB, "", max_new_tokens=3))
        reward("never", lambda texts: [-math.inf] * len(texts), completion("y", AB, "", max_new_tokens=2))

    lines = {p.engine: p for p in inspect(impossible, num_draws=40, num_prefixes=0).predictions}
    assert "from within 'none'" in lines["importance"].note
    assert lines["importance"].lm_tokens is None
