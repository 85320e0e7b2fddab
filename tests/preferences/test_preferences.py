"""Rewards learned from preferences: inference against quadrature, uses against enumeration."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache, partial

import pyro
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from toys.contracts import contract_of
from toys.learned_toys import DRAWS, SAMPLED, TOY, TOY_PAIRS, counts, program

from ppl_align import SMC, Enumeration, ImportanceSampling, Rejection, completion, reward
from ppl_align.core.errors import InputError
from ppl_align.preferences import Belief, OptimismWarning, Pairs, RewardPosterior, belief, comparisons, optimism_bonus
from ppl_align.preferences.belief import infer, log_density
from ppl_align.preferences.features import Scale
from ppl_align.preferences.report import probability
from ppl_align.rewards import chat
from ppl_align.testing import Oracle, check_reward
from ppl_align.testing.programs import EOS

# -- inference ---------------------------------------------------------------------------------------------------------


def differences(n: int, weights: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    d = torch.randn(n, len(weights), generator=generator, dtype=torch.float64)
    won = torch.rand(n, generator=generator) < torch.sigmoid(d @ weights)
    return torch.where(won[:, None], d, -d)


def quadrature(d: Tensor, prior_scale: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the exact posterior of two weights, on a grid of eight standard deviations each way."""
    near = infer(d, prior_scale, "laplace", 0)
    axes = [m + 8 * s * torch.linspace(-1, 1, 101).double() for m, s in zip(*_moments(near), strict=True)]
    w = torch.cartesian_prod(*axes)
    p = (logsigmoid(w @ d.T).sum(-1) - (w / prior_scale).square().sum(-1) / 2).softmax(0)
    mean = p @ w
    return mean, (w - mean).T @ ((w - mean) * p[:, None])


def _moments(belief: Belief) -> tuple[Tensor, Tensor]:
    return belief.mean, belief.covariance.diagonal().sqrt()


TWO = torch.tensor([1.0, -0.5], dtype=torch.float64)


def test_laplace_is_the_mode_and_its_curvature():
    d = differences(40, TWO)
    belief = infer(d, 1.5, "laplace", 0)
    energy = lambda w: -logsigmoid(d @ w).sum() + w @ w / (2 * 1.5**2)  # noqa: E731
    slope = torch.autograd.functional.jacobian(energy, belief.mean)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-8, rtol=0)
    curvature = torch.autograd.functional.hessian(energy, belief.mean)
    torch.testing.assert_close(torch.linalg.inv(curvature), belief.covariance)


def test_laplace_is_exact_in_the_limit():
    d = differences(1500, TWO)
    mean, covariance = quadrature(d, 2.0)
    belief = infer(d, 2.0, "laplace", 0)
    sd = covariance.diagonal().sqrt()
    assert ((belief.mean - mean) / sd).abs().max() < 0.05
    torch.testing.assert_close(belief.covariance, covariance, rtol=0.03, atol=0.03 * float(sd.min() ** 2))


def test_nuts_draws_from_the_posterior():
    d = differences(30, TWO)
    mean, covariance = quadrature(d, 1.5)
    belief = infer(d, 1.5, "nuts", 0)
    sd = covariance.diagonal().sqrt()
    effective = pyro.ops.stats.effective_sample_size(belief.draws[None])
    assert ((belief.mean - mean) / sd * effective.sqrt()).abs().max() < 4.5
    squared = pyro.ops.stats.effective_sample_size((belief.draws - mean).square()[None])
    spread = belief.covariance.diagonal() / covariance.diagonal()
    assert ((spread - 1) * (squared / 2).sqrt()).abs().max() < 4.5
    laplace = infer(d, 1.5, "laplace", 0)
    assert ((laplace.mean - mean).abs() > (belief.mean - mean).abs()).any(), "30 skewed comparisons are not Gaussian"


@pytest.mark.statistical
def test_svi_is_nearer_to_the_posterior_than_laplace():
    d = differences(30, TWO)
    mean, covariance = quadrature(d, 1.5)
    sd = covariance.diagonal().sqrt()
    svi, laplace = (infer(d, 1.5, method, 0) for method in ("svi", "laplace"))
    assert ((svi.mean - mean) / sd).abs().max() < 0.08
    assert ((laplace.mean - mean) / sd).abs().max() > 0.1
    torch.testing.assert_close(svi.covariance, covariance, rtol=0.12, atol=0.05 * float(sd.min() ** 2))


