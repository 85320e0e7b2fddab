"""``inspect`` against enumeration: are its numbers right, and does it say so when they cannot be?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SEED
from torch import Tensor

from ppl_align import Enumeration, ImportanceSampling, Rejection, completion, inspect, reward
from ppl_align.core.errors import InputError
from ppl_align.core.seeds import isolated
from ppl_align.inspection.pool import Pool, draw_pool
from ppl_align.inspection.predictive import answers, event
from ppl_align.inspection.profile import profile
from ppl_align.inspection.strengths import log_evidence_slope, sensitivities, strength, strengths, useful_range
from ppl_align.inspection.weighted import ENOUGH, Weighted
from ppl_align.particles.particles import Particles
from ppl_align.runner.runner import Runner
from ppl_align.testing import Oracle
from ppl_align.testing.oracle import entropy, kl_divergence
from ppl_align.testing.programs import EOS, MEMORY, PROGRAMS

POOLS, DRAWS = 150, 256


def pool_of(program: Callable[..., Any], draws: int = DRAWS, seed: int = 0) -> Pool:
    with isolated(seed + 1000 * SEED):
        return draw_pool(program, (), {}, draws, lambda done, total, note: None)


def cut(pool: Pool, which: int) -> Pool:
    """Draws ``which * DRAWS`` and on of a large pool, as a pool of their own."""
    here = torch.arange(which * DRAWS, (which + 1) * DRAWS)
    return Pool(pool.program, pool.particles.take(here), pool.sites)


class Truth:
    """A program with all betas multiplied by ``factor``, by enumeration."""

    def __init__(self, program: Callable[..., Any], factor: float = 1.0, without: str | None = None) -> None:
        self.oracle = Oracle(program)
        parts = {name: f[0] for name, f in self.oracle.posterior.factors.items() if name != without}
        psi = sum((f / (factor if n in self.oracle.rewards else 1.0) for n, f in parts.items()), torch.zeros(()))
        joint = self.oracle.log_prior + psi
        self.log_evidence = float(joint.logsumexp(0))
        self.log_target = joint - self.log_evidence
        self.kl = float(kl_divergence(self.log_target, self.oracle.log_prior))
        self.ess_share = math.exp(2 * self.log_evidence - float((joint + psi).logsumexp(0)))

    def mean(self, f: Tensor) -> float:
        return float(torch.where(self.log_target.exp() > 0, self.log_target.exp() * f, 0.0).sum())


def calibrated(z: list[float], at: str) -> None:
    """z-scores of independent pools: mean near 0, spread near 1."""
    found = torch.tensor(z, dtype=torch.float64)
    assert abs(float(found.mean())) < 0.5, f"{at}: mean z {found.mean():.2f}"
    assert 0.75 < float(found.std()) < 1.3, f"{at}: sd of z {found.std():.2f}"


# -- the strength of the rewards ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with_eos", "two_rewards", "hard_rejection", "plated", "observed_ending"])
def test_errors_are_calibrated_where_the_pool_is_enough(name: str) -> None:
    program = PROGRAMS[name]
    large, checked = pool_of(program, POOLS * DRAWS), 0
    pools = [cut(large, i) for i in range(POOLS)]
    for factor in (4.0, 2.0, 1.0) if large.particles.rewards else (1.0,):
        truth = Truth(program, factor)
        if truth.ess_share * DRAWS < 1.75 * ENOUGH:
            continue
        found = [strength(pool, factor) for pool in pools]
        checked += 1
        assert sum(s.enough for s in found) > 0.8 * POOLS
        enough = [s for s in found if s.enough]
        at = f"{name} at {factor:g}"
        z_evidence = [(s.log_evidence.value - truth.log_evidence) / s.log_evidence.standard_error for s in enough]
        calibrated(z_evidence, f"{at}, log Z")
        calibrated([(s.kl.value - truth.kl) / s.kl.standard_error for s in enough], f"{at}, KL")
        for which, r in truth.oracle.rewards.items():
            if bool(r.isfinite().all()):
                exact = truth.mean(r)
                z = [(s.rewards[which].value - exact) / s.rewards[which].standard_error for s in enough]
                calibrated(z, f"{at}, E[{which}]")
    assert checked


@pytest.mark.parametrize("name", ["with_eos", "whole_prefix", "two_rewards"])
def test_where_the_pool_is_too_small_it_says_at_least(name: str) -> None:
    program = PROGRAMS[name]
    large = pool_of(program, POOLS * DRAWS)
    truth = Truth(program, 1 / 8)
    found = [strength(cut(large, i), 1 / 8) for i in range(POOLS)]
    claims = [s for s in found if s.enough]
    assert len(claims) < 0.05 * POOLS  # a pool that misses all of it looks perfect; no weight can tell
    bounds = [s for s in found if not s.enough]
    assert all(math.isnan(s.kl.standard_error) and math.isnan(s.log_evidence.standard_error) for s in bounds)
    assert all(s.kl.value <= math.log(DRAWS) for s in found)
    assert sum(s.kl.value for s in bounds) / len(bounds) < truth.kl
    assert sum(s.log_evidence.value for s in bounds) / len(bounds) < truth.log_evidence


def test_luck_states_no_errors() -> None:
    """Log-normal weights of which 512 draws are worth 42: pools that look like 64 are those that missed the heavy
    ones, and the square roots of their weights know."""
    draws = 1.58 * torch.randn(400, 512, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pools = [Weighted(psi) for psi in draws]
    lucky = [pool for pool in pools if pool.ess >= ENOUGH]
    assert len(lucky) > 0.4 * len(pools), "by the effective sample size alone"
    assert sum(pool.enough for pool in pools) < 0.1 * len(pools)


def test_the_whole_grid_on_a_large_pool() -> None:
    pool = pool_of(PROGRAMS["with_eos"], 20_000)
    grid = strengths(pool)
    assert sum(s.kl.stated for s in grid) >= sum(s.enough for s in grid) - 1 >= 5  # KL asks for a little more
    for s in grid:
        truth = Truth(PROGRAMS["with_eos"], s.factor)
        if s.kl.stated:
            assert abs(s.kl.value - truth.kl) < 4.5 * s.kl.standard_error
        if s.enough:
            assert abs(s.log_evidence.value - truth.log_evidence) < 4.5 * s.log_evidence.standard_error
    low, high = useful_range(strengths(pool)) or (math.nan, math.nan)
    assert Truth(PROGRAMS["with_eos"], high).kl >= 0.09 > Truth(PROGRAMS["with_eos"], 2 * high).kl
    assert Truth(PROGRAMS["with_eos"], low).ess_share * 20_000 > ENOUGH / 2


def test_sensitivities() -> None:
    program, step = PROGRAMS["two_rewards"], 1e-4
    truth, pool = Truth(program), pool_of(program, 20_000)
    up, down = Truth(program, math.exp(step)), Truth(program, math.exp(-step))
    slope = log_evidence_slope(pool)
    exact = (up.log_evidence - down.log_evidence) / (2 * step)
    assert abs(slope.value - exact) < 4.5 * slope.standard_error < 0.05
    for found in sensitivities(pool):
        less = Truth(program, without=found.name)
        gain = float(kl_divergence(truth.log_target, less.log_target))
        assert abs(found.gain.value - gain) < 4.5 * found.gain.standard_error < 0.1
        assert abs(found.kl_without.value - less.kl) < 4.5 * found.kl_without.standard_error
        assert abs(found.log_evidence_without.value - less.log_evidence) < (
            4.5 * found.log_evidence_without.standard_error
        )
        r = truth.oracle.rewards[found.name]
        moved = (up.mean(r) - down.mean(r)) / (2 * step)
        assert found.per_log_beta is not None
        assert abs(found.per_log_beta.value - moved) < 4.5 * found.per_log_beta.standard_error < 0.1


# -- where along the text ---------------------------------------------------------------------------------------------


def paid(oracle: Oracle, pool: Pool, site: str, tokens: int) -> float:
    """C_t = E_p*[V] - log Z by summing over all that agree with a prefix."""
    before = list(pool.particles.values)[: list(pool.particles.values).index(site)]
    size = len(oracle.log_prior)
    columns = [oracle.values[name].reshape(size, -1).double() for name in before]
    columns += [oracle.values[site][..., :tokens].reshape(size, -1).double(), torch.zeros(size, 1)]
    _, group = torch.unique(torch.cat(columns, 1), dim=0, return_inverse=True)
    empty = torch.zeros(int(group.max()) + 1, dtype=torch.float64)
    prior = empty.index_add(0, group, oracle.log_prior.exp())
    target = empty.index_add(0, group, oracle.log_target.exp())
    return float(torch.where(target > 0, target * (target / prior).log(), 0.0).sum())


@pytest.mark.parametrize("name", ["with_eos", "two_completions", "upstream_latent", "downstream_latent", "plated"])
def test_the_profile_brackets_the_exact_one(name: str) -> None:
    oracle, repeats = Oracle(PROGRAMS[name]), 40
    lower: dict[tuple[str, int], list[float]] = {}
    upper: dict[tuple[str, int], list[float]] = {}
    z: dict[tuple[str, int], list[float]] = {}
    truth: dict[tuple[str, int], float] = {}
    for i in range(repeats):
        pool = pool_of(PROGRAMS[name], 512, seed=i)
        with isolated(i + 7000 + 1000 * SEED):
            found = profile(pool, 16, 8, lambda done, total, note: None)
        assert found is not None
        for place in found.cuts[:-1]:
            at = place.site, place.tokens
            if at not in truth:
                truth[at] = paid(oracle, pool, *at)
            exact = truth[at]
            lower.setdefault(at, []).append(place.lower.value - exact)
            upper.setdefault(at, []).append(place.upper.value - exact)
            z.setdefault(at, []).append((place.middle - exact) / place.lower.standard_error)
    for at in lower:
        below, above, score = (torch.tensor(v[at], dtype=torch.float64) for v in (lower, upper, z))
        noise = 3.5 / math.sqrt(repeats)
        assert float(below.mean()) < noise * float(below.std()), at
        assert float(above.mean()) > -noise * float(above.std()), at
        assert abs(float(score.mean())) < 0.75, at
        assert 0.4 < float(score.std()) < 1.6, at


def test_a_profile_rises_to_the_kl() -> None:
    found = inspect(PROGRAMS["with_eos"], num_draws=4000, num_prefixes=200, num_continuations=64).profile
    assert found is not None
    oracle = Oracle(PROGRAMS["with_eos"])
    assert [cut.tokens for cut in found.cuts] == [1, 2, 3, 4]
    assert found.cuts[-1].middle == pytest.approx(float(kl_divergence(oracle.log_target, oracle.log_prior)), abs=0.06)
    assert found.halfway is not None
    assert found.halfway.tokens == 1


def test_a_prefix_is_kept_and_the_rest_drawn_from_the_prior() -> None:
    pool = pool_of(PROGRAMS["with_eos"], 4000)
    given = Particles(4000, {"x": torch.ones(4000, 4, dtype=torch.long)})
    new = Runner(pool.program).redraw(given, "x", 1)
    drawn = new.particles
    assert bool((drawn.values["x"][:, 0] == 1).all())
    assert torch.equal(new.log_prior, new.log_proposal)
    assert torch.allclose(drawn.log_prior["x"], EOS.completion([], 4).log_prob(drawn.values["x"]).double())
    weight, exact = drawn.log_potential.exp(), math.exp(Oracle(PROGRAMS["with_eos"]).soft_value([1]))
    assert abs(float(weight.mean()) - exact) < 4.5 * float(weight.std()) / math.sqrt(4000)


# -- answers, events, costs -----------------------------------------------------------------------------------------


def test_entropies() -> None:
    for name in ("with_eos", "upstream_latent"):
        pool = pool_of(PROGRAMS[name], 20_000)
        oracle, found = Oracle(PROGRAMS[name]), answers(pool, pool)
        assert found is not None
        for estimate, log_p in ((found.prior_entropy, oracle.log_prior), (found.posterior_entropy, oracle.log_target)):
            assert abs(estimate.value - float(entropy(log_p))) < 4.5 * estimate.standard_error < 0.2


def test_no_entropy_with_a_continuous_latent() -> None:
    def continuous() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        completion("x", EOS, [], max_new_tokens=2)

    pool = pool_of(continuous)
    assert answers(pool, pool) is None
    assert "not defined" in str(inspect(continuous, num_prefixes=0))


def test_events() -> None:
    program = PROGRAMS["text_reward"]
    oracle, pool = Oracle(program), pool_of(program, 20_000)
    hit = torch.tensor(["1" in text for text in oracle.completions["x"].texts()], dtype=torch.float64)
    found = event(pool, pool, "one", lambda text: "1" in text)
    for estimate, log_p in ((found.prior, oracle.log_prior), (found.posterior, oracle.log_target)):
        assert abs(estimate.value - float((log_p.exp() * hit).sum())) < 4.5 * estimate.standard_error < 0.1


def test_what_was_never_or_always_seen_is_bounded() -> None:
    pool = pool_of(PROGRAMS["text_reward"], 600)
    largest = 1.5 / 0.6 - pool.weighted(pool.psi).log_evidence.value
    never = event(pool, pool, "never", lambda text: "7" in text)
    assert (never.hits, never.prior_bound) == (0, pytest.approx(3 / 600))
    assert never.posterior_bound == pytest.approx(3 / 600 * math.exp(largest))
    always = event(pool, pool, "always", lambda text: "7" not in text)
    assert (always.hits, always.prior_bound) == (600, pytest.approx(1 - 3 / 600))
    assert always.posterior_bound == pytest.approx(1 - 3 / 600 * math.exp(largest))
    pool = pool_of(PROGRAMS["upstream_latent"])
    for sometimes in (lambda text: False, lambda text: True):
        unbounded = event(pool, pool, "never or always", sometimes)
        assert unbounded.posterior_bound is not None
        assert math.isnan(unbounded.posterior_bound)


def test_costs_are_what_engines_then_take() -> None:
    program = PROGRAMS["with_eos"]
    lines = {p.engine: p for p in inspect(program, num_draws=5000, num_prefixes=0).predictions}
    truth = Truth(program)
    assert abs(lines["importance"].num_draws.value - 100 / truth.ess_share) < (
        4.5 * lines["importance"].num_draws.standard_error
    )
    forecast = Rejection(num_particles=25, num_pilot=5000).forecast(program)
    error = math.hypot(
        lines["rejection"].num_draws.standard_error, forecast.standard_error / forecast.acceptance**2 * 100
    )
    assert abs(lines["rejection"].num_draws.value - 100 / forecast.acceptance) < 4.5 * error
    exact = Enumeration().run(program)
    assert lines["exact"].num_draws.value == exact.log_weight.shape[1]
    assert lines["exact"].lm_tokens == exact.cost.lm_tokens
    assert lines["smc"].at_least
    assert lines["smc"].num_draws.value == 100


def test_the_cost_of_importance_sampling_buys_the_effective_draws() -> None:
    needed = inspect(PROGRAMS["two_rewards"], num_draws=4000, num_prefixes=0, goal=400).predictions[0].num_draws.value
    run = ImportanceSampling(round(needed), 1).run(PROGRAMS["two_rewards"], seed=SEED)
    assert Weighted(run.log_weight[0]).ess == pytest.approx(400, rel=0.15)


def test_what_cannot_be_done_says_why() -> None:
    lines = {p.engine: p for p in inspect(PROGRAMS["upstream_latent"], num_prefixes=0).predictions}
    assert "'tie'" in lines["rejection"].note
    assert lines["rejection"].lm_tokens is None
    rejecting = {p.engine: p for p in inspect(PROGRAMS["hard_rejection"], num_prefixes=0).predictions}
    assert "no gradient" in rejecting["svi"].note


# -- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_every_program_can_be_inspected(name: str) -> None:
    found = inspect(PROGRAMS[name], num_draws=80, num_prefixes=4, num_continuations=3, events={"a": lambda t: True})
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80
    assert found.events[0].hits == 80
    assert json.loads(found.to_json())["written"]["factor"] == 1.0
    assert len(found.figure().axes) == 6


def nothing_left() -> None:
    x = completion("x", MEMORY, [0], max_new_tokens=3)
    reward("r", lambda t: torch.full(t.shape[:-1], -torch.inf), x.tokens)


def test_a_program_that_rejects_everything() -> None:
    found = inspect(nothing_left, num_draws=40)
    assert "all 40 draws of the prior are rejected" in str(found)
    assert found.profile is None
    assert len(found.figure().axes) == 6


def test_same_seed_same_result_and_the_global_stream_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = (inspect(PROGRAMS["with_eos"], num_draws=64, seed=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.written == second.written
    assert first.profile == second.profile
    assert inspect(PROGRAMS["with_eos"], num_draws=64, seed=4).written != first.written


def test_large_pools_are_drawn_in_batches() -> None:
    pool = pool_of(PROGRAMS["upstream_latent"], 1100)
    assert pool.particles.values["x"].shape == (1100, 3)
    assert len(pool.texts["x"]) == len(pool.log_weight) == 1100


def test_bad_input_is_one_line() -> None:
    for options, says in (
        ({"num_draws": 1}, "num_draws"),
        ({"goal": 0}, "goal"),
        ({"num_prefixes": 1}, "num_prefixes"),
        ({"events": {"bad": lambda text: 1 / 0}}, "event 'bad' raised ZeroDivisionError"),
    ):
        with pytest.raises(InputError, match=says):
            inspect(PROGRAMS["text_reward"], **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is a Pyro program"):
        inspect("positive_review")  # type: ignore[arg-type]
