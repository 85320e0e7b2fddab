"""Rewards learned from preferences: inference against quadrature, uses against enumeration, files, refusals."""

from __future__ import annotations

import json
import math
import warnings
from functools import lru_cache, partial

import pandas as pd
import pyro
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ppl_align import SMC, Exact, ImportanceSampling, Rejection, completion, reward
from ppl_align.data.packages import MINILM, REVIEWS
from ppl_align.errors import InputError, RewardError
from ppl_align.preferences import (
    Belief,
    Embedding,
    LMFeatures,
    OptimismWarning,
    Pairs,
    Remembered,
    RewardPosterior,
    comparisons,
    film_pairs,
    optimism_bonus,
    read_pairs,
    refresh,
)
from ppl_align.preferences.belief import infer, log_density
from ppl_align.preferences.features import Scale
from ppl_align.preferences.loop import compare
from ppl_align.preferences.report import probability
from ppl_align.testing import Oracle, check_engine, check_reward
from ppl_align.testing.programs import EOS


def counts(texts) -> Tensor:
    """How many 0 and how many 1 a text of the toy has, and a feature that is always the same."""
    return torch.tensor([[text.count("0"), text.count("1"), 3.0] for text in texts]).reshape(-1, 3)


TOY_PAIRS = Pairs(["1", "1 1", "0 1 1", "1 0", "1 1 1", "0"], ["0", "0 1", "0 0", "0 0 0", "1", "0 0"])
TOY = RewardPosterior.learn(TOY_PAIRS, counts, components=None, prior_scale=1.5)
DRAWS = torch.tensor([[0.9, 1.2, 0.0], [-0.3, 0.8, 0.0], [0.2, -0.4, 0.0], [-1.1, 0.3, 0.0]], dtype=torch.float64)
SAMPLED = RewardPosterior(counts, TOY.scale, Belief(DRAWS.mean(0), DRAWS.T.cov(), DRAWS), "nuts", 1.5, 6)


def program(posterior: RewardPosterior, use: str, k: float = 1.0) -> None:
    x = completion("x", EOS, [], max_new_tokens=3)
    posterior.reward("learned", x, beta=0.8, use=use, k=k)


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


@pytest.mark.parametrize("method", ["laplace", "svi"])
def test_learning_repeats_itself_and_leaves_the_random_numbers_alone(method):
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
    "exact": Exact(),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_keep_their_contract_on_learned_rewards(engine):
    uses = {use: partial(program, TOY, use) for use in ("mean", "pessimistic", "marginalised")}
    uses["sampled"] = partial(program, SAMPLED, "sampled")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimismWarning)
        report = check_engine(ENGINES[engine], {name: Oracle(model) for name, model in uses.items()})
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
            Exact().run(program, SAMPLED, use)


def test_by_hand_it_warns_at_once_and_the_other_uses_never_do():
    with pytest.warns(OptimismWarning, match="2 texts"):
        TOY.marginalised(beta=0.5)(["1 1", "0"])
    Exact().run(program, TOY, "mean")
    Exact().run(program, TOY, "pessimistic")


def test_the_bonus_of_draws_is_their_average():
    by_hand = []
    for text in ("1 1", "0 0 0"):
        r = [float(TOY.phi([text])[0] @ w) / 0.5 for w in DRAWS]
        mean = sum(r) / 4
        by_hand.append(math.log(sum(math.exp(x - mean) for x in r) / 4))
    assert optimism_bonus(SAMPLED, ["1 1", "0 0 0"], 0.5).tolist() == pytest.approx(by_hand)


def test_a_model_may_learn_when_it_is_first_called():
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


# -- files -------------------------------------------------------------------------------------------------------------