def test_the_program_and_the_density_are_one():
    d, w = differences(12, TWO), torch.tensor([[0.3, -0.8], [1.1, 0.2]], dtype=torch.float64)
    said = [pyro.poutine.trace(pyro.condition(comparisons, {"w": v})).get_trace(d).log_prob_sum() for v in w]
    torch.testing.assert_close(said[0] - said[1], log_density(w[0], d) - log_density(w[1], d))


@pytest.fixture
def few_steps(monkeypatch):
    """A tenth of the training: for what does not hang on its result."""
    monkeypatch.setattr(belief, "_svi", partial(belief._svi, num_steps=50))


@pytest.mark.parametrize("method", ["laplace", "svi"])
def test_learning_repeats_itself_and_leaves_the_random_numbers_alone(method, few_steps):
    state = torch.get_rng_state()
    first, again = (RewardPosterior.learn(TOY_PAIRS, counts, method, seed=3) for _ in range(2))
    assert torch.equal(first.belief.mean, again.belief.mean)
    assert torch.equal(torch.get_rng_state(), state)


# -- scale -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [None, 1, 2, 32])
def test_the_prior_of_r_is_prior_scale_for_an_average_text(components):
    raw = torch.randn(50, 5, dtype=torch.float64) * torch.tensor([9.0, 3.0, 1.0, 0.2, 0.0]) + 4
    phi = Scale.fit(raw, components)(raw)
    assert phi.square().sum(-1).mean() == pytest.approx(1)
    torch.testing.assert_close(phi.mean(0), torch.zeros(phi.shape[1], dtype=torch.float64), atol=1e-9, rtol=0)
    assert phi.shape[1] == {None: 5, 1: 1, 2: 2, 32: 4}[components]


def test_r_is_known_for_the_average_training_text():
    mean, sd = TOY.score(["1", "0 0 0"])
    phi = TOY.phi(["1", "0 0 0"])
    w, covariance = TOY.belief.mean.tolist(), TOY.belief.covariance.tolist()
    for i in range(2):
        row = phi[i].tolist()
        assert mean[i] == pytest.approx(sum(a * b for a, b in zip(row, w, strict=True)))
        variance = sum(row[a] * covariance[a][b] * row[b] for a in range(3) for b in range(3))
        assert sd[i] == pytest.approx(variance**0.5)
    torch.testing.assert_close(TOY.phi([*TOY_PAIRS.better, *TOY_PAIRS.worse]).mean(0), torch.zeros(3).double())


# -- as a reward -------------------------------------------------------------------------------------------------------


def texts_of(oracle: Oracle) -> list[str]:
    return [" ".join(str(i) for i in row if i != 2) for row in oracle.values["x"].tolist()]


@pytest.mark.filterwarnings("ignore::ppl_align.preferences.OptimismWarning")
def test_uses_of_a_belief_against_formulas():
    oracle = {use: Oracle(program, TOY, use, 0.7) for use in ("mean", "pessimistic", "marginalised")}
    mean, sd = TOY.score(texts_of(oracle["mean"]))
    torch.testing.assert_close(oracle["mean"].log_potential, mean / 0.8)
    torch.testing.assert_close(oracle["pessimistic"].log_potential, (mean - 0.7 * sd) / 0.8)
    torch.testing.assert_close(oracle["marginalised"].log_potential, mean / 0.8 + sd**2 / (2 * 0.8**2))
    assert sd.unique().numel() > 5


@pytest.mark.filterwarnings("ignore::ppl_align.preferences.OptimismWarning")
def test_sampled_weights_are_marginalised_by_enumeration():
    """theta ~ belief; reward(theta), with the weights summed out, is the closed form."""
    joint, closed = Oracle(program, SAMPLED, "sampled"), Oracle(program, SAMPLED, "marginalised")
    assert joint.log_evidence == pytest.approx(closed.log_evidence)
    mass: dict[str, float] = {}
    for text, p in zip(texts_of(joint), joint.log_target.exp().tolist(), strict=True):
        mass[text] = mass.get(text, 0.0) + p
    for text, p in zip(texts_of(closed), closed.log_target.exp().tolist(), strict=True):
        mass[text] -= p
    assert max(map(abs, mass.values())) < 1e-12
    before = torch.full((4,), 0.25, dtype=torch.float64)
    which = joint.values["learned weights"]
    after = torch.zeros(4, dtype=torch.float64).index_add_(0, which, joint.log_target.exp())
    assert (after - before).abs().max() > 0.05, "conditioning on success infers kind weights"


