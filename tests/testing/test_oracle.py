"""The oracle against brute force, and what is built on it: twists, draws, gradients, lists of answers."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pyro
import pytest
import torch
from conftest import SEED
from toys.lms import uniform

from ppl_align import SMC, SVI, Enumeration, ImportanceSampling, completion, reward
from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError, RunError
from ppl_align.testing.oracle import Oracle, entropy, kl_divergence
from ppl_align.testing.programs import EOS, FIXED, MEMORY, PROGRAMS
from ppl_align.testing.statistics import bonferroni_z, evidence_z, g_test, key_rows, probabilities

SOFT = [n for n in PROGRAMS if n != "hard_rejection"]


@pytest.fixture(scope="module")
def oracles():
    return {name: Oracle(program) for name, program in PROGRAMS.items()}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_objective_and_its_gap(name, oracles):
    """ELBO(q) + KL(q || p*) = log Z for any q; both sides are computed apart."""
    oracle = oracles[name]
    generator = torch.Generator().manual_seed(SEED)
    q = oracle.log_target + torch.randn(len(oracle.log_target), generator=generator, dtype=torch.float64)
    q = q - q.logsumexp(0)
    assert float(oracle.elbo(q) + oracle.reverse_kl(q)) == pytest.approx(oracle.log_evidence, abs=1e-9)
    assert float(oracle.elbo(oracle.log_target)) == pytest.approx(oracle.log_evidence, abs=1e-9)
    assert float(oracle.log_target.exp().sum()) == pytest.approx(1, abs=1e-9)


def test_it_prints_what_it_knows(oracles):
    oracle = oracles["with_eos"]
    kl = float((oracle.log_target.exp() * (oracle.log_target - oracle.log_prior)).nansum())
    shown = repr(oracle)
    assert shown == (
        f"Oracle({oracle.model.__name__}: {len(oracle.log_prior)} assignments, log Z = {oracle.log_evidence:.4g}, "
        f"KL(p* || p0) = {kl:.4g} nats)"
    )


def test_divergences_by_hand():
    p, q = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.5, 0.25]).log()
    assert kl_divergence(p, q).item() == pytest.approx(0.5 * math.log(2))
    assert kl_divergence(q, p).item() == math.inf
    assert entropy(q).item() == pytest.approx(1.5 * math.log(2))


@pytest.mark.parametrize("name", ["with_eos", "whole_prefix", "hard_rejection", "truncated"])
def test_the_posterior_factorises_over_soft_values(name, oracles):
    """p*(x_t | x_<t) = p0(x_t | x_<t) exp(V(x_<=t) - V(x_<t)), for every prefix; p0 is asked of the LM itself."""
    oracle = oracles[name]
    source = oracle.source()
    tokens = next(iter(oracle.values.values()))
    checked = 0
    for row, log_p in zip(tokens, oracle.log_target, strict=True):
        if log_p == -math.inf:
            continue
        one = source.with_index(source.index[:1])
        log_p0 = one.token_log_probs(row[None])[0]
        values = [oracle.soft_value(row[:t].tolist()) for t in range(len(row) + 1)]
        product = sum(float(log_p0[t]) + values[t + 1] - values[t] for t in range(len(row)))
        assert product == pytest.approx(float(log_p), abs=1e-9)
        checked += 1
    assert checked > 3
    assert oracle.soft_value([]) == pytest.approx(oracle.log_evidence, abs=1e-9)


def test_soft_values_given_what_is_upstream(oracles):
    """Against a program in which the latent is fixed."""
    oracle = oracles["upstream_latent"]
    for z in range(3):

        def fixed(z=z):
            x = completion("x", FIXED, [z, 1], max_new_tokens=3)
            reward("r", lambda t: torch.tensor([0.0, 0.9, -0.7], dtype=torch.float64)[t].sum(-1), x.tokens, beta=0.7)
            pyro.factor("tie", 0.4 * (x.tokens[..., 0] == z).double())

        want = Oracle(fixed)
        assert oracle.soft_value([], z=z) == pytest.approx(want.log_evidence, abs=1e-9)
        assert oracle.soft_value([2, 1], z=z) == pytest.approx(want.soft_value([2, 1]), abs=1e-9)


@pytest.mark.parametrize(
    "name", ["with_eos", "fixed_length", "whole_prefix", "two_rewards", "hard_rejection", "nucleus"]
)
def test_the_optimal_proposal_leaves_no_variance(name, oracles):
    oracle = oracles[name]
    for engine in (
        ImportanceSampling(3, 4, proposal=oracle.proposal),
        SMC(3, 4, proposal=oracle.proposal, twist=oracle.twist, ess_threshold=1.0),
    ):
        posterior = engine.run(PROGRAMS[name], seed=SEED)
        torch.testing.assert_close(posterior.log_weight, torch.full((3,), oracle.log_evidence).expand(4, 3).double())


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_optimal_twist_is_unbiased_and_worth_having(name, oracles):
    """With prior proposals: the weights are off only by the next token."""
    oracle = oracles[name]
    posterior = SMC(24, 300, twist=oracle.twist, ess_threshold=0.9).run(PROGRAMS[name], seed=SEED)
    z, spread = evidence_z(posterior, oracle.log_evidence)
    assert spread < 0.6
    assert abs(z) < bonferroni_z(len(PROGRAMS))


def test_a_twist_of_ones_own_and_what_it_may_not_do():
    program = PROGRAMS["two_completions"]
    seen = set()

    def twist(prefixes):
        seen.add((prefixes.site, tuple(sorted(prefixes.values)), len(prefixes.prompts) == len(prefixes.tokens)))
        return 0.3 * (prefixes.tokens == 1).sum(-1)

    posterior = SMC(16, 400, twist=twist, ess_threshold=0.9).run(program, seed=SEED)
    assert seen == {("first", (), True), ("second", ("first",), True)}
    z, _ = evidence_z(posterior, Oracle(program).log_evidence)
    assert abs(z) < bonferroni_z(1)
    for wrong, says in ((lambda p: torch.zeros(3, 3), "must be"), (lambda p: math.nan * p.tokens[:, 0], "NaN")):
        with pytest.raises(RunError, match=says):
            SMC(4, 1, twist=wrong).run(program)
    with pytest.raises(InputError, match="twist must be"):
        SMC(twist=3)


@pytest.mark.parametrize("name", ["with_eos", "upstream_latent", "plated", "text_reward"])
def test_draws_follow_the_posterior(name, oracles):
    draws = oracles[name].sample(2000, 2, seed=SEED)
    counts = Counter(key_rows(draws)[0])
    law = probabilities(oracles[name].posterior)
    assert g_test(counts, law).p_value > 1e-3 / 4
    assert draws.draws_are_exact
    torch.testing.assert_close(draws.log_evidence, torch.full((2,), oracles[name].log_evidence).double())
    assert len(draws.table()) > 3
    again = oracles[name].sample(2000, 2, seed=SEED)
    assert torch.equal(again.log_proposal, draws.log_proposal)


@pytest.mark.parametrize("name", SOFT)
def test_a_guide_is_scored_as_it_draws(name, oracles):
    """log q of the support sums to one, and is the log q that the guide's own draws carry."""
    guide = SVI(num_steps=2, num_particles=8, num_replicates=1, learning_rate=0.2).run(PROGRAMS[name], seed=SEED).guide
    oracle = oracles[name]
    log_q = oracle.log_q(guide)
    assert float(log_q.detach().exp().sum()) == pytest.approx(1, abs=1e-6)
    keys = key_rows(oracle.posterior)[0]
    known = dict(zip(keys, log_q.tolist(), strict=True))
    drawn = ImportanceSampling(20, 1, proposal=guide).run(PROGRAMS[name], seed=SEED)
    for row, value in zip(key_rows(drawn)[0], drawn.log_proposal[0].tolist(), strict=True):
        assert value == pytest.approx(known[row], abs=1e-6)


