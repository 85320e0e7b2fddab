"""What is said of Markov chains, alone and beside runs with evidence; the moves of a run, counted by their cuts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SEED
from toys.markov_chains import ar1, chain_of, chains
from toys.synthetic import exact, importance, law, sample, smc

from ppl_align import MCMC, ImportanceSampling, MarkovLM, ParticleGibbs, Posterior, compare, completion, reward
from ppl_align.core.errors import InputError
from ppl_align.diagnostics import acceptance_by_cut
from ppl_align.diagnostics.advisor import Advice, best_run
from ppl_align.diagnostics.remedies import CHAINS_ALONE
from ppl_align.testing import PROGRAMS


def of_the_prior(shape: tuple[int, int] = (8, 500)) -> Posterior:
    """Chains that are in the prior instead."""
    return chains(texts=sample(3, shape)[0])


def advice(**runs: Posterior) -> Advice:
    return compare(runs).advice


def test_good_chains_alone_are_unconfirmed():
    said = advice(mcmc=chains())
    assert said.standing == "unconfirmed"
    assert said.reasons == (CHAINS_ALONE,)
    assert said.remedy == CHAINS_ALONE


def test_good_chains_beside_others_of_them_are_unconfirmed():
    assert advice(one=chains(), other=chains(1)).standing == "unconfirmed"


def test_a_run_with_evidence_vouches_for_chains_that_agree():
    said = advice(mcmc=chains(), importance=importance(particles=2000))
    assert said.standing == "sound"
    assert said.confirmed == ("mcmc", "importance")
    assert said.use == "importance"
    assert "per token" not in said.verdict


def test_but_not_one_that_has_seen_too_little_itself():
    said = advice(mcmc=chains(), smc=smc())
    assert said.standing == "unconfirmed"
    assert "smc: " in said.reasons[0]
    assert said.remedy is not None
    assert "draws of smc in all would tell" in said.remedy


def test_chains_that_are_elsewhere_than_a_sound_run():
    said = advice(mcmc=of_the_prior(), importance=importance(particles=2000))
    assert said.confirmed == ("importance",)
    assert "mcmc: E[praise] is " in said.reasons[0]
    assert "from that of importance: one of both misses part of the posterior" in said.reasons[0]
    beside_exact = advice(mcmc=of_the_prior(), exact=exact())
    assert "from the exact one" in beside_exact.reasons[0]
    assert "agree" not in beside_exact.verdict
    assert "mcmc agrees with it" in advice(mcmc=chains(), exact=exact()).verdict


def test_chains_are_never_the_best_where_a_run_knows_z():
    nobody_knows = replace(importance(replicates=1, particles=2))
    for runs in ({"mcmc": chains(), "importance": nobody_knows}, {"importance": nobody_knows, "mcmc": chains()}):
        assert best_run(runs) == "importance"


def test_chains_that_do_not_move():
    texts = torch.randint(50, (8, 100), generator=torch.Generator().manual_seed(0))
    texts[:3] = texts[:3, :1]
    said = advice(mcmc=chains(texts=texts))
    assert said.standing == "unsound"
    assert "3 of its 8 chains have never moved" in said.verdict
    assert "Take a kernel that changes less at a time" in str(said)
    assert "1 of its 8 chains has never moved" in str(
        advice(mcmc=chains(texts=torch.cat([texts[:1], texts[3:], texts[3:5]])))
    )


def test_all_chains_in_one_text():
    """Nothing varies: no R-hat, no effective sample size, and a reward that has never been met."""
    said = advice(mcmc=chains(texts=torch.full((8, 100), 7)))
    assert said.standing == "unsound"
    assert "8 of its 8 chains have never moved" in said.verdict


def test_fewer_than_four_chains():
    for count in (1, 2, 3):
        said = advice(mcmc=chains(shape=(count, 500)))
        assert said.standing == "unsound"
        assert f"{count} chain{'s' if count > 1 else ''} cannot be held against each other" in said.verdict
        assert said.remedy == "Take num_replicates=4 or more."


def test_the_rule_of_rhat_and_of_effective_draws():
    def run(values: np.ndarray) -> Advice:
        return advice(mcmc=chain_of(values, torch.arange(values.size).reshape(values.shape) * 7919 % len(law()[0])))

    assert run(ar1(8, 1000, 0.2)).reasons == (CHAINS_ALONE,)
    slow = run(ar1(4, 100, 0.2))
    assert slow.standing == "unconfirmed"
    assert any("of praise (bulk or tail ESS), it takes 400 to believe them" in line for line in slow.reasons)
    assert "raise num_particles, not only num_replicates" in str(slow)
    apart = run(ar1(8, 1000, 0.2) + 0.2 * np.arange(8)[:, None] / 7 * 2)
    assert apart.standing == "unconfirmed"
    assert any("its chains have not mixed: R-hat 1.0" in line for line in apart.reasons)
    modes = run(ar1(8, 1000, 0.2) + 4.0 * (np.arange(8)[:, None] % 2))
    assert modes.standing == "unsound"
    assert "its chains disagree on praise (R-hat" in modes.verdict


def test_settings_are_called_as_the_engine_calls_them():
    short = advice(mcmc=MCMC(num_chains=2, num_samples=20, num_warmup=0).run(PROGRAMS["with_eos"], seed=SEED))
    assert "Take num_chains=4 or more." in str(short)
    assert "num_replicates" not in str(short)


def test_chains_of_which_each_is_in_one_mode():
    """No move leads from one mode to the other: what begins in one stays."""
    letters = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]])
    lm = MarkovLM((letters + 1e-12).log(), torch.full((4,), -1.4), tokens=list("abcd"))

    def two_modes() -> None:
        x = completion("x", lm, [], max_new_tokens=3)
        reward("side", lambda tokens: (tokens[..., 0] > 1).double(), x.tokens, beta=1.0)

    class Late:
        """Never at the first token."""

        reads_entropy = False

        def weights(self, texts, entropy):
            return torch.ones(texts.tokens.shape, dtype=torch.float64).index_fill(-1, torch.tensor(0), 0.0)

    from ppl_align.kernels import SuffixMH

    run = MCMC(SuffixMH(cuts=Late()), num_chains=8, num_samples=200).run(two_modes, seed=SEED)
    assert len(run.rewards["side"].unique()) == 2
    said = advice(mcmc=run, importance=ImportanceSampling(500, 4).run(two_modes, seed=SEED))
    assert said.confirmed == ("importance",)
    assert "its chains disagree on side (R-hat inf)" in str(said)


# -- moves -------------------------------------------------------------------------------------------------------------


def test_acceptance_by_cut_is_what_one_counts_by_hand():
    run = chains(shape=(3, 2))
    run.history = {
        "move_site": ["y", "x", "y", "x", "y", "x"],
        "cut": torch.tensor([[9, 9, 9], [9, 9, 9], [0, 2, 2], [1, -1, 0], [2, 2, 0], [1, 1, -1]]),
        "accepted": torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 0, 0], [0, 1, 1], [0, 1, 0]]).bool(),
        "num_warmup": 1,
    }
    table = acceptance_by_cut(run)
    expected = pd.DataFrame(
        {"moves": [2, 4, 1, 3], "accepted": [2, 2, 0, 2], "rate": [1.0, 0.5, 0.0, 2 / 3]},
        index=pd.MultiIndex.from_tuples([("y", 0), ("y", 2), ("x", 0), ("x", 1)], names=["site", "cut"]),
    )
    pd.testing.assert_frame_equal(table, expected)


def test_acceptance_of_a_run_of_two_sites():
    run = MCMC(num_chains=6, num_samples=30, num_warmup=5, thinning=2).run(PROGRAMS["upstream_latent"], seed=SEED)
    table = acceptance_by_cut(run)
    counted: Counter[tuple[str, int]] = Counter()
    for i, site in enumerate(run.history["move_site"]):
        if i >= 2 * 5:
            counted.update((site, int(cut)) for cut in run.history["cut"][i] if cut >= 0)
    assert table["moves"].to_dict() == counted
    assert table["moves"].sum() == 2 * 6 * 30 * 2
    assert bool(table["rate"].between(0, 1).all())


@pytest.mark.parametrize("engine", [ParticleGibbs(num_chains=2, num_samples=2), ImportanceSampling(8)])
def test_runs_without_cuts_are_refused(engine):
    with pytest.raises(InputError, match="whose moves cut texts"):
        acceptance_by_cut(engine.run(PROGRAMS["with_eos"], seed=SEED))
