"""The contract of an engine that decides: the world is left alone, and J is no more than can be had."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from toys.worlds import dialogue, game

from ppl_align import SVI, Engine, ImportanceSampling, TreePlanner
from ppl_align.posterior.kind import Kind
from ppl_align.testing import check_engine

WORLDS = {"game": game, "dialogue": dialogue}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "engine",
    [TreePlanner(num_actions=4, num_outcomes=4, num_particles=16), SVI(num_steps=20, num_particles=16)],
    ids=lambda engine: engine.name,
)
def test_engines_that_decide_keep_the_contract(engine):
    report = check_engine(engine, WORLDS, num_replicates=50)
    report.raise_if_failed()
    assert [result.status for result in report.results if result.check == "weights"] == ["passed"] * 2


@dataclass(frozen=True)
class Wishful(Engine):
    """Conditions the world, and passes its draws off as those of a policy."""

    num_particles: int = 64
    num_replicates: int = 4
    name: ClassVar[str] = "wishful"

    def _infer(self, task):
        run = ImportanceSampling(self.num_particles, self.num_replicates)._infer(task)
        weights = run.log_weight.softmax(-1)
        index = torch.multinomial(weights, self.num_particles, replacement=True)
        index = index + torch.arange(self.num_replicates)[:, None] * self.num_particles
        drawn = run.take(index)
        return replace(drawn, kind=Kind.POLICY, log_weight=torch.zeros_like(run.log_weight))


@dataclass(frozen=True)
class Boasting(Engine):
    """Plays by the prior and says that it was likelier to: its J is more than can be had."""

    num_particles: int = 64
    num_replicates: int = 4
    name: ClassVar[str] = "boasting"

    def _infer(self, task):
        run = ImportanceSampling(self.num_particles, self.num_replicates)._infer(task)
        zero = torch.zeros_like(run.log_weight)
        return replace(run, kind=Kind.POLICY, log_weight=zero, log_proposal=run.log_proposal - 20.0)


@pytest.mark.parametrize(
    ("engine", "says"),
    [(Wishful(), "expected the world to answer by its own law"), (Boasting(), "which the best of all policies gets")],
    ids=["wishful", "boasting"],
)
def test_engines_that_only_pretend_to_decide_fail(engine, says):
    report = check_engine(engine, WORLDS, num_replicates=50)
    assert "failed" in [result.status for result in report.results if result.check == "weights"]
    assert says in " ".join(str(report).split())
