"""What follows from the kind of a run: every kind, by an engine that leaves such particles."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from testing.test_contract_of_chains import Chain
from toys.worlds import HOST

from ppl_align import (
    SMC,
    SVI,
    ConditionalSMC,
    Engine,
    Enumeration,
    ImportanceSampling,
    Posterior,
    Rejection,
    TreePlanner,
    completion,
    environment,
    reward,
)
from ppl_align.core.estimate import Estimate
from ppl_align.posterior.kind import Kind, kind_of_flags
from ppl_align.posterior.run_summary import summary_of
from ppl_align.testing import Oracle
from ppl_align.testing.programs import EOS

LUCK = torch.tensor([0.9, 0.2, 0.5], dtype=torch.float64)


def text() -> None:
    x = completion("x", EOS, [0], max_new_tokens=3)
    reward("r", lambda t: 0.8 * (t == 1).sum(-1).double(), x.tokens, upper=2.4)


def bet() -> None:
    """The world says whether it pays: an engine decides what to write."""
    x = completion("x", HOST, " hm", max_new_tokens=2)
    paid = environment("paid", dist.Bernoulli(LUCK[x.tokens[..., 0]]))
    reward("r", lambda value: value, paid, beta=0.5, upper=1.0)


#                     has_evidence, independent, is_ordered, of_posterior
PROPERTIES = {
    Kind.ENUMERATION: (True, False, False, True),
    Kind.WEIGHTED: (True, True, False, True),
    Kind.RESAMPLED: (True, False, False, True),
    Kind.CONDITIONAL: (True, False, False, True),
    Kind.EXACT_DRAWS: (True, True, False, True),
    Kind.CHAIN: (False, False, True, True),
    Kind.POLICY: (False, True, False, False),
}
#             a number (#), NaN (?) or None (-) of: enumeration, weighted, resampled, conditional, exact, chain, policy
TOLD = {
    "log_z": "#####??",
    "log_evidence": "#####??",
    "standard_error": "#####--",
    "spread": "-####--",
    "kl": "#####??",
    "kl_is_lower_bound": "#######",
    "elbo": "-------",
    "decision_value": "------#",
    "ess": "-####--",
    "largest_weight": "-####--",
    "effective_draws": "#######",
    "unique_ancestors": "-####--",
    "distinct_completions": "#######",
    "entropy": "#######",
    "distinct_ngrams": "#######",
    "precision": "-##-#--",
    "precision_interval": "-##----",
}
"""Conditional: its log Z is a bound and states no error, so it has no precision. Exact draws: the precision is that of
how long they waited, whose interval nobody knows."""
STEERED = SMC(16, 4, twist="prefix", ess_threshold=0.9)


@pytest.fixture(scope="module")
def runs() -> dict[Kind, Posterior]:
    """Four populations by each engine, or all there is."""
    exact = Oracle(text).sample(1, 4, seed=0)
    return {
        Kind.ENUMERATION: Enumeration().run(text),
        Kind.WEIGHTED: ImportanceSampling(64, 4).run(text, seed=1),
        Kind.RESAMPLED: STEERED.run(text, seed=1),
        Kind.CONDITIONAL: ConditionalSMC(STEERED, exact).run(text, seed=1),
        Kind.EXACT_DRAWS: Rejection(16, 4).run(text, seed=1),
        Kind.CHAIN: Chain(200, 4).run(text, seed=1),
        Kind.POLICY: TreePlanner(num_actions=4, num_outcomes=4, num_particles=16, num_replicates=4).run(bet, seed=1),
    }


each_kind = pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.value)


@each_kind
def test_its_properties(kind: Kind) -> None:
    assert (kind.has_evidence, kind.independent, kind.is_ordered, kind.of_posterior) == PROPERTIES[kind]


@each_kind
def test_an_engine_says_which_it_is_and_the_run_follows(kind: Kind, runs: dict[Kind, Posterior]) -> None:
    run = runs[kind]
    assert run.kind is kind
    assert run.exact == (kind is Kind.ENUMERATION)
    assert run.draws_are_exact == (kind is Kind.EXACT_DRAWS)
    assert run.independent == PROPERTIES[kind][1]
    assert run.target == ("posterior" if PROPERTIES[kind][3] else "decision")


@each_kind
def test_log_evidence_is_a_number_where_weights_estimate_it(kind: Kind, runs: dict[Kind, Posterior]) -> None:
    run = runs[kind]
    found = run.log_evidence
    assert found.shape == run.log_weight.shape[:1]
    assert bool((found.isfinite() if PROPERTIES[kind][0] else found.isnan()).all())


def said(value: Any) -> str:
    if value is None:
        return "-"
    numbers = value if isinstance(value, tuple) else (value,)
    first = numbers[0] if isinstance(value, Estimate) else sum(numbers)
    return "?" if math.isnan(first) else "#"


@pytest.mark.parametrize("name", TOLD)
def test_what_a_summary_tells_of_each_kind(name: str, runs: dict[Kind, Posterior]) -> None:
    assert "".join(said(getattr(summary_of(runs[kind]), name)) for kind in Kind) == TOLD[name]


@each_kind
def test_what_a_summary_tells_of_each_reward(kind: Kind, runs: dict[Kind, Posterior]) -> None:
    told = summary_of(runs[kind])
    assert told.rewards.keys() == told.own_rewards.keys() == {"r"}
    assert math.isfinite(told.rewards["r"].value)
    assert told.rewards["r"].stated == (kind is not Kind.CONDITIONAL), "one of its particles was given"
    assert told.own_rewards == {"r": None}, "nobody has trained a guide"
    assert set(told.rhats) == (set() if kind in (Kind.ENUMERATION, Kind.POLICY) else {"r"})
    assert bool(told.unstated) == (kind is Kind.CONDITIONAL)


def test_a_trained_guide_is_weighted_or_a_policy_and_tells_of_itself() -> None:
    engine = SVI(num_steps=5, num_particles=64, num_replicates=4)
    weighted, policy = engine.run(text), engine.run(bet)
    assert (weighted.kind, policy.kind) == (Kind.WEIGHTED, Kind.POLICY)
    assert said(summary_of(weighted).elbo) == "#"
    assert said(summary_of(policy).elbo) == "-", "its J is no bound of log Z"
    for run in (weighted, policy):
        assert said(summary_of(run).own_rewards["r"]) == "#"
        assert summary_of(run).rhats == {}, "replicates of one guide cannot disagree"


@each_kind
def test_a_row_has_the_same_keys_for_every_kind(kind: Kind, runs: dict[Kind, Posterior]) -> None:
    row = summary_of(runs[kind]).row()
    assert list(row) == list(summary_of(runs[Kind.ENUMERATION]).row())
    shape = (None, None) if kind is Kind.ENUMERATION else tuple(runs[kind].log_weight.shape)
    assert (row["num_replicates"], row["num_particles"]) == shape


@each_kind
def test_it_can_be_read(kind: Kind, runs: dict[Kind, Posterior]) -> None:
    run = runs[kind]
    written = run.summary()
    assert repr(run) == written
    assert written.startswith("Decision of bet" if kind is Kind.POLICY else "Posterior of text")
    assert ("log Z = " in written) == PROPERTIES[kind][0]
    assert ("J = " in written) == (kind is Kind.POLICY)
    assert ("Weight ESS" in written) == (TOLD["ess"][list(Kind).index(kind)] == "#")
    particles = {Kind.CHAIN: "states of Markov chains", Kind.POLICY: "episodes"}.get(kind, "weighted draws")
    assert f" x {run.log_weight.shape[1]} {particles} of x" in written
    assert run._repr_html_()


@each_kind
def test_a_file_keeps_it(kind: Kind, runs: dict[Kind, Posterior], tmp_path: Path) -> None:
    run = runs[kind]
    back = Posterior.load(run.save(tmp_path / "run.nc"))
    assert back.kind is kind
    row, again = summary_of(run).row(), summary_of(back).row()
    assert list(again) == list(row)
    for key, value in row.items():
        assert again[key] == (pytest.approx(value, rel=1e-12, nan_ok=True) if isinstance(value, float) else value), key


ALONE: dict[Kind, Engine] = {
    Kind.WEIGHTED: ImportanceSampling(256, 1),
    Kind.RESAMPLED: SMC(256, 1, twist="prefix", ess_threshold=0.9),
    Kind.EXACT_DRAWS: Rejection(64, 1),
    Kind.CHAIN: Chain(64, 1),
    Kind.POLICY: TreePlanner(num_actions=4, num_outcomes=4, num_particles=64, num_replicates=1),
}


@pytest.mark.parametrize("kind", ALONE, ids=lambda kind: kind.value)
def test_a_single_replicate_knows_its_error_where_particles_are_independent(kind: Kind) -> None:
    run = ALONE[kind].run(bet if kind is Kind.POLICY else text, seed=1)
    assert run.kind is kind
    assert run.mean("r").stated == PROPERTIES[kind][1]


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ((True, False, False, "posterior"), Kind.ENUMERATION),
        ((False, True, False, "posterior"), Kind.WEIGHTED),
        ((False, False, False, "posterior"), Kind.RESAMPLED),
        ((False, False, False, "posterior", "conditional"), Kind.CONDITIONAL),
        ((False, True, False, "posterior", "conditional"), Kind.CONDITIONAL),
        ((False, True, True, "posterior"), Kind.EXACT_DRAWS),
        ((False, True, False, "decision"), Kind.POLICY),
    ],
)
def test_flags_of_older_files(flags: tuple[Any, ...], kind: Kind) -> None:
    """(exact, independent, draws_are_exact, target[, engine])"""
    assert kind_of_flags(*flags) is kind