@pytest.mark.filterwarnings("ignore::ppl_align.preferences.OptimismWarning")
def test_gaussian_weights_as_a_pyro_site():
    exact = Oracle(program, TOY, "marginalised").log_evidence
    run = ImportanceSampling(num_particles=4000, num_replicates=1).run(program, TOY, "sampled", seed=1)
    assert run.latents["learned weights"].shape == (1, 4000, 3)
    weight = run.log_weight.exp()[0]
    assert abs(float(weight.mean()) - math.exp(exact)) < 4.5 * float(weight.std()) / 4000**0.5


ENGINES = {
    "importance": ImportanceSampling(num_particles=96),
    "smc": SMC(num_particles=48, twist="prefix"),
    "exact": Enumeration(),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_keep_their_contract_on_learned_rewards(engine):
    uses = {use: partial(program, TOY, use) for use in ("mean", "pessimistic", "marginalised")}
    uses["sampled"] = partial(program, SAMPLED, "sampled")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimismWarning)
        report = contract_of(ENGINES[engine], {name: Oracle(model) for name, model in uses.items()})
    report.raise_if_failed()
    assert not [result for result in report.results if result.status == "refused"]


def test_rejection_says_that_a_learned_reward_has_no_bound():
    with pytest.raises(InputError, match=r"needs its largest value: reward\(..., upper=...\)"):
        Rejection().run(program, TOY, "mean")


@pytest.mark.parametrize("use", ["mean", "pessimistic"])
def test_a_learned_reward_is_a_reward(use):
    check_reward(getattr(TOY, use)(), ["0 1", "", "1 1 1", "0"]).raise_if_failed()


# -- the warning -------------------------------------------------------------------------------------------------------


def test_marginalising_warns_once_with_the_bonus_of_the_run():
    with pytest.warns(OptimismWarning) as caught:
        run = ImportanceSampling(num_particles=64).run(program, TOY, "marginalised", seed=0)
    assert len(caught) == 1
    texts = sorted(set(run.completions["x"].texts()))
    bonus = TOY.score(texts)[1].square() / (2 * 0.8**2)
    said = str(caught[0].message)
    assert f"{float(bonus.mean()):.3g} nats ({0.8 * float(bonus.mean()):.3g} reward units)" in said
    assert f"over the {len(texts)} texts" in said
    assert f"{float(bonus.min()):.3g} to {float(bonus.max()):.3g} nats" in said
    assert run.warnings == (said,), "the comparison shows it too"


@pytest.mark.parametrize("use", ["marginalised", "sampled"])
def test_each_run_and_each_way_warns(use):
    for _ in range(2):
        with pytest.warns(OptimismWarning):
            Enumeration().run(program, SAMPLED, use)


def test_by_hand_it_warns_at_once_and_the_other_uses_never_do():
    with pytest.warns(OptimismWarning, match="2 texts"):
        TOY.marginalised(beta=0.5)(["1 1", "0"])
    Enumeration().run(program, TOY, "mean")
    Enumeration().run(program, TOY, "pessimistic")


def test_the_bonus_of_draws_is_their_average():
    by_hand = []
    for text in ("1 1", "0 0 0"):
        r = [float(TOY.phi([text])[0] @ w) / 0.5 for w in DRAWS]
        mean = sum(r) / 4
        by_hand.append(math.log(sum(math.exp(x - mean) for x in r) / 4))
    assert optimism_bonus(SAMPLED, ["1 1", "0 0 0"], 0.5).tolist() == pytest.approx(by_hand)


def test_a_model_may_learn_when_it_is_first_called(few_steps):
    """What is inferred while a program runs is no part of it."""

    @lru_cache(maxsize=1)
    def learned() -> RewardPosterior:
        return RewardPosterior.learn(TOY_PAIRS, counts, "svi")

    def model() -> None:
        x = completion("x", EOS, [], max_new_tokens=2)
        reward("learned", learned().mean(), x, beta=0.8)

    found = ImportanceSampling(num_particles=8).run(model, seed=0)
    assert list(found.particles) == ["x"]
    assert list(found.factors) == ["learned"]