@pytest.mark.parametrize("name", ["with_eos", "downstream_latent", "two_completions"])
def test_gradients_against_finite_differences(name, oracles):
    oracle = oracles[name]
    guide = SVI(num_steps=2, num_particles=8, num_replicates=1, learning_rate=0.2).run(PROGRAMS[name], seed=SEED).guide
    for objective in (oracle.elbo, oracle.forward_kl, oracle.reverse_kl):
        found = oracle.gradient(objective, guide)
        name_, largest = max(found.items(), key=lambda item: float(item[1].abs().max()))
        at = int(largest.abs().argmax())
        site, _, rest = name_.partition(".")
        parameter = dict(guide.sites[site].named_parameters())[rest]
        step, values = 1e-3, []  # of float32 parameters: at 1e-4 their rounding shows
        for sign in (1, -1):
            with torch.no_grad():
                parameter.reshape(-1)[at] += sign * step
                values.append(float(objective(guide)))
                parameter.reshape(-1)[at] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert abs(slope) > 1e-3
        assert float(largest.reshape(-1)[at]) == pytest.approx(slope, rel=1e-3)


def test_policies_of_every_kind(oracles):
    oracle = oracles["fixed_length"]

    assert float(oracle.log_q(uniform).exp().sum()) == pytest.approx(1)
    assert float(oracle.log_q(MEMORY).exp().sum()) == pytest.approx(1)
    torch.testing.assert_close(oracle.log_q(FIXED), oracle.log_prior)
    assert float(oracle.mean("r", oracle.log_prior)) == pytest.approx(
        float((oracle.log_prior.exp() * oracle.rewards["r"]).sum())
    )
    for bad, says in ((torch.zeros(3), "one entry for each"), (3, "a policy is")):
        with pytest.raises(InputError, match=says):
            oracle.log_q(bad)


