"""A guide that writes next to nothing is named: alone, beside other runs, and as another engine's proposal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from conftest import SEED
from torch import Tensor
from toys.lms import ABC
from toys.rewards import ones
from toys.synthetic import exact, importance, svi

from ppl_align import SVI, CausalLM, Enumeration, ImportanceSampling, MarkovLM, Posterior, compare, completion, reward
from ppl_align.diagnostics.collapse import (
    below_a_bound,
    collapsed,
    first_elbo,
    mean_log_likelihood,
    one_draw,
    worse_than_it_began,
)
from ppl_align.posterior import evidence
from ppl_align.testing.oracle import Oracle

Program = Callable[[], None]


def letters(beta: float = 1.0, lower: float | None = None, upper: float | None = None, weight: float = 1.0) -> None:
    x = completion("x", ABC, [0], max_new_tokens=5)
    reward("r", ones, x.tokens, beta=beta, lower=lower, upper=upper, weight=weight)


def far_off(rows: torch.Tensor | object) -> Tensor:
    """A proposal that writes nothing but c, the least likely and least wanted."""
    return torch.tensor([[-200.0, -200.0, 0.0]]).double().log_softmax(-1).expand(len(rows.prompts), -1)  # type: ignore


NETWORK_SVI = SVI(num_steps=40, guide="head", learning_rate=3.0)


@pytest.fixture(scope="module")
def network(tiny_llama: CausalLM) -> Program:
    def program() -> None:
        reward("r", ones, completion("x", tiny_llama, [1, 2], max_new_tokens=8).tokens, lower=0.0, upper=8.0)

    return program


@pytest.fixture(scope="module")
def broken(network: Program) -> Posterior:
    """A head that was trained with steps far too large."""
    run = NETWORK_SVI.run(network)
    assert len(run.table()) == 1, "the premise: one text"
    return run


def test_alone_it_is_named_and_cannot_be_trusted(broken: Posterior) -> None:
    found = compare({"svi": broken})
    assert found.advice.standing == "unsound"
    assert "what it draws from has collapsed" in found.advice.verdict
    assert max(map(len, str(found).splitlines())) <= 80


def test_as_a_proposal_it_is_named(broken: Posterior, network: Program) -> None:
    run = ImportanceSampling(64, 4, proposal=broken.guide).run(network)
    assert compare({"is": run}).advice.standing == "unsound"
    assert "collapsed" in compare({"is": run}).advice.verdict
    beside = compare({"guided": run, "svi": broken, "plain": ImportanceSampling(256, 4).run(network)})
    assert beside.reference["best_run"] == "plain"
    assert "plain" in beside.advice.verdict
    assert "guided" not in beside.advice.verdict
    assert "svi" not in beside.advice.verdict


def test_a_file_remembers_what_it_takes(broken: Posterior, tmp_path) -> None:
    back = Posterior.load(broken.save(tmp_path / "run.nc"))
    assert collapsed(back, {"svi": back}) == collapsed(broken, {"svi": broken}) != []


# -- each finding by itself -------------------------------------------------------------------------------------------


def test_one_draw() -> None:
    run = ImportanceSampling(8, 4, proposal=far_off).run(letters)
    assert one_draw(run, {"is": run}) == "all 32 of its draws are the same ('ccccc'): what it draws from has collapsed"
    assert one_draw(ImportanceSampling(1, 1, proposal=far_off).run(letters), {}) is None
    two = ImportanceSampling(8, 4, proposal=far_off).run(letters)
    two.particles["x"].tokens[0, 0, 0] = 1  # type: ignore[union-attr]
    assert one_draw(two, {}) is None


def test_a_prior_that_always_writes_the_same_has_not_collapsed() -> None:
    sure = MarkovLM(1000 * torch.eye(3).double(), tokens=["a", "b", "c"])

    def program() -> None:
        reward("r", ones, completion("x", sure, [1], max_new_tokens=4).tokens)

    for engine in (ImportanceSampling(16, 4), SVI(4), ImportanceSampling(16, 4, proposal=ABC)):
        run = engine.run(program)
        assert collapsed(run, {"run": run}) == []


def test_where_one_text_is_all_there_is_another_run_vouches_for_it() -> None:
    guide = lambda rows: torch.tensor([[-200.0, 0, -200.0]]).double().expand(len(rows.prompts), -1)  # noqa: E731
    run = ImportanceSampling(8, 4, proposal=guide).run(letters, beta=0.02)
    assert one_draw(run, {"guided": run}) is not None
    assert collapsed(run, {"guided": run, "exact": Enumeration().run(letters, beta=0.02)}) == []


@pytest.mark.parametrize(("lower", "weight", "upper"), [(0.0, 1.0, None), (None, -1.0, 5.0)])
def test_below_what_declared_bounds_allow(lower: float | None, weight: float, upper: float | None) -> None:
    """log Z >= inf psi, whichever side bounds it; and where no bound is declared nothing is said."""
    options = {"lower": lower, "upper": upper, "weight": weight, "beta": 1.0}
    least = -5.0 if weight < 0 else 0.0
    run = ImportanceSampling(32, 4).run(letters, **options)
    assert run.history["log_lower"] == least
    assert below_a_bound(run, {"is": run}) is None
    run.log_weight = run.log_weight - evidence.log_evidence(run) + least - 3
    said = below_a_bound(run, {"is": run}) or ""
    assert f"by the bounds of its rewards it is {least:.3g} or more" in said
    assert "log_lower" not in ImportanceSampling(32, 4).run(letters).history
    one_sided = {"upper": 5.0} if weight > 0 else {"lower": 0.0}
    assert "log_lower" not in ImportanceSampling(32, 4).run(letters, weight=weight, **one_sided).history


def test_a_bound_says_nothing_where_texts_may_be_rejected() -> None:
    def rejecting() -> None:
        x = completion("x", ABC, [0], max_new_tokens=5)
        reward("r", lambda t: torch.where(ones(t) < 3, -math.inf, ones(t)), x.tokens, lower=0.0, upper=5.0)

    oracle, run = Oracle(rejecting), ImportanceSampling(256, 4).run(rejecting)
    assert run.history["log_lower"] == 0.0
    assert below_a_bound(run, {"is": run}) is None
    assert oracle.log_evidence < 5


def test_below_what_draws_of_the_prior_say() -> None:
    """Jensen: E_p0[log w], against enumeration, is at most log Z; a run below it has missed most."""
    oracle, plain = Oracle(letters), ImportanceSampling(2000, 1).run(letters)
    found = mean_log_likelihood(plain)
    assert found is not None
    value, error = found
    jensen = float((oracle.log_prior.exp() * oracle.log_potential).sum())
    assert abs(value - jensen) < 4.5 * error
    assert jensen < oracle.log_evidence
    run = ImportanceSampling(64, 4, proposal=far_off).run(letters)
    assert below_a_bound(run, {"guided": run}) is None
    assert "by is's draws of the prior (Jensen)" in (below_a_bound(run, {"guided": run, "is": plain}) or "")
    for honest in (SVI(40).run(letters), plain, ImportanceSampling(64, 4, proposal=ABC).run(letters)):
        assert below_a_bound(honest, {"run": honest, "is": plain}) is None


def test_the_first_step_of_training_is_the_bound_of_the_prior() -> None:
    """The guide begins as the prior: its first ELBO estimates E_p0[psi], with an error that covers."""
    oracle = Oracle(letters)
    jensen = float((oracle.log_prior.exp() * oracle.log_potential).sum())
    off = [first_elbo(SVI(2, num_particles=64, num_replicates=1).run(letters, seed=SEED + s)) for s in range(60)]
    z = torch.tensor([(one.value - jensen) / one.standard_error for one in off if one is not None])
    assert len(z) == 60
    assert abs(float(z.mean())) < 4 / math.sqrt(60)
    assert 0.6 < float(z.std()) < 1.5


def test_a_loss_that_ends_above_where_it_began() -> None:
    run = svi()
    assert worse_than_it_began(run) is None, "no errors are known of this one"
    up = torch.linspace(-1.0, 4.0, 30)
    run.history = {"loss": up, "loss_error": torch.full((30,), 0.3)}
    assert "its loss ends at 3.57, above where it began (-1)" in (worse_than_it_began(run) or "")
    run.history = {"loss": -up, "loss_error": torch.full((30,), 0.3)}
    assert worse_than_it_began(run) is None
    run.history = {"loss": -1 + up * 0.01, "loss_error": torch.full((30,), 0.3)}
    assert worse_than_it_began(run) is None


def test_errors_of_the_loss_are_those_of_its_draws() -> None:
    run = SVI(7, num_particles=32).run(letters)
    assert run.history["loss"].shape == run.history["loss_error"].shape == (7,)
    assert bool((run.history["loss_error"][:2] > 0).all())


# -- and nobody else --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [4.0, 1.0, 0.3])
def test_guides_that_learn_are_not_accused(beta: float) -> None:
    assert accused(beta, range(4)) == {}


def accused(beta: float, seeds: Iterable[int]) -> dict[str, list[str]]:
    """What is said of trained guides, beside each other and importance sampling."""
    runs = {f"svi {s}": SVI(40, num_particles=8).run(letters, beta=beta, lower=0.0, seed=SEED + s) for s in seeds}
    runs["is"] = ImportanceSampling(64, 4).run(letters, beta=beta, lower=0.0)
    return {name: found for name, run in runs.items() if (found := collapsed(run, runs))}


def test_exact_answers_exact_draws_and_decisions_are_left_alone(broken: Posterior) -> None:
    assert collapsed(exact(), {"exact": exact()}) == []
    assert collapsed(importance(), {"is": importance()}) == []
    deciding = replace(broken, kind="policy")
    assert collapsed(deciding, {"svi": deciding}) == []
