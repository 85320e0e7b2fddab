"""Numbers that stand beside each other in a comparison count the same variables: the completions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ppl_align import (
    CallableLM,
    Enumeration,
    ImportanceSampling,
    Posterior,
    compare,
    completion,
    environment,
    inspect,
    reward,
)
from ppl_align.core.text import Texts
from ppl_align.posterior import diversity
from ppl_align.posterior.kind import Kind

COIN = CallableLM(2, lambda prefix: torch.zeros(len(prefix), 2, dtype=torch.float64), tokens=["a", "b"])
WORDS = CallableLM(64, lambda prefix: torch.zeros(len(prefix), 64, dtype=torch.float64))
ODDS = math.log(3.0)  # nats that the last token is worth: it is 3 times as probable


def entropy(*p: float) -> float:
    return -sum(q * math.log(q) for q in p if q > 0)


def last_token(x: Tensor) -> Tensor:
    return (x[..., -1] == 1).double()


def says(x: Tensor) -> None:
    reward("r", last_token, x, beta=1 / ODDS)


def plain() -> None:
    says(completion("x", COIN, [0], max_new_tokens=1).tokens)


def categorical() -> None:
    pyro.sample("k", dist.Categorical(torch.ones(50, dtype=torch.float64)))
    plain()


def bernoulli() -> None:
    """A latent of two values that is stored in floating point."""
    pyro.sample("k", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
    plain()


def afterwards() -> None:
    plain()
    pyro.sample("k", dist.Categorical(torch.ones(50, dtype=torch.float64)))


def continuous() -> None:
    """A latent with a density, and the likelihood reads it."""
    z = pyro.sample("z", dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0))
    plain()
    reward("close", lambda value: -(value**2), z)


def tilted() -> None:
    """A latent that the likelihood moves by about 3.5 nats, of which the completion says nothing."""
    k = pyro.sample("k", dist.Categorical(torch.ones(50, dtype=torch.float64)))
    plain()
    reward("low", lambda value: -20.0 * (value > 0).double(), k)


def in_a_plate() -> None:
    with pyro.plate("three", 3):
        pyro.sample("k", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
    plain()


def seeded_world() -> None:
    x = completion("x", COIN, [0], max_new_tokens=1)
    answer = environment("o", lambda text, rng: float(rng.random() < 0.5), x)
    says(x.tokens)
    reward("luck", lambda value: 2.0 * value, answer)


LAST = entropy(0.25, 0.75)
PROGRAMS: dict[str, Callable[[], None]] = {
    program.__name__: program
    for program in (plain, categorical, bernoulli, afterwards, continuous, tilted, in_a_plate, seeded_world)
}
ENUMERABLE = ("plain", "categorical", "bernoulli", "afterwards", "tilted", "in_a_plate")


@pytest.mark.parametrize("name", ENUMERABLE)
def test_both_entropies_of_an_exact_run_are_of_its_completions(name: str) -> None:
    found = compare({"exact": Enumeration().run(PROGRAMS[name]), "is": ImportanceSampling(64).run(PROGRAMS[name])})
    assert found.reference["posterior_entropy"] == pytest.approx(LAST, abs=1e-9)
    assert found.table["entropy_posterior"].tolist() == pytest.approx([LAST] * 2, abs=1e-9)
    assert found.table.loc["exact", "entropy"] == pytest.approx(LAST, abs=0.02)
    assert f"with {LAST:.2f} nats of entropy" in str(found)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_sampled_run_has_the_entropy_of_its_completions(name: str) -> None:
    run = ImportanceSampling(2000, 4).run(PROGRAMS[name])
    found = compare([run])
    assert found.table["entropy_posterior"].iloc[0] == pytest.approx(LAST, abs=0.04)
    assert found.table["entropy"].iloc[0] == pytest.approx(LAST, abs=0.06)
    at_least = "at least " if run.latents else ""
    assert f"with {at_least}{found.reference['posterior_entropy']:.2f} nats of entropy" in str(found)


def test_the_entropy_of_long_texts_beside_a_latent_is_bounded_by_their_own_probabilities() -> None:
    """64^4 texts, none of which is drawn twice: plain counting ends at the log of the number of draws."""

    def program() -> None:
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0))
        completion("x", WORDS, [0], max_new_tokens=4)
        reward("close", lambda value: -0.5 * value**2, z)

    run = ImportanceSampling(256, 4).run(program)
    kl = 0.5 * (math.log(2) - 1 + 0.5)  # of N(0, 1/2) to N(0, 1): all that the bound can lose here
    bound = diversity.posterior_entropy(run)
    assert bound == pytest.approx(4 * math.log(64) - kl, abs=0.1)
    assert compare([run]).table["entropy_posterior"].iloc[0] == pytest.approx(math.log(100))


def test_the_bound_holds_where_latent_and_text_are_one() -> None:
    """The prompt hangs on the latent: its text gives it away, and nothing is lost or counted twice."""
    loud = CallableLM(2, lambda prefix: 50.0 * one_hot(prefix[:, -1], 2).double(), tokens=["a", "b"])

    def program() -> None:
        k = pyro.sample("k", dist.Categorical(torch.ones(2, dtype=torch.float64)))
        prompts = Texts(["ab"[i] for i in k.reshape(-1).tolist()], tuple(k.shape))
        says(completion("x", loud, prompts, max_new_tokens=1).tokens)

    for run in (Enumeration().run(program), ImportanceSampling(1000, 4).run(program)):
        assert diversity.posterior_entropy(run) == pytest.approx(LAST, abs=0.04)


def test_without_a_completion_nothing_is_counted() -> None:
    def latents_only() -> None:
        k = pyro.sample("k", dist.Categorical(torch.ones(4, dtype=torch.float64)))
        reward("r", lambda value: (value == 1).double(), k)

    found = compare({"exact": Enumeration().run(latents_only), "is": ImportanceSampling(64).run(latents_only)})
    for column in ("entropy", "entropy_posterior", "distinct_completions"):
        assert found.table[column].isna().all(), column
    assert "distinct" not in str(found)
    assert "distinct completions" not in Enumeration().run(latents_only).summary()


def test_decisions_have_no_entropy_of_a_posterior() -> None:
    run = ImportanceSampling(64).run(plain)
    run.kind = Kind.POLICY
    assert diversity.posterior_entropy(run) is None


def test_inspect_bounds_its_entropies_where_a_world_answers_by_seeds() -> None:
    """What a seed decides is no part of p0 that could be read; without it the entropy is at least what is printed."""
    found = inspect(seeded_world, num_prefixes=0)
    assert found.answers is not None
    assert found.answers.at_least
    assert found.answers.posterior_entropy.value <= LAST + 3 * found.answers.posterior_entropy.standard_error
    assert "at least" in str(found).split("Distinct answers")[1].split("\n=>")[0]
    assert not inspect(plain, num_prefixes=0).answers.at_least  # type: ignore[union-attr]


def grouped(run: Posterior) -> float:
    table = run.table().groupby("x")["probability"].sum()
    return entropy(*table)


@pytest.mark.parametrize("name", ENUMERABLE)
def test_tables_agree(name: str) -> None:
    run = Enumeration().run(PROGRAMS[name])
    assert diversity.posterior_entropy(run) == pytest.approx(grouped(run), abs=1e-12)


def test_equal_weight_draws_do_not_keep_step_with_the_order_of_a_table() -> None:
    """100 draws from fifty pairs (k, x) in order: a comb of 100 teeth would meet the same x of every pair."""
    exact = Enumeration().run(categorical)
    shares = [float(exact.draws(100, seed=seed)["r"].mean()) for seed in range(40)]
    assert sum(shares) / 40 == pytest.approx(0.75, abs=4 * 0.043 / math.sqrt(40))
    assert max(abs(share - 0.75) for share in shares) < 4.5 * 0.043  # the spread of independent draws
