"""Tempered SMC: the path that its pilot chooses, and what it finds far from the prior."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import SEED
from toys import constrained_programs
from toys.contracts import oracle_of

from ppl_align import MarkovLM, Regex, TemperedSMC, completion, constrain, reward
from ppl_align.core.errors import AllDeadError, InputError
from ppl_align.engines.tempered.annealing import MAX_LEVELS, correlation, next_exponent
from ppl_align.kernels import Cycle, InfillMH, SuffixMH
from ppl_align.particles.weights import Weights
from ppl_align.testing import PROGRAMS, Oracle
from ppl_align.testing.statistics import mean_z

SHARES = torch.tensor([0.45, 0.35, 0.20], dtype=torch.float64)
LETTERS = MarkovLM(SHARES.log().expand(3, 3).clone(), SHARES.log(), tokens=("x", "a", "b"))
LENGTH, MANY_A, MANY_B = 8, 16.7, 22.0


def two_modes() -> None:
    """A reward for as many a as there can be, and a larger one for b, which are rarer: from one exponent on b wins."""
    x = completion("x", LETTERS, "", max_new_tokens=LENGTH)
    reward("a", lambda tokens: (tokens == 1).double().mean(-1) ** 2, x.tokens, weight=MANY_A)
    reward("b", lambda tokens: (tokens == 2).double().mean(-1) ** 2, x.tokens, weight=MANY_B)


def exact_of_two_modes(exponent: float) -> tuple[float, dict[int, float]]:
    """log Z at an exponent, and the law of how many more b than a there are; sums over numbers of letters."""
    weights: dict[tuple[int, int], float] = {}
    for a in range(LENGTH + 1):
        for b in range(LENGTH + 1 - a):
            ways = math.comb(LENGTH, a) * math.comb(LENGTH - a, b)
            prior = ways * 0.35**a * 0.20**b * 0.45 ** (LENGTH - a - b)
            weights[a, b] = prior * math.exp(exponent * (MANY_A * a**2 + MANY_B * b**2) / LENGTH**2)
    total = sum(weights.values())
    law: dict[int, float] = {}
    for (a, b), weight in weights.items():
        law[b - a] = law.get(b - a, 0.0) + weight / total
    return math.log(total), law


def test_the_transition_is_of_first_order():
    """At some exponent either mode holds more than a fifth, and between them there is next to nothing; before it the
    one leads, afterwards the other."""
    (_, before), (_, there), (_, after) = (exact_of_two_modes(e) for e in (0.7, 0.86, 1.0))

    def mode(law: dict[int, float], sign: int) -> float:
        return sum(p for k, p in law.items() if sign * k > LENGTH / 2)

    assert mode(before, -1) > 2 * mode(before, 1)
    assert mode(after, 1) > 1.5 * mode(after, -1)
    assert min(mode(there, 1), mode(there, -1)) > 0.35
    assert max(there[k] for k in (-1, 0, 1)) < 0.05 * max(there.values())


@pytest.mark.statistical
def test_two_modes_within_a_tenth_of_a_nat():
    engine = TemperedSMC(4096, 32, kernel=InfillMH(size=2), max_moves=100)
    off = engine.run(two_modes, seed=SEED).log_evidence - exact_of_two_modes(1.0)[0]
    assert float(off.square().mean().sqrt()) <= 0.1


def test_the_path_leads_from_what_is_drawn_to_the_posterior():
    run = TemperedSMC(64, 6, ess_threshold=0.6).run(PROGRAMS["fixed_length"], seed=SEED)
    exponents, moves = run.history["exponent"], run.history["num_moves"]
    assert bool((exponents.diff() > 0).all())
    assert float(exponents[0]) > 0
    assert float(exponents[-1]) == 1.0
    assert bool(((moves >= 1) & (moves <= 32)).all())
    levels = len(exponents)
    assert run.history["ess"].shape == run.history["log_evidence_increment"].shape == (levels, 6)
    assert torch.allclose(run.history["log_evidence_increment"].sum(0), run.log_evidence)
    assert 0 < float(run.history["move_accepted"].min()) <= 1
    assert run.lineage is not None
    assert run.log_proposal is None


def test_the_pilot_is_on_the_bill():
    """Of one more population than there are replicates, and nothing of it is used."""
    one, four = (TemperedSMC(32, r, num_moves=3).run(PROGRAMS["fixed_length"], seed=SEED) for r in (1, 4))
    assert one.cost.lm_tokens > 32 * 4 * 2
    assert four.log_weight.shape == (4, 32)


def test_waste_free_keeps_all_states_of_the_last_chains():
    run = TemperedSMC(16, 3, num_moves=4, waste_free=True).run(PROGRAMS["with_eos"], seed=SEED)
    assert run.log_weight.shape == (3, 16 * 5)
    assert run.particles["x"].tokens.shape[:2] == (3, 80)


def test_the_next_exponent_leaves_the_share_that_was_asked_for():
    log_weight = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED)) * 5
    for threshold in (0.3, 0.5, 0.9):
        e = next_exponent(log_weight, 0.1, threshold)
        assert Weights((e - 0.1) * log_weight).ess == pytest.approx(threshold * 400, rel=1e-6)
    assert next_exponent(log_weight / 100, 0.2, 0.5) == 1.0
    dead = torch.cat([log_weight, torch.full((400,), -torch.inf)])
    assert next_exponent(dead, 0.1, 0.5) == next_exponent(log_weight, 0.1, 0.5), "of those alive"


def test_how_much_weights_remember():
    first = torch.linspace(0, 1, 50).double()
    assert correlation(first, first) == pytest.approx(1)
    assert correlation(first, 0.9 * first + 3) == pytest.approx(1)
    assert correlation(first, 1 - first) == pytest.approx(-1)
    assert correlation(first, torch.zeros(50).double()) == 0, "nothing is left to remember"


def test_moves_that_lead_nowhere_are_said(caplog):
    """Two modes that a redrawn suffix hardly connects: in a few moves particles stay where they are."""
    run = TemperedSMC(64, 2, max_moves=2).run(two_modes, seed=SEED)
    (said,) = [line for line in caplog.messages if "raise max_moves (2)" in line]
    assert "moves leave much as it was" in said
    assert float(run.history["move_correlation"].max()) > 0.2
    caplog.clear()
    TemperedSMC(64, 2, num_moves=2).run(two_modes, seed=SEED)
    assert "max_moves" not in caplog.text, "so many were asked for"


@pytest.mark.parametrize("twist", [None, "lookahead"])
def test_hard_constraints_and_what_looks_ahead_to_them(twist):
    oracle = Oracle(constrained_programs.contains)
    engine = TemperedSMC(40, 200, twist=twist, num_moves=2)
    run = engine.run(constrained_programs.contains, seed=SEED)
    ratio = (run.log_evidence - oracle.log_evidence).exp()
    assert abs(float(mean_z(ratio, 1.0))) < 4
    assert run.steered == (twist is not None)


def test_a_replicate_that_dies_is_an_estimate_of_zero():
    def rare() -> None:
        x = completion("x", LETTERS, "", max_new_tokens=2)
        reward("bb", lambda tokens: torch.where((tokens == 2).all(-1), 0.0, -torch.inf), x.tokens)

    run = TemperedSMC(40, 400, num_moves=1).run(rare, seed=SEED)
    assert bool(run.log_evidence.isneginf().any())
    assert abs(float(mean_z(run.log_evidence.exp(), 0.04))) < 4


def test_nothing_alive_is_an_error():
    def impossible() -> None:
        x = completion("x", LETTERS, "", max_new_tokens=2)
        reward("never", lambda tokens: torch.full((len(tokens),), -torch.inf), x.tokens)

    with pytest.raises(AllDeadError, match="weight zero in the pilot"):
        TemperedSMC(8, 2).run(impossible)


def test_a_kernel_that_moves_nothing_is_an_error():
    def only_a_latent() -> None:
        import pyro
        import pyro.distributions as dist

        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.factor("f", z)

    with pytest.raises(InputError, match="has nothing to move in this program"):
        TemperedSMC(8, 2, kernel=InfillMH()).run(only_a_latent)
    assert TemperedSMC(8, 2, kernel=SuffixMH()).run(only_a_latent).kind.has_evidence


def test_a_proposal_is_where_the_path_begins():
    oracle = oracle_of("with_eos")

    def nearly(rows):
        return (0.5 * rows.log_probs).log_softmax(-1)

    run = TemperedSMC(40, 200, proposal=nearly, kernel=Cycle(SuffixMH(), InfillMH())).run(PROGRAMS["with_eos"])
    assert abs(float(mean_z((run.log_evidence - oracle.log_evidence).exp(), 1.0))) < 4
    assert run.steered


def test_same_seed_same_run():
    first, again, other = (TemperedSMC(16, 2).run(PROGRAMS["with_eos"], seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.log_evidence, again.log_evidence)
    assert torch.equal(first.particles["x"].tokens, again.particles["x"].tokens)
    assert not torch.equal(first.log_evidence, other.log_evidence)


def test_progress_names_the_exponent():
    seen: list[tuple[int, int, str]] = []
    TemperedSMC(16, 2).run(PROGRAMS["fixed_length"], progress=lambda *said: seen.append(said))
    assert all("exponent" in note for _, _, note in seen)
    assert seen[-1][0] == seen[-1][1]
    assert MAX_LEVELS > 100


def test_it_says_what_a_constraint_costs_the_same_as_the_others():
    """The constraint of the program and a reward, tempered together."""

    def both() -> None:
        x = completion("x", LETTERS, "", max_new_tokens=4)
        constrain("ab", Regex("[ab]+"), x)
        reward("b", lambda tokens: (tokens == 2).double().sum(-1), x.tokens, beta=0.5)

    oracle = Oracle(both)
    run = TemperedSMC(40, 200, num_moves=2).run(both, seed=SEED)
    assert abs(float(mean_z((run.log_evidence - oracle.log_evidence).exp(), 1.0))) < 4