ROWS = [
    {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    {"prompt": "capital of France?", "chosen": "Paris", "rejected": "Lyon"},
]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_preference_files(tmp_path, ending):
    path, frame = tmp_path / f"pairs.{ending}", pd.DataFrame(ROWS)
    {
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "json": lambda: frame.to_json(path, orient="records"),
        "csv": lambda: frame.to_csv(path, index=False),
        "parquet": lambda: frame.to_parquet(path),
    }[ending]()
    assert read_pairs(path) == Pairs(["4", "Paris"], ["5", "Lyon"], ["2+2?", "capital of France?"])


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_chat_messages_and_trls_implicit_prompt(tmp_path, ending):
    user = {"role": "user", "content": "2+2?"}
    answer = lambda text: {"role": "assistant", "content": text}  # noqa: E731
    explicit = [{"prompt": [user], "chosen": [answer("4")], "rejected": [answer("5")]}]
    implicit = [{"chosen": [user, answer("4")], "rejected": [user, answer("5")]}]
    for rows in (explicit, implicit):
        path = tmp_path / f"pairs.{ending}"
        if ending == "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        else:
            pd.DataFrame(rows).to_parquet(path)
        assert read_pairs(path) == Pairs(["4"], ["5"], ["2+2?"])
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"chosen": "a b", "rejected": "a c"}))
    assert read_pairs(texts) == Pairs(["a b"], ["a c"])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("pairs.jsonl", "", "it is empty"),
        ("pairs.csv", "", "it is empty"),
        ("pairs.jsonl", "{not json", "cannot be read as preference pairs"),
        ("pairs.parquet", "no parquet", "cannot be read as preference pairs"),
        ("pairs.json", '{"chosen": "a"}', "is not a list of objects"),
        ("pairs.txt", "a", "preference pairs are read from .jsonl, .json, .csv, .parquet"),
        ("pairs.csv", "prompt,better\na,b\n", "row 0 has no 'chosen' (its columns: prompt, better)"),
        ("pairs.jsonl", '{"chosen": "a", "rejected": "a"}', "pair 0 compares a text with itself"),
        ("pairs.jsonl", '{"chosen": 3, "rejected": "a"}', "neither a text nor a list of chat messages"),
        ("pairs.jsonl", '{"chosen": [{"role": "user"}], "rejected": "a"}', "neither a text nor a list of chat"),
        ("missing.jsonl", None, "there is no such file"),
    ],
)
def test_a_bad_preference_file_gives_one_line(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        read_pairs(tmp_path / name)
    assert says in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("posterior", [TOY, SAMPLED], ids=["gaussian", "draws"])
@pytest.mark.filterwarnings("ignore::ppl_align.preferences.OptimismWarning")
def test_save_and_load(tmp_path, posterior):
    path = posterior.save(tmp_path / "folder" / "reward.npz")
    back = RewardPosterior.load(path, counts)
    texts = ["1 0", "0 0"]
    for fn in (RewardPosterior.mean, RewardPosterior.pessimistic, partial(RewardPosterior.marginalised, beta=0.5)):
        assert fn(back)(texts) == fn(posterior)(texts)
    assert repr(back) == repr(posterior)
    with pytest.raises(InputError, match=r"was learned with counts: give these features"):
        RewardPosterior.load(path)
    assert [p.name for p in path.parent.iterdir()] == ["reward.npz"]


def test_features_of_the_library_are_found_again(tmp_path):
    """By name, and without the memory that was wrapped around them."""
    for features in (Embedding(), Remembered(Embedding())):
        posterior = RewardPosterior(features, TOY.scale, TOY.belief, "laplace", 1.5, 6)
        assert RewardPosterior.load(posterior.save(tmp_path / "reward.npz")).features == Embedding()


def test_a_text_may_hold_any_line_separator(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"chosen": "a\u2028b", "rejected": "c"}\n', encoding="utf-8")
    assert read_pairs(path).better == ("a\u2028b",)


def test_remembered_features_are_asked_once():
    asked = []

    def features(texts):
        asked.extend(texts)
        return counts(texts)

    known = Remembered(features)
    assert torch.equal(known(["1", "0", "1"]), counts(["1", "0", "1"]).double())
    known(["0", "1 1"])
    assert asked == ["1", "0", "1 1"]


def test_a_file_that_is_no_reward(tmp_path):
    import numpy as np

    (tmp_path / "broken.npz").write_bytes(b"PK not a zip")
    np.savez(tmp_path / "pickled.npz", about=np.array({"a": 1}, dtype=object))
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    for name in ("broken.npz", "pickled.npz", "other.npz"):
        with pytest.raises(InputError, match="cannot be read as a learned reward"):
            RewardPosterior.load(tmp_path / name)
    with pytest.raises(InputError, match="no learned reward at"):
        RewardPosterior.load(tmp_path / "missing.npz")
    with pytest.raises(InputError, match=r"is an \.npz file"):
        TOY.save(tmp_path / "reward.pkl")


# -- what is refused ---------------------------------------------------------------------------------------------------


def nan_features(texts):
    return torch.tensor([[math.nan if "1" in text else 1.0] for text in texts])


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Pairs(["a"], ["a"]), InputError, "pair 0 compares a text with itself"),
        (lambda: Pairs(["a", "b"], ["c"]), InputError, "2 better, 1 worse: there must be as many of each"),
        (lambda: Pairs("a", "b"), InputError, "better is a list of texts, got one text"),
        (lambda: Pairs(["a", None], ["b", "c"]), InputError, "better[1] is no text but None"),
        (lambda: RewardPosterior.learn(TOY_PAIRS[:1], counts), InputError, "at least 2 preference pairs, got 1"),
        (lambda: RewardPosterior.learn([("a", "b")], counts), InputError, "takes Pairs("),
        (lambda: RewardPosterior.learn(TOY_PAIRS, Embedding), InputError, "features are a function"),
        (lambda: RewardPosterior.learn(TOY_PAIRS, lambda t: torch.zeros(3)), InputError, "got shape [3] for n=9"),
        (lambda: RewardPosterior.learn(TOY_PAIRS, lambda t: [1.0]), InputError, "got list for n=9 texts"),
        (lambda: RewardPosterior.learn(TOY_PAIRS, lambda t: torch.ones(len(t), 2)), InputError, "are the same for all"),
        (lambda: RewardPosterior.learn(TOY_PAIRS, nan_features), RewardError, "NaN or infinite for the text '1'"),
        (lambda: RewardPosterior.learn(TOY_PAIRS, counts, "map"), InputError, "method must be one of"),
        (lambda: RewardPosterior.learn(TOY_PAIRS, counts, prior_scale=0), InputError, "prior_scale must be positive"),
        (lambda: RewardPosterior.learn(TOY_PAIRS, counts, components=0), InputError, "components must be a whole"),
        (lambda: TOY.pessimistic(-1), InputError, "0 or more, got -1"),
        (lambda: TOY.marginalised(0), InputError, "positive and finite"),
        (lambda: Oracle(program, TOY, "median"), InputError, "use must be one of"),
        (lambda: TOY.report(TOY_PAIRS[:0]), InputError, "at least one pair"),
        (lambda: film_pairs(10**6), InputError, "fewer than num_pairs=1000000"),
    ],
)
def test_bad_input_gives_one_line(make, error, says):
    if "film" in says or "num_pairs" in says:
        needs(REVIEWS)
    with pytest.raises(error) as caught:
        make()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_features_of_another_size_are_refused():
    other = RewardPosterior(lambda t: torch.zeros(len(t), 2), TOY.scale, TOY.belief, "laplace", 1.5, 6)
    with pytest.raises(InputError, match="learned with 3 features, these are 2"):
        other.mean()(["a"])


