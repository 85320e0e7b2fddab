"""A run that misses part of the target looks perfect from within; another run tells. Those that miss nothing are left
alone."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from conftest import SEED
from toys.worlds import HOST, speaker

from ppl_align import (
    SMC,
    SVI,
    Contains,
    Enumeration,
    ImportanceSampling,
    Posterior,
    Rejection,
    compare,
    completion,
    constrain,
    reward,
)
from ppl_align.cli import main
from ppl_align.diagnostics.advisor import best_run, complaints
from ppl_align.diagnostics.blind_spots import BlindSpot, blind_spot
from ppl_align.guides.program import ProgramGuide

RARE = speaker(0.6, 0.08, 0.32, name="rare")
NEVER = speaker(0.6 / 0.92, 0.0, 0.32 / 0.92, name="never")


def says(word: str):
    return lambda texts: [float(word in text) for text in texts]


def two_words():
    """The answer says no now and then; what comes after makes log Z noisy, and hides that."""
    answer = completion("answer", RARE, " hm", max_new_tokens=1)
    more = completion("more", HOST, " hm", max_new_tokens=3)
    reward("refuses", says("no"), answer, beta=4.0)
    reward("eager", lambda texts: [text.count("yes") ** 2 / 2 for text in texts], more)


def never_no():
    pyro.sample("answer", NEVER.completion(" hm", 1))
    pyro.sample("more", HOST.completion(" hm", 3))


def blind(seed: int = 0, particles: int = 600) -> Posterior:
    run = ImportanceSampling(particles, 4, proposal=ProgramGuide(never_no)).run(two_words, seed=seed)
    run.engine = "blind"
    return run


def test_a_run_that_misses_part_of_the_target_is_named_and_not_recommended():
    truth = Enumeration().run(two_words).mean("refuses").value
    assert 0.05 < truth < 0.15
    for seed in range(5):
        runs = {"blind": blind(seed + 100 * SEED), "is": ImportanceSampling(400, 4).run(two_words, seed=seed)}
        spot = blind_spot(runs["blind"], runs)
        assert spot is not None
        assert (spot.reward, spot.value, spot.witness) == ("refuses", 0.0, "is")
        assert 0 < spot.share < truth
        assert blind_spot(runs["is"], runs) is None
        assert best_run(runs) == "is"
        advice = compare(runs).advice
        assert "blind" not in advice.verdict
        said = [line for line in advice.reasons if line.startswith("blind: ")]
        assert "the reward 'refuses' is 0 on all its draws, but is found other values on " in said[0]


def test_alone_it_looks_perfect_and_the_exact_answer_tells_too():
    run = blind()
    assert complaints(run, {"blind": run}) == []
    exact = Enumeration().run(two_words)
    spot = blind_spot(run, {"blind": run, "exact": exact})
    assert spot is not None
    assert spot.witness == "exact"
    assert blind_spot(exact, {"blind": run, "exact": exact}) is None


def test_draws_of_weight_zero_show_nothing():
    runs = {"blind": outside(blind(), "refuses", 1.0), "is": ImportanceSampling(400, 4).run(two_words, seed=0)}
    assert blind_spot(runs["blind"], runs) is not None


def test_few_draws_may_all_be_the_same_by_chance():
    few = blind(particles=3)
    runs = {"few": few, "is": ImportanceSampling(400, 4).run(two_words, seed=0)}
    assert few.log_weight.numel() == 12
    assert blind_spot(few, runs) is None


def converging(beta: float):
    answer = completion("answer", HOST, " hm", max_new_tokens=2)
    reward("kind", says("yes"), answer, beta=beta, upper=1.0)


@pytest.mark.parametrize("beta", [0.06, 0.15, 0.3, 1.0])
def test_a_converged_run_beside_a_weighted_one(beta: float):
    """The weighted run holds draws of a lower reward, which weigh exp(-1 / beta) each."""
    for seed in range(12):
        engines = (ImportanceSampling(64, 4), SMC(32, 4, twist="prefix"), Rejection(24, 4))
        runs = {engine.name: engine.run(converging, beta, seed=seed + 100 * SEED) for engine in engines}
        assert {name: blind_spot(run, runs) for name, run in runs.items()} == dict.fromkeys(runs)
        for name, run in runs.items():
            assert blind_spot(run, {"exact": Enumeration().run(converging, beta), name: run}) is None
    values = {name: run.rewards["kind"] for name, run in runs.items()}
    assert 0 < float(values["importance"].mean()) < 1
    if beta < 0.1:
        assert bool((values["rejection"] == 1).all())


def test_a_trained_guide_that_has_converged():
    runs = {engine.name: engine.run(converging, 0.1, seed=SEED) for engine in (ImportanceSampling(64, 4), SVI())}
    assert {name: blind_spot(run, runs) for name, run in runs.items()} == dict.fromkeys(runs)


def ruled_out():
    answer = completion("answer", HOST, " hm", max_new_tokens=2)
    constrain("friendly", Contains("yes"), answer)
    reward("kind", says("yes"), answer, beta=0.5)
    reward("never no", lambda texts: [-math.inf if "no" in text else 0.0 for text in texts], answer)


def test_what_the_posterior_conditions_on_is_rightly_constant():
    runs = {e.name: e.run(ruled_out, seed=SEED) for e in (ImportanceSampling(64, 4), SMC(32, 4), Enumeration())}
    runs["from the prior"] = outside(runs["importance"], "kind", 0.0)
    assert len(runs["from the prior"].rewards["kind"].unique()) == 2
    assert {name: blind_spot(run, runs) for name, run in runs.items()} == dict.fromkeys(runs)


def outside(run: Posterior, name: str, value: float) -> Posterior:
    """The same with draws of weight zero, of another reward, in front of each replicate."""
    wider = torch.cat([torch.arange(run.log_weight.shape[1])] * 2).repeat(len(run.log_weight), 1)
    offset = torch.arange(len(run.log_weight))[:, None] * run.log_weight.shape[1]
    weight = torch.cat([torch.full_like(run.log_weight, -torch.inf), run.log_weight + math.log(2)], -1)
    r = torch.cat([torch.full_like(run.log_weight, value), run.rewards[name]], -1)
    twice = run.take(wider + offset, log_weight=weight)
    twice.rewards = {**twice.rewards, name: r}
    return twice


def rarely(beta: float = 0.05):
    answer = completion("answer", speaker(0.004, 0.6, 0.396, name="gruff"), " hm", max_new_tokens=1)
    reward("kind", says("yes"), answer, beta=beta)
    reward("refuses", says("no"), answer, beta=beta * 40)


def test_a_witness_that_missed_the_mode_itself_is_not_believed():
    """exp(20) * 0.004: all of the target says yes, and importance sampling with few draws has not found that."""
    missed = next(r for r in (ImportanceSampling(20, 4).run(rarely, seed=s) for s in range(9)) if says_no(r))
    found = ImportanceSampling(20, 4, proposal=HOST).run(rarely)
    runs = {"missed": missed, "found": found}
    assert blind_spot(found, runs) is None
    spot = blind_spot(missed, runs)
    assert spot is not None
    assert spot.reward == "kind"
    assert spot.share > 0.99
    assert best_run(runs) == "found"


def test_a_reward_that_is_worth_very_many_nats():
    def decisive():
        reward("refuses", says("no"), completion("answer", RARE, " hm", max_new_tokens=1), beta=0.02)

    def guide():
        pyro.sample("answer", NEVER.completion(" hm", 1))

    runs = {
        "blind": ImportanceSampling(600, 4, proposal=ProgramGuide(guide)).run(decisive),
        "is": ImportanceSampling(400, 4).run(decisive),
    }
    spot = blind_spot(runs["blind"], runs)
    assert spot is not None
    assert spot.share == 1.0, "as far as floating point goes"
    assert "is found other values on 99% of the posterior or more" in str(spot)
    assert best_run(runs) == "is"


def test_small_shares_are_not_rounded_to_nothing():
    assert " on 0.3% of the posterior or more" in str(BlindSpot("r", 0.0, "is", 0.0031))
    assert " on 7% of the posterior or more" in str(BlindSpot("r", 0.0, "is", 0.0731))


def says_no(run: Posterior) -> bool:
    return float(run.rewards["kind"].max()) == 0


def test_a_reward_that_applies_to_nothing_one_run_saw():
    def sometimes():
        answer = completion("answer", RARE, " hm", max_new_tokens=1)
        reward("tone", lambda texts: [None if "no" not in text else 0.5 for text in texts], answer)

    def guide():
        pyro.sample("answer", NEVER.completion(" hm", 1))

    runs = {
        "blind": ImportanceSampling(200, 4, proposal=ProgramGuide(guide)).run(sometimes),
        "exact": Enumeration().run(sometimes),
    }
    assert "the reward 'tone' does not apply to any of its draws" in str(blind_spot(runs["blind"], runs))


def test_compare_on_the_command_line(tmp_path, capsys: pytest.CaptureFixture[str]):
    blind().save(tmp_path / "blind.nc")
    ImportanceSampling(400, 4).run(two_words, seed=0).save(tmp_path / "is.nc")
    assert main(["compare", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "- blind: the reward 'refuses' is 0 on all its draws" in out
    assert "=> Nothing speaks against is" in out  # its 5% of refusals want more draws