def test_questions_that_have_no_answer(oracles):
    with pytest.raises(InputError, match="name the site"):
        oracles["two_completions"].soft_value([1])
    with pytest.raises(InputError, match="probability zero"):
        oracles["with_eos"].soft_value([2, 1])
    with pytest.raises(InputError, match="at most 3"):
        oracles["truncated"].soft_value([2, 2, 2, 2])
    with pytest.raises(InputError, match="no latent is called"):
        oracles["upstream_latent"].soft_value([], w=1)
    with pytest.raises(InputError, match="more than 10"):
        Oracle(PROGRAMS["fixed_length"], max_sequences=10)


# -- a list of answers ------------------------------------------------------------------------------------------


def quiz():
    x = completion("x", EOS, [1], max_new_tokens=3)
    reward("r", lambda t: 0.7 * (t == 1).sum(-1), x.tokens)


def test_a_list_of_answers_is_the_posterior_given_the_list():
    answers = [[0], [0, 1], [0, 1, 0], [1, 0], [1, 1, 1]]
    posterior = Enumeration(candidates={"x": answers}).run(quiz)
    whole = Oracle(quiz)
    padded = [tuple((a + [2] * 3)[:3]) for a in answers]
    law = dict(zip(key_rows(whole.posterior)[0], (whole.log_prior + whole.log_potential).tolist(), strict=True))
    mass = [law[row] for row in padded]
    assert float(posterior.log_evidence) == pytest.approx(
        torch.tensor(mass, dtype=torch.float64).logsumexp(0).item(), abs=1e-9
    )
    found = probabilities(posterior)
    for row, log_mass in zip(padded, mass, strict=True):
        assert found[row] == pytest.approx(math.exp(log_mass - float(posterior.log_evidence)), abs=1e-9)
    assert "Exact: the 5 listed completions of positive probability." in posterior.summary()
    assert "Exact: all 15 completions of positive probability." in whole.posterior.summary()


def test_shared_prefixes_are_read_once():
    with measure() as cost:
        Enumeration(candidates={"x": [[0], [0, 1], [0, 1, 0], [1, 0], [1, 1, 1]]}).run(quiz)
    assert cost.lm_tokens == 2 + 3  # prefixes 0, 1; then 01, 10, 11


def test_a_list_with_every_sequence_is_the_whole_posterior(tiny_llama):
    def program():
        x = completion("x", tiny_llama, [3], max_new_tokens=2)
        reward("r", lambda t: (t == 4).double().sum(-1), x.tokens)

    everything = [[v] for v in range(6)] + [list(p) for p in itertools.product(range(6), range(6))] + [[6]]
    everything = [ids for ids in everything if len(ids) == 2 or ids == [6]] + [[v, 6] for v in range(6)]
    posterior = Enumeration(candidates={"x": everything}).run(program)
    assert float(posterior.log_evidence) == pytest.approx(float(Enumeration().run(program).log_evidence), abs=1e-5)


@pytest.mark.parametrize(
    ("candidates", "says"),
    [
        ({"x": "yes"}, "a list of at least one"),
        ({"x": []}, "a list of at least one"),
        ({"x": [[0], [0, 2]]}, "the same tokens"),
        ({"x": [[0, 1, 0, 1]]}, "cannot be an answer"),
        ({"x": [[2, 1]]}, "cannot be an answer"),
        ({"y": [[0]]}, "no completion of that name"),
    ],
)
def test_lists_that_make_no_sense(candidates, says):
    with pytest.raises(InputError, match=says) as caught:
        Enumeration(candidates=candidates).run(quiz)
    assert "\n" not in str(caught.value)