# -- real pairs and real features --------------------------------------------------------------------------------------


def needs(package):
    if package.installed is None:
        pytest.skip(f"{package.pin} is not installed")


def test_film_pairs_are_fresh_above_rotten_of_one_film():
    needs(REVIEWS)
    frame = pd.read_csv(REVIEWS.place)
    frame["text"] = frame["text"].str.strip()
    kind, film = (
        dict(zip(frame.text, frame.category, strict=True)),
        dict(zip(frame.text, frame.movie_name, strict=True)),
    )
    train, held_out = film_pairs(300, seed=1), film_pairs(100, seed=1, held_out=True)
    for pairs in (train, held_out):
        assert {kind[text] for text in pairs.better} == {"fresh"}
        assert {kind[text] for text in pairs.worse} == {"rotten"}
        assert [film[text] for text in pairs.better] == [film[text] for text in pairs.worse]
        assert len({*pairs.better, *pairs.worse}) == 2 * len(pairs)
    assert not {film[text] for text in train.better} & {film[text] for text in held_out.better}
    assert film_pairs(50, seed=1) == train[:50]
    assert film_pairs(50, seed=2) != train[:50]


def test_embeddings_tell_fresh_from_rotten_of_films_never_seen():
    needs(REVIEWS)
    needs(MINILM)
    posterior = RewardPosterior.learn(film_pairs(100), Embedding())
    report = posterior.report(film_pairs(80, held_out=True))
    assert report.accuracy > 0.5 + 2 * report.standard_error
    assert report.log_likelihood > math.log(0.5)
    good, bad = posterior.mean()(["A wonderful, moving film.", "A dull, stupid mess."])
    assert good > bad + 0.5


@pytest.mark.lm
def test_lm_features_are_the_mean_last_hidden_state(smollm2):
    features = LMFeatures(smollm2, batch_size=2)
    texts = ["A fine film.", "", "Dull", "A much longer text about a film that nobody wants to see again."]
    found = features(texts)
    assert found.shape == (4, smollm2.hidden_size)
    assert not found[1].any()
    ids = torch.tensor([smollm2.encode(texts[3])])
    with torch.no_grad():
        hidden = smollm2.model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(found[3], hidden[0].mean(0).float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(features(texts[:1])[0], found[0], rtol=1e-3, atol=1e-3)
    assert features == LMFeatures(smollm2, batch_size=2)


# -- frozen or refreshed -----------------------------------------------------------------------------------------------

POOL = [" ".join("01"[int(b)] for b in f"{i:0{n}b}") for n in range(1, 8) for i in range(2**n)]
LOG_PRIOR = torch.tensor([-1.8 * len(text.split()) for text in POOL], dtype=torch.float64)


def words(texts) -> Tensor:
    """Ones, zeros, and ones beyond the third, which hardly any text of the prior has."""
    rows = [[t.count("1"), t.count("0"), max(0, t.count("1") - 3)] for t in texts]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)


