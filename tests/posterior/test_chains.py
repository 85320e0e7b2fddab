"""Markov chains as ordered draws: what ArviZ says of known chains, stuck ones, and the moves after the warm-up."""

from __future__ import annotations

import math

import arviz
import numpy as np
import pytest
import torch
from conftest import SEED
from toys.markov_chains import ar1, chain_of
from toys.synthetic import weigh

from ppl_align import MCMC, ImportanceSampling, ParticleGibbs
from ppl_align.core.arviz_adapter import autocorrelation, chain_stats
from ppl_align.core.errors import InputError
from ppl_align.posterior.chains import acceptance, chain_numbers, effective_draws, stuck_chains
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.pooling import pooled
from ppl_align.posterior.run_summary import summary_of
from ppl_align.testing import PROGRAMS


def test_a_reward_is_what_arviz_makes_of_the_chains_in_their_order():
    values = ar1()
    run = chain_of(values)
    told = chain_numbers(run)["praise"]
    assert told.stats.bulk == arviz.ess(values, method="bulk")
    assert told.stats.tail == arviz.ess(values, method="tail")
    assert told.stats.rhat == arviz.rhat(values)
    assert told.stats.mcse == arviz.mcse(values, method="mean") == run.mean("praise").standard_error
    assert told.mean.value == pytest.approx(values.mean())
    shuffled = np.random.default_rng(0).permuted(values, axis=1)
    assert chain_numbers(chain_of(shuffled))["praise"].stats.bulk > 2 * told.stats.bulk, "order means something"


def test_the_effective_draws_of_a_known_chain():
    """(1 - rho) / (1 + rho) of its states."""
    values = ar1(chains=16, states=2000)
    expected = values.size * 0.4 / 1.6
    assert chain_stats(values).ess == pytest.approx(expected, rel=0.1)
    assert chain_stats(values).mcse == pytest.approx(1 / math.sqrt(expected), rel=0.1)
    assert autocorrelation(values).mean(0)[:4] == pytest.approx([1, 0.6, 0.36, 0.216], abs=0.03)


def test_error_bars_of_chains_hold():
    """Of 200 runs, the 95% intervals of about 190 hold the truth, 0."""
    held = 0
    for seed in range(200):
        low, high = chain_of(ar1(4, 200, seed=seed)).mean("praise").interval()
        held += low <= 0 <= high
    assert 180 <= held <= 199


def test_a_summary_has_them_all_and_no_evidence():
    run = chain_of(ar1())
    told, row = summary_of(run), summary_of(run).row()
    worst = [number.stats for number in told.chains.values()]
    assert row["ess_bulk"] == min(stats.bulk for stats in worst) == told.effective_draws == effective_draws(run)
    assert row["ess_tail"] == min(stats.tail for stats in worst)
    assert row["rhat"] == max(stats.rhat for stats in worst)
    assert row["ess"] is None
    assert math.isnan(row["log_evidence"])
    assert list(told.chains) == ["praise", "log_prior", "length"]
    nothing = {key: summary_of(weigh("i", torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, 8), 1.0)).row()[key]
               for key in ("ess_bulk", "ess_tail", "acceptance")}  # fmt: skip
    assert set(nothing.values()) == {None}


@pytest.mark.parametrize("values", [np.ones((4, 60)), ar1(4, 3)], ids=["constant", "short"])
def test_nothing_is_told_of_what_does_not_vary_or_is_too_short(values):
    assert all(math.isnan(number) for number in chain_stats(values))
    assert summary_of(chain_of(values)).rhats == {}


def test_chains_that_never_vary_but_differ_have_an_infinite_rhat():
    values = np.arange(4.0)[:, None] / 3 * np.ones((4, 60))  # 1/3: a variance that would be rounding
    assert chain_stats(values).rhat == math.inf
    assert chain_stats(values).bulk < 5


