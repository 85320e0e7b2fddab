"""The law of a delivered draw, where it can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import SEED
from toys.lms import ABC

from ppl_align import CallableLM, ImportanceSampling, completion, reward
from ppl_align.core.errors import InputError
from ppl_align.testing import PROGRAMS, Oracle, delivered, total_variation

COIN = CallableLM(2, lambda prefix: torch.zeros(len(prefix), 2, dtype=torch.float64), name="coin")


def heads(strength=math.log(3.0), lm=COIN):
    x = completion("x", lm, [0], max_new_tokens=1)
    reward("r", lambda t: (t == 1).double().sum(-1), x.tokens, beta=1 / strength)


def test_two_draws_of_a_coin():
    """p* = (1/4, 3/4). Two draws: both tails 1/4, one of each 1/2 (then heads is delivered 3/4), both heads 1/4."""
    oracle = Oracle(heads)
    replicates = 20_000
    found = delivered(ImportanceSampling(2, replicates).run(heads, seed=SEED), oracle)
    exact = torch.tensor([0.375, 0.625], dtype=torch.float64)
    error = math.sqrt(0.25 * 0.625**2 + 0.5 * 0.125**2 + 0.25 * 0.375**2) / math.sqrt(replicates)
    assert float(total_variation(found.law, exact)) < 4.5 * error
    assert abs(found.total_variation - 0.125) < 4.5 * error
    assert 0 <= found.noise_floor < 4.5 * error
    assert float(found.law.sum()) == pytest.approx(1.0)


def test_exact_draws_are_at_the_floor():
    oracle = Oracle(PROGRAMS["with_eos"])
    found = delivered(oracle.sample(4, 4000, seed=SEED), oracle)
    assert found.noise_floor / 2 < found.total_variation < 2 * found.noise_floor


def test_what_it_does_not_know():
    run = ImportanceSampling(4, 2).run(heads)
    with pytest.raises(InputError, match="one completion"):
        delivered(run, Oracle(PROGRAMS["two_completions"]))
    with pytest.raises(InputError, match="two replicates"):
        delivered(ImportanceSampling(4, 1).run(heads), Oracle(heads))
    with pytest.raises(InputError, match="does not know"):
        delivered(ImportanceSampling(64, 2).run(heads, 1.0, ABC), Oracle(heads))