def reader(texts) -> list[float]:
    """Likes ones, up to three."""
    return (words(texts) @ torch.tensor([1.0, 0.0, -2.5], dtype=torch.float64)).tolist()


FIRST = Pairs(["1", "1 1", "1 0", "1 1 0", "0 1"], ["0", "1 0", "0", "0 1 0", "0 0"])


def arm(name: str, seed: int = 0, **settings):
    settings = {"kls": (0.5, 1.0, 2.0, 3.0), "num_labels": 15, "log_prior": LOG_PRIOR, "prior_scale": 4.0, **settings}
    return refresh(POOL, reader, FIRST, words, arm=name, components=None, seed=seed, **settings)


def test_each_round_is_the_posterior_of_its_reward():
    """Pool, reward and beta of a round, said as a program and enumerated."""
    rounds = arm("refreshed")
    base = LOG_PRIOR.log_softmax(-1)
    for now in rounds:

        def written(now=now):
            which = pyro.sample("which", pyro.distributions.Categorical(logits=base))
            r = torch.tensor(now.posterior.mean()(POOL), dtype=torch.float64)[which]
            reward("r", lambda r: r, r, beta=now.beta)

        oracle = Oracle(written)
        torch.testing.assert_close(oracle.log_target, now.log_weight)
        kl = float((oracle.log_target.exp() * (oracle.log_target - oracle.log_prior)).sum())
        assert kl == pytest.approx(now.kl, abs=1e-6)
        gold = torch.tensor(reader(POOL), dtype=torch.float64)
        assert now.gold == pytest.approx(float(oracle.mean(gold)) - float((oracle.log_prior.exp() * gold).sum()))


def test_labels_are_bradley_terry_and_of_the_arm():
    gold = torch.tensor(reader(POOL), dtype=torch.float64)
    law = (LOG_PRIOR + gold).log_softmax(-1)
    pairs = compare(POOL, gold, law, 4000, torch.Generator().manual_seed(0))
    value = dict(zip(POOL, gold.tolist(), strict=True))
    gaps = [value[a] - value[b] for a, b in zip(pairs.better, pairs.worse, strict=True)]
    right = torch.tensor([0.5 if gap == 0 else float(gap > 0) for gap in gaps])
    p = torch.tensor(gaps).abs().sigmoid()
    assert abs(float((right - p).mean())) < 4.5 * float((right - p).std()) / 4000**0.5
    seen = torch.tensor([len(text.split()) for text in (*pairs.better, *pairs.worse)]).double().mean()
    lengths = torch.tensor([len(text.split()) for text in POOL]).double()
    assert seen > (LOG_PRIOR.softmax(-1) * lengths).sum() + 0.5, "they come from the law, not from the prior"


def test_arms_spend_their_labels_as_they_say():
    assert [len(now.pairs) for now in arm("frozen")] == [5, 5, 5, 5]
    for name in ("prior", "refreshed"):
        assert [len(now.pairs) for now in arm(name)] == [5, 20, 35, 50]
    first = {name: arm(name)[0] for name in ("frozen", "prior", "refreshed")}
    assert first["frozen"].gold == first["prior"].gold == first["refreshed"].gold
    again, other = arm("refreshed"), arm("refreshed", seed=1)
    assert [r.gold for r in again] == [r.gold for r in arm("refreshed")] != [r.gold for r in other]


def test_frozen_is_overoptimised_and_refreshed_is_not():
    """The same distance from the prior, three nats; averages over seeds, by paired differences."""
    frozen = arm("frozen")
    assert frozen[-1].proxy > frozen[1].proxy, "it believes that it gets better"
    assert frozen[-1].gold < frozen[1].gold, "and gets worse"
    runs = {
        name: torch.tensor([[r.gold for r in arm(name, seed)] for seed in range(30)]) for name in ("prior", "refreshed")
    }
    for better, worse in (
        (runs["refreshed"][:, -1], runs["prior"][:, -1]),
        (runs["refreshed"][:, -1], torch.full((30,), frozen[-1].gold)),
        (runs["refreshed"][:, -1], runs["refreshed"][:, 1]),
    ):
        gap = better - worse
        assert gap.mean() > 3 * gap.std() / 30**0.5


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: arm("thawed"), "arm must be one of"),
        (lambda: arm("frozen", num_labels=0), "num_labels must be a whole number"),
        (lambda: arm("frozen", kls=(50.0,)), "takes more draws"),
        (lambda: refresh(["1", "1"], reader, FIRST, words, kls=(0.0,)), "fewer than two different texts"),
    ],
)
def test_a_loop_that_cannot_run_gives_one_line(make, says):
    with pytest.raises(InputError, match=says):
        make()