def test_a_single_chain_states_no_error():
    run = chain_of(ar1(1))
    assert not run.mean("praise").stated
    assert "a single chain is too few to be held against each other; num_replicates=4" in summary_of(run).unstated[0]
    assert "rhat" in chain_numbers(run)["praise"].stats._fields
    assert summary_of(run).rhats == {}


def test_elements_of_a_latent_vector_are_numbers_of_their_own():
    run = chain_of(ar1())
    vector = torch.randn(4, 400, 2, generator=torch.Generator().manual_seed(0))
    run.particles = {**run.particles, "z": vector}
    assert list(chain_numbers(run)) == ["praise", "z[0]", "z[1]", "log_prior", "length"]
    assert chain_numbers(run)["z[1]"].stats.bulk == pytest.approx(arviz.ess(vector[..., 1].double().numpy()))


def test_a_chain_that_has_not_moved():
    texts = torch.arange(4 * 60).reshape(4, 60) % 50
    assert stuck_chains(chain_of(ar1(4, 60), texts)) == 0
    texts[2] = 7
    assert stuck_chains(chain_of(ar1(4, 60), texts)) == 1
    assert stuck_chains(chain_of(ar1(4, 60), torch.arange(4)[:, None].expand(4, 60))) == 4
    short = torch.randint(50, (400, 2), generator=torch.Generator().manual_seed(0))
    short[:200, 1] = short[:200, 0]
    assert stuck_chains(chain_of(ar1(400, 2), short)) == 0, "half of the steps change something: so may it be"


def test_moves_of_the_warmup_do_not_count():
    run = MCMC(num_chains=5, num_samples=6, num_warmup=3, thinning=2).run(PROGRAMS["upstream_latent"], seed=SEED)
    accepted, cut = run.history["accepted"], run.history["cut"]
    tried = cut[6:] >= 0  # two moves a step
    assert acceptance(run) == pytest.approx(float(accepted[6:][tried].double().mean()))
    gibbs = ParticleGibbs(num_chains=3, num_samples=4, num_warmup=2).run(PROGRAMS["with_eos"], seed=SEED)
    assert acceptance(gibbs) == pytest.approx(float(gibbs.history["accepted"][2:].double().mean()))
    assert acceptance(ImportanceSampling(16, 4).run(PROGRAMS["with_eos"], seed=SEED)) is None


def test_pooled_chains_stand_beside_each_other():
    engine = MCMC(num_chains=3, num_samples=20, num_warmup=4)
    one, other = (engine.run(PROGRAMS["upstream_latent"], seed=seed) for seed in (SEED, SEED + 1))
    pool = pooled([one, other], died=12)
    assert pool.log_weight.shape == (6, 20)
    assert pool.kind is Kind.CHAIN
    for name in one.rewards:
        assert torch.equal(pool.rewards[name], torch.cat([one.rewards[name], other.rewards[name]]))
    tokens = [run.particles["x"].tokens for run in (one, other, pool)]
    assert torch.equal(tokens[2], torch.cat(tokens[:2]))
    assert pool.particles["x"].texts() == one.particles["x"].texts() + other.particles["x"].texts()
    assert torch.equal(pool.history["cut"], torch.cat([one.history["cut"], other.history["cut"]], 1))
    assert pool.history["move_site"] == one.history["move_site"]
    assert pool.config["num_chains"] == 6
    assert acceptance(pool) == pytest.approx((acceptance(one) + acceptance(other)) / 2)
    assert chain_numbers(pool).keys() == chain_numbers(one).keys()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_samples": 10}, "other states a chain (20 and 10)"),
        ({"num_warmup": 5}, "other steps of warm-up (4 and 5)"),
    ],
)
def test_other_chains_are_not_pooled(settings, says):
    runs = [
        MCMC(**{"num_chains": 3, "num_samples": 20, "num_warmup": 4, **more}).run(PROGRAMS["with_eos"], seed=SEED)
        for more in ({}, settings)
    ]
    with pytest.raises(InputError) as error:
        pooled(runs)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
