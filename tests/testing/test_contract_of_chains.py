"""What the contract of engines means for a Markov chain, and that it notices chains that are wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from ppl_align import SMC, Engine, ImportanceSampling, Posterior, compare
from ppl_align.particles.particles import Particles
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.of_particles import of_particles
from ppl_align.posterior.selection import draws_of
from ppl_align.testing import PROGRAMS, check_engine

FEW = {name: PROGRAMS[name] for name in ("with_eos", "upstream_latent")}


@dataclass(frozen=True)
class Chain(Engine):
    """Redraws everything from the prior; ``accepts``: "rightly", "always" or "never"."""

    num_particles: int = 4
    num_replicates: int = 4
    accepts: str = "rightly"
    init: Posterior | None = None
    name: ClassVar[str] = "chain"

    def _infer(self, task):
        runner, size = task.runner(), self.num_replicates
        now = runner.finish(Particles(size)) if self.init is None else runner.given(draws_of(self.init, size))
        states = []
        for _ in range(self.num_particles):
            new = runner.redraw(now, next(iter(now.values))).particles
            ratio = new.log_weight - now.log_weight
            accept = {"always": ratio > -torch.inf, "never": ratio > torch.inf}.get(
                self.accepts, torch.rand(size).log() < ratio
            )
            now = new.where(accept, now)
            states.append(now)
        index = torch.arange(size * len(states)).reshape(len(states), size).T.reshape(-1)
        log_weight = torch.zeros(size, len(states), dtype=torch.float64)
        return of_particles(Particles.concat(states).take(index), log_weight, Kind.CHAIN)


def found(engine, check):
    report = check_engine(engine, FEW, num_replicates=500)
    return [result.status for result in report.results if result.check == check], report


def test_a_chain_that_is_right_passes():
    status, report = found(Chain(), "weights")
    assert status == ["passed"] * 2
    assert report, str(report)


@pytest.mark.parametrize(("accepts", "says"), [("always", "to end in such"), ("never", "every one is where it began")])
def test_a_chain_that_is_wrong_fails(accepts, says):
    status, report = found(Chain(accepts=accepts), "weights")
    assert "failed" in status
    assert says in " ".join(str(report).split())


def test_a_chain_that_says_not_where_it_begins_is_undecided():
    @dataclass(frozen=True)
    class Elsewhere(Engine):
        num_particles: int = 4
        num_replicates: int = 4
        name: ClassVar[str] = "elsewhere"

        def _infer(self, task):
            return Chain(self.num_particles, self.num_replicates)._infer(task)

    status, report = found(Elsewhere(), "weights")
    assert status == ["inconclusive"] * 2
    assert "give the engine a field init=" in " ".join(str(report).split())


def test_what_a_chain_is_to_everybody_else(tmp_path):
    run = Chain(50, 4).run(PROGRAMS["with_eos"])
    assert run.kind.is_ordered
    assert run.log_evidence.isnan().all()
    assert run.mean("r").standard_error > 0
    tokens = run.to_arviz()["completions"]["x_tokens"]
    assert torch.equal(torch.as_tensor(tokens.values).long(), run.particles["x"].tokens), "in their order"
    back = Posterior.load(run.save(tmp_path / "chain.nc"))
    assert back.kind is Kind.CHAIN
    assert "4 x 50 states of Markov chains" in run.summary()
    assert "log Z" not in run.summary()
    long = Chain(2000, 8).run(PROGRAMS["with_eos"])
    compared = compare({"chain": long, "importance": ImportanceSampling(500, 4).run(PROGRAMS["with_eos"])})
    assert "nan" not in str(compared)
    assert compared.save(tmp_path)
    assert compared.advice.standing == "sound"
    assert compared.advice.confirmed == ("chain", "importance")


def test_what_is_said_of_chains_alone():
    def advice(**settings):
        return compare([Chain(**settings).run(PROGRAMS["with_eos"])]).advice

    long = advice(num_particles=2000, num_replicates=8)
    assert long.standing == "unconfirmed", "nothing says that the chains have arrived"
    assert str(long).startswith("Nothing speaks against chain, but nothing confirms it either.")
    assert str(long).count("Chains cannot show that they have reached every mode") == 1
    short = advice(num_particles=400, num_replicates=8)
    assert short.standing == "unconfirmed"
    assert "it takes 1.01 to believe them" in str(short)
    assert "raise num_particles, not only num_replicates" in str(short)
    stuck = advice(num_particles=40, accepts="never")
    assert stuck.standing == "unsound"
    assert "4 of its 4 chains have never moved" in str(stuck)
    assert "Take a kernel that changes less at a time" in str(stuck)
    few = advice(num_particles=400, num_replicates=2)
    assert few.standing == "unsound"
    assert "2 chains cannot be held against each other, it takes 4" in str(few)


def test_draws_taken_from_chains_are_no_estimate_of_z():
    run = Chain(20, 4).run(PROGRAMS["with_eos"])
    taken = run.take(torch.tensor([[0, 5], [25, 70]]))
    assert taken.kind is Kind.CHAIN
    assert taken.log_evidence.isnan().all()
    resampled = SMC(20, 4, twist="prefix", ess_threshold=1.0).run(PROGRAMS["with_eos"])
    assert resampled.kind is Kind.RESAMPLED
    assert not resampled.take(torch.arange(8).reshape(4, 2)).independent, "they may share ancestors"
