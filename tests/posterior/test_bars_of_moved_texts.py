"""Where particles are moved, or chains walk: errors that would be stated of what has hardly been met, and are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from toys.markov_chains import ar1, chain_of
from toys.synthetic import importance, smc

from ppl_align import compare
from ppl_align.posterior.doubts import LASTING, doubts
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.lineage import effective_ancestors


def test_a_reward_that_only_moves_have_met_has_no_bar():
    """All weigh the same: nobody was resampled by it."""
    drawn = importance(particles=400)
    flat = torch.zeros_like(drawn.log_weight)
    moved = replace(drawn, log_weight=flat, log_proposal=None, kind=Kind.RESAMPLED)
    assert not moved.mean("praise").stated
    felt = replace(moved, log_weight=drawn.log_weight)
    assert felt.mean("praise").stated
    perfect = replace(moved, steered=True)
    assert perfect.mean("praise").stated, "a proposal that is the posterior leaves equal weights, too"


def test_ancestors_of_replicates_without_weight_do_not_count():
    run = smc(replicates=8)
    assert run.lineage is not None
    assert run.mean("praise").stated
    lineage = torch.arange(64).expand(8, -1).clone()
    lineage[:2] = lineage[:2] // 32  # all descends from two of the first, and holds nearly all the weight
    log_weight = run.log_weight.clone()
    log_weight[2:] -= 8
    narrow = replace(run, log_weight=log_weight, history={**run.history, "lineage": lineage})
    effective = effective_ancestors(narrow)
    assert effective is not None
    assert 3.5 < effective < 4.5, "four of 6 * 64 + 4"
    assert not narrow.mean("praise").stated


def test_what_one_chain_has_met_in_a_streak_has_no_bar():
    values = np.zeros((8, 400))
    values[3, 100:140] = 1.0
    streak = chain_of(values)
    assert not streak.mean("praise").stated
    often = np.random.default_rng(0).random((8, 400)) < 0.05
    assert chain_of(often.astype(float)).mean("praise").stated


def test_chains_that_have_not_mixed_have_no_bar():
    values = ar1(8)
    assert chain_of(values).mean("praise").stated
    assert not chain_of(values + 0.7 * np.arange(8)[:, None]).mean("praise").stated


def test_moves_that_lead_nowhere_are_a_doubt():
    run = smc(replicates=8, particles=400)
    for correlation, doubted in ((LASTING - 0.1, False), (LASTING + 0.1, True)):
        found = doubts(replace(run, history={**run.history, "lasting": correlation}))
        assert any("raise max_moves" in doubt.reason for doubt in found) == doubted


def test_chains_that_know_less_than_what_conditioning_has_moved_are_not_vouched_for():
    """A posterior close to the prior: E[r] has to be known better than chains of such a length know it."""
    near = importance(replicates=4, particles=8000, scale=0.06)
    shape = (8, 700)
    index = torch.multinomial(near.weights.reshape(-1), shape[0] * shape[1], True).reshape(shape)
    texts = near.take(index, log_weight=torch.zeros(shape, dtype=torch.float64), kind=Kind.CHAIN, history={})
    chains = replace(texts, engine="mcmc", log_proposal=None)
    assert "near" in compare({"near": near}).advice.confirmed
    assert "mcmc" not in compare({"near": near, "mcmc": chains}).advice.confirmed