def test_a_marginalised_reward_is_used_at_its_beta():
    """r = beta log E exp(w . phi / beta) is right for that beta / weight, and the bonus it prints is that one's."""

    def model(fn, beta: float, weight: float = 1.0) -> None:
        reward("learned", fn, completion("x", EOS, [], max_new_tokens=2), beta=beta, weight=weight)

    marginalised = TOY.marginalised(0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimismWarning)
        Enumeration().run(model, marginalised, 0.8 * (1 + 1e-9))
        Enumeration().run(model, marginalised, 1.6, 2.0)
        Enumeration().run(model, marginalised, 1.6, 0.0)
    for fn in (marginalised, chat(marginalised)):
        for beta, weight, here in ((0.4, 1.0, "0.4"), (0.8, 2.0, "0.4"), (0.8, -1.0, "-0.8")):
            with pytest.raises(InputError, match=f"made for beta / weight = 0.8, and here it is {here}: give both"):
                Enumeration().run(model, fn, beta, weight)
    for fn in (TOY.mean(), TOY.pessimistic()):
        Enumeration().run(model, fn, 0.4)


# -- predictions -------------------------------------------------------------------------------------------------------


def test_predictions_integrate_the_weights_out():
    gap = TOY.gaps(TOY_PAIRS)[:1]
    mean, sd = float(gap[0] @ TOY.belief.mean), float(gap[0] @ TOY.belief.covariance @ gap[0]) ** 0.5
    grid = torch.linspace(mean - 9 * sd, mean + 9 * sd, 20001, dtype=torch.float64)
    density = torch.distributions.Normal(torch.tensor(mean).double(), sd).log_prob(grid).exp()
    exact = float((density * torch.sigmoid(grid)).sum() * (grid[1] - grid[0]))
    assert float(probability(TOY, gap)) == pytest.approx(exact, abs=1e-6)
    by_draws = float(probability(SAMPLED, gap))
    assert by_draws == pytest.approx(float(torch.sigmoid(DRAWS @ gap[0]).mean()))


def test_the_report():
    report = TOY.report(TOY_PAIRS)
    p = probability(TOY, TOY.gaps(TOY_PAIRS))
    assert report.log_likelihood == pytest.approx(sum(math.log(x) for x in p.tolist()) / 6)
    assert report.accuracy == sum(x > 0.5 for x in p.tolist()) / 6
    assert sum(count for _, _, count in report.calibration) == 6
    assert str(report).startswith("6 pairs: accuracy")


def test_a_calibrated_belief_is_calibrated_and_an_overconfident_one_is_not():
    generator = torch.Generator().manual_seed(0)
    texts = [" ".join("01"[i] for i in torch.randint(2, (6,), generator=generator)) for _ in range(8000)]
    table = {text: torch.tensor([text.count("1") / 3.0 - 1]) for text in texts}
    features = lambda asked: torch.stack([table[text] for text in asked])  # noqa: E731
    pairs = []
    for a, b in zip(texts[::2], texts[1::2], strict=True):
        if a != b:
            won = torch.rand((), generator=generator) < torch.sigmoid(1.5 * (table[a] - table[b])[0])
            pairs.append((a, b) if won else (b, a))
    every = Pairs(*zip(*pairs, strict=True))
    learned = RewardPosterior.learn(every[:1500], features)
    report = learned.report(every[1500:])
    assert report.calibration_error < 0.04
    bold = RewardPosterior(
        features, learned.scale, Belief(4 * learned.belief.mean, learned.belief.covariance), "laplace", 2.0, 1
    )
    assert bold.report(every[1500:]).calibration_error > 3 * report.calibration_error


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_a_reward_that_reads_prompts():
    features = lambda texts: torch.tensor([[float(text.startswith("sum 1")), len(text)] for text in texts])  # noqa: E731
    pairs = Pairs(["1", "0"], ["0 0", "1 1"], ["sum ", "sum "])
    posterior = RewardPosterior.learn(pairs, features, include_prompt=True, components=None)
    fn = posterior.mean()
    answers = fn(completions=["1", "1"], prompts=["sum ", "product "])
    assert answers[0] > answers[1]
    with pytest.raises(InputError, match="give it the completion itself"):
        fn(["1"])
    with pytest.raises(InputError, match="the pairs have no prompts"):
        RewardPosterior.learn(TOY_PAIRS, counts, include_prompt=True)
