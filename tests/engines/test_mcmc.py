"""Chains: what of them is kept and told, and where they begin."""

from __future__ import annotations

import pytest
import torch
from conftest import SEED
from toys import constrained_programs, worlds

from ppl_align import MCMC, Enumeration, ImportanceSampling, MarkovLM, completion, reward
from ppl_align.core.errors import AllDeadError, InputError
from ppl_align.kernels import BlockSuffixMH, Cycle, InfillMH, SuffixMH
from ppl_align.testing import PROGRAMS


def test_states_are_in_the_order_in_which_they_came():
    """A state differs from the one before it only where a move was accepted."""
    run = MCMC(num_chains=6, num_samples=40, num_warmup=5).run(PROGRAMS["with_eos"], seed=SEED)
    tokens = run.particles["x"].tokens
    assert tokens.shape[:2] == (6, 40)
    changed = (tokens[:, 1:] != tokens[:, :-1]).any(-1)
    accepted = run.history["accepted"][6:].T
    assert not bool((changed & ~accepted).any())
    assert bool(changed.any())


def test_what_became_of_each_move():
    run = MCMC(num_chains=5, num_samples=6, num_warmup=3, thinning=2).run(PROGRAMS["upstream_latent"], seed=SEED)
    steps = 3 + 6 * 2
    sites = run.history["move_site"]
    assert len(sites) == 2 * steps, "a move of the text, and one of the latent before it"
    assert run.history["cut"].shape == run.history["accepted"].shape == (2 * steps, 5)
    latent = torch.tensor([site == sites[1] for site in sites])
    assert bool((run.history["cut"][latent] == 0).all()), "it is drawn as a whole"
    assert run.history["num_warmup"] == 3
    assert run.log_weight.shape == (5, 6)


def test_blocks_are_cut_one_after_the_other():
    kernel = BlockSuffixMH(size=2)
    run = MCMC(kernel, num_chains=8, num_samples=10, num_warmup=0).run(PROGRAMS["whole_prefix"], seed=SEED)
    cut = run.history["cut"].reshape(10, -1, 8)
    for block, moves in enumerate(reversed(range(cut.shape[1]))):
        own = cut[:, moves]
        assert bool(((own >= 2 * block) & (own < 2 * block + 2)).all())


def test_chains_begin_in_draws_of_a_run():
    init = ImportanceSampling(64, 4).run(PROGRAMS["with_eos"], seed=SEED)
    run = MCMC(num_chains=4, num_samples=1, num_warmup=0, init=init).run(PROGRAMS["with_eos"], seed=SEED)
    assert run.log_weight.shape == (4, 1)


@pytest.mark.parametrize(("name", "says"), [("upstream_latent", "a run of another one"), ("truncated", "of shape")])
def test_and_not_in_those_of_another_program(name, says):
    init = Enumeration().run(PROGRAMS[name])
    with pytest.raises(InputError, match=says):
        MCMC(num_chains=4, num_samples=1, init=init).run(PROGRAMS["with_eos"])


def test_a_start_that_is_hard_to_find_is_looked_for():
    rare = MarkovLM(torch.tensor([[0.02, 0.98]] * 2).log(), torch.tensor([0.02, 0.98]).log())

    def zeros() -> None:
        x = completion("x", rare, [0], max_new_tokens=1)
        reward("zero", lambda tokens: torch.where(tokens[..., 0] == 0, 0.0, -torch.inf), x.tokens)

    run = MCMC(num_chains=8, num_samples=2, num_warmup=0).run(zeros, seed=SEED)
    assert bool((run.particles["x"].tokens == 0).all())

    def never() -> None:
        reward("no", lambda tokens: torch.full((len(tokens),), -torch.inf), completion("x", rare, [0], 1).tokens)

    with pytest.raises(AllDeadError, match="where its chains begin"):
        MCMC(num_chains=2, num_samples=1).run(never)


def test_worlds_answer_anew_to_what_is_new():
    run = MCMC(Cycle(SuffixMH(), InfillMH()), num_chains=40, num_samples=10).run(worlds.dialogue, seed=SEED)
    assert run.environment
    exact = Enumeration().run(worlds.dialogue)
    for name in exact.rewards:
        found = run.rewards[name].mean(-1)
        weight = exact.log_weight.softmax(-1)
        want = float((weight * exact.rewards[name]).sum())
        error = float(found.std()) / 40**0.5
        assert abs(float(found.mean()) - want) < 4.5 * error


def test_under_a_constraint_every_state_meets_it():
    run = MCMC(SuffixMH(twist="lookahead"), num_chains=8, num_samples=8).run(constrained_programs.contains, seed=SEED)
    assert all(bool((value > -torch.inf).all()) for value in run.factors.values())
