"""A standard error needs a variance: weights of a proposal that hardly ever goes where they are large have none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from toys.lms import chain

from ppl_align import SVI, Enumeration, ImportanceSampling, Posterior, compare, completion, reward
from ppl_align.posterior import evidence
from ppl_align.posterior.estimates import HEAVIEST, heavy_tail
from ppl_align.posterior.unstated import unstated

LM = chain(5, 0)
SEEDS = range(24)


def ones(beta: float) -> Callable[[], None]:
    def model() -> None:
        x = completion("x", LM, [1], max_new_tokens=7)
        reward("r", lambda t: (t == 1).sum(-1).double(), x.tokens, beta=beta, upper=7.0, lower=0.0)

    return model


far = ones(0.5)


@pytest.fixture(scope="module")
def truth() -> Posterior:
    return Enumeration().run(far)


@pytest.fixture(scope="module")
def narrow() -> list[Posterior]:
    """Draws of a guide that was trained for a stricter reward: what it hardly writes weighs most."""
    guide = SVI(num_steps=200, num_particles=64).run(ones(0.25), seed=0).guide
    return [ImportanceSampling(64, 8, proposal=guide).run(far, seed=s) for s in SEEDS]


def test_no_bar_where_weights_have_no_variance(narrow: list[Posterior]) -> None:
    heavy = [run for run in narrow if heavy_tail(run) is not None]
    assert len(heavy) >= 10
    for run in heavy:
        assert evidence.standard_error(run) is None
        assert not evidence.log_z(run).stated
        assert not run.mean("r").stated
        assert not evidence.kl(run).stated
        assert f"more than {HEAVIEST:g})" in " ".join(unstated(run))
        advice = compare({"narrow": run}).advice
        assert advice.standing != "sound"


def test_what_the_bars_would_have_been_worth(truth: Posterior, narrow: list[Posterior]) -> None:
    """Three standard errors, by the weights that were seen, would miss log Z far more often than once in 400 runs."""
    z = evidence.log_evidence(truth)
    heavy = [run for run in narrow if heavy_tail(run) is not None]
    errors = [math.sqrt((evidence.relative_variance(run) or math.nan) / len(run.log_weight)) for run in heavy]
    off = [z - evidence.log_evidence(run) > 3 * error for run, error in zip(heavy, errors, strict=True)]
    assert len(heavy) >= 10
    assert sum(off) >= 2


def test_draws_of_the_prior_and_even_weights_are_not_asked() -> None:
    assert heavy_tail(ImportanceSampling(512, 4).run(far, seed=0)) is None
    fits = SVI(num_steps=300, num_replicates=8, num_particles=64).run(far, seed=0)
    assert heavy_tail(fits) is None
    assert evidence.standard_error(fits) is not None


def test_draws_from_within_a_constraint_are_not_asked(narrow: list[Posterior]) -> None:
    """Nobody's guide drew them: what is missing is no tail."""
    heavy = next(run for run in narrow if heavy_tail(run) is not None)
    assert heavy_tail(replace(heavy, steered=False)) is None
