"""Dynamic programming against enumeration on toys, and against another recursion at real size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from toys.chain_programs import EOS, PROGRAMS, REFUSED, THREE, eos, steep

from ppl_align import SMC, Enumeration, ImportanceSampling, completion, reward
from ppl_align.core.errors import AllDeadError, InputError, ModelError, RewardError
from ppl_align.rewards import Accepts, Automaton, TokenSum
from ppl_align.testing.chain import ChainOracle

FALSE_ALARM = 1e-4  # of one test of draws; all of them together stay below 1 in 500


each_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)


class Enumerated:
    """The whole support: tokens [S, T], log p0 [S], log w [S], and sums over the completions of a prefix."""

    def __init__(self, program: Callable[[], Any]) -> None:
        self.posterior = Enumeration().run(program)
        self.tokens: Tensor = self.posterior.particles["x"].tokens[0]  # type: ignore[union-attr]
        self.log_prior = self.posterior.log_prior["x"][0]
        self.log_joint = self.posterior.log_weight[0] - math.log(len(self.tokens))
        self.log_z = float(self.log_joint.logsumexp(0))

    def mean(self, name: str, log_q: Tensor) -> float:
        q = (log_q - log_q.logsumexp(0)).exp()
        return float(torch.where(q > 0, q * self.posterior.rewards[name][0], 0.0).sum())

    def of_prefixes(self, t: int) -> dict[tuple[int, ...], tuple[float, float]]:
        """For every prefix of t tokens: the logs of its prior probability and of E_p0[w; prefix]."""
        members: dict[tuple[int, ...], list[int]] = {}
        for i, row in enumerate(self.tokens[:, :t].tolist()):
            members.setdefault(tuple(row), []).append(i)
        sums = {}
        for prefix, rows in members.items():
            sums[prefix] = float(self.log_prior[rows].logsumexp(0)), float(self.log_joint[rows].logsumexp(0))
        return sums


@each_program
def test_evidence_means_and_divergence_are_those_of_enumeration(program: Callable[[], Any]) -> None:
    oracle, exact = ChainOracle(program), Enumerated(program)
    assert oracle.log_evidence == pytest.approx(exact.log_z, abs=1e-9)
    for name in exact.posterior.rewards:
        assert oracle.mean(name) == pytest.approx(exact.mean(name, exact.log_joint), abs=1e-9)
        assert oracle.prior_mean(name) == pytest.approx(exact.mean(name, exact.log_prior), abs=1e-9)
    log_target = exact.log_joint - exact.log_z
    ratio = torch.where(log_target > -torch.inf, log_target - exact.log_prior, 0.0)
    assert oracle.kl == pytest.approx(float((log_target.exp() * ratio).sum()), abs=1e-9)


@each_program
def test_soft_values_of_every_prefix_and_the_posterior_they_factorise(program: Callable[[], Any]) -> None:
    """V(x_<=t) = log E_p0[w | x_<=t], and p*(x_t | x_<t) = p0(x_t | x_<t) exp(V(x_<=t) - V(x_<t)), for all of them."""
    oracle, exact = ChainOracle(program), Enumerated(program)
    before, value_before = exact.of_prefixes(0), {(): oracle.soft_value([])}
    for t in range(1, exact.tokens.shape[1] + 1):
        sums = exact.of_prefixes(t)
        values = dict(zip(sums, oracle.soft_values(torch.tensor(list(sums))).tolist(), strict=True))
        for prefix, (prior, joint) in sums.items():
            assert values[prefix] == pytest.approx(joint - prior, abs=1e-9)
            parent_prior, parent_joint = before[prefix[:-1]]
            if parent_joint > -math.inf:
                conditional = math.exp(joint - parent_joint)
                gained = prior - parent_prior + values[prefix] - value_before[prefix[:-1]]
                assert conditional == pytest.approx(math.exp(gained), abs=1e-9)
        before, value_before = sums, values
    whole, value = next(iter(value_before.items()))
    assert oracle.soft_value(whole) == value


@each_program
def test_draws_are_draws_of_the_posterior(program: Callable[[], Any]) -> None:
    """G-test over completions; those that are expected fewer than five times share a cell."""
    oracle, exact, n = ChainOracle(program), Enumerated(program), 4000
    probability = (exact.log_joint - exact.log_z).exp().tolist()
    drawn = Counter(map(tuple, oracle.sample(n, seed=11).tolist()))
    cells: dict[Any, list[float]] = {}
    for row, p in zip(map(tuple, exact.tokens.tolist()), probability, strict=True):
        cell = cells.setdefault(row if n * p >= 5 else "rare", [0.0, 0.0])
        cell[0] += drawn.pop(row, 0)
        cell[1] += n * p
    assert not drawn, "a completion outside the support, or padded in another way"
    observed, expected = zip(*(cell for cell in cells.values() if cell[1] > 0), strict=True)
    if len(observed) > 1:
        g = stats.power_divergence(observed, expected, lambda_="log-likelihood")
        assert g.pvalue > FALSE_ALARM
    assert torch.equal(oracle.sample(5, seed=3), oracle.sample(5, seed=3))
    assert not torch.equal(oracle.sample(50, seed=3), oracle.sample(50, seed=4)) or len(observed) == 1


@each_program
def test_its_proposal_leaves_no_variance_and_with_its_twist_neither_has_smc(program: Callable[[], Any]) -> None:
    oracle = ChainOracle(program)
    for engine in (
        ImportanceSampling(num_particles=5, num_replicates=4, proposal=oracle.proposal),
        SMC(num_particles=5, num_replicates=4, proposal=oracle.proposal, twist=oracle.twist, ess_threshold=1.0),
    ):
        found = engine.run(program, seed=2).log_evidence
        assert float((found - oracle.log_evidence).abs().max()) < 1e-9


def test_a_twist_is_the_soft_value_of_its_prefixes() -> None:
    class Some:
        tokens = torch.tensor([[0, 1], [2, 2]])

    oracle = ChainOracle(eos)
    assert oracle.twist(Some()).tolist() == [oracle.soft_value([0, 1]), oracle.soft_value([2])]  # type: ignore[arg-type]
    assert oracle.soft_value([0, 2, 2]) == pytest.approx((0.3 - 0.7) / 0.7, abs=1e-7)  # ended: log w itself


def test_arguments_reach_the_model() -> None:
    def model(beta: float, length: int = 2) -> None:
        x = completion("x", EOS, [0], max_new_tokens=length)
        reward("sum", TokenSum(THREE, 2), x.tokens, beta=beta)

    exact = Enumeration().run(model, 0.5, length=3)
    assert ChainOracle(model, 0.5, length=3).log_evidence == pytest.approx(float(exact.log_evidence), abs=1e-9)


# -- at real size -------------------------------------------------------------------------------------------------


def test_thousands_of_tokens_and_a_hundred_positions() -> None:
    """V = 1500, T = 120, against mass that is pushed forward through tilted kernels, and its derivative in beta.

    For "contains token k" the other way is the complement: Z = Z(anything) - Z(k never written)."""
    vocab, length, beta, wanted = 1500, 120, 1.7, 77
    lm = steep(vocab, 8, eos_id=0)
    generator = torch.Generator().manual_seed(9)
    values = torch.randn(vocab, generator=generator, dtype=torch.float64)

    def model(must_have: bool) -> None:
        x = completion("x", lm, [5], max_new_tokens=length)
        reward("sum", TokenSum(values, 0), x.tokens, beta=beta)
        if must_have:
            reward("has", Accepts(Automaton.contains([wanted], vocab), terminal=(0,)), x.tokens)

    def pushed(scale: Tensor, forbidden: int | None = None) -> Tensor:
        """log Z by mass on the previous token, rescaled at every position."""
        weight = (scale * values).exp()
        if forbidden is not None:
            weight = weight * (torch.arange(vocab) != forbidden)
        kernel = lm.log_table.exp()
        mass, log_scale, done = kernel[5] * weight, torch.zeros((), dtype=torch.float64), []
        for _ in range(length - 1):
            done.append(mass[0].log() + log_scale)
            running = mass * (torch.arange(vocab) != 0)
            total = running.sum()
            mass, log_scale = (running / total) @ kernel * weight, log_scale + total.log()
        return torch.stack([*done, mass.sum().log() + log_scale]).logsumexp(0)

    scale = torch.tensor(1 / beta, dtype=torch.float64, requires_grad=True)
    log_z = pushed(scale)
    mean = float(torch.autograd.grad(log_z, scale)[0])  # d log Z / d(1/beta) = E_p*[r]
    log_z = log_z.detach()
    oracle = ChainOracle(model, must_have=False)
    assert oracle.log_evidence == pytest.approx(float(log_z), abs=1e-9)
    assert oracle.mean("sum") == pytest.approx(mean, abs=1e-8)
    assert oracle.kl == pytest.approx(mean / beta - float(log_z), abs=1e-8)

    constrained = ChainOracle(model, must_have=True)
    without = float(pushed(scale.detach(), forbidden=wanted))
    assert constrained.log_evidence == pytest.approx(float(log_z) + math.log1p(-math.exp(without - log_z)), abs=1e-9)
    engine = ImportanceSampling(num_particles=2, num_replicates=2, proposal=constrained.proposal)
    run = engine.run(model, must_have=True)
    assert float((run.log_evidence - constrained.log_evidence).abs().max()) < 1e-9
    assert bool((constrained.sample(20) == wanted).any(-1).all())


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", REFUSED, ids=lambda f: f.__name__)
def test_anything_else_is_refused_in_one_line_that_names_the_site(program: Callable[[], Any]) -> None:
    with pytest.raises((InputError, RewardError)) as refusal:
        ChainOracle(program)
    assert REFUSED[program] in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


def test_nothing_to_ask_nothing_accepted_and_wrong_questions() -> None:
    def nothing_accepted() -> None:
        x = completion("x", EOS, [0], max_new_tokens=2)
        reward("long", Accepts(Automaton.contains([0, 0, 0], 3), terminal=(2,)), x.tokens)

    with pytest.raises(ModelError, match="this one has none"):
        ChainOracle(lambda: None)
    with pytest.raises(AllDeadError, match="Z = 0"):
        ChainOracle(nothing_accepted)
    oracle = ChainOracle(eos)
    with pytest.raises(InputError, match="no reward is called 'som'; there are sum"):
        oracle.mean("som")
    with pytest.raises(InputError, match="at most 5"):
        oracle.soft_value([0] * 6)
    with pytest.raises(InputError, match="n must be"):
        oracle.sample(0)


def test_reading_a_program_leaves_random_numbers_and_parameters_alone() -> None:
    before = torch.get_rng_state()
    ChainOracle(eos)
    assert torch.equal(torch.get_rng_state(), before)
