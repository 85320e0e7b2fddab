"""Draws that say they are draws of the prior are: prior means and the advice of a comparison rest on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ppl_align import Engine
from ppl_align.particles.particles import Particles
from ppl_align.particles.schemes import multinomial
from ppl_align.particles.weights import Weights
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.of_particles import of_particles
from ppl_align.testing import PROGRAMS, check_engine

FEW = {name: PROGRAMS[name] for name in ("with_eos", "upstream_latent")}


@dataclass(frozen=True)
class Resampled(Engine):
    """Draws of the prior, resampled at the end: properly weighted, and no draws of the prior any more."""

    num_particles: int = 32
    num_replicates: int = 4
    honest: bool = True
    name: ClassVar[str] = "resampled"

    def _infer(self, task):
        shape = (self.num_replicates, self.num_particles)
        drawn = task.runner().finish(Particles(self.num_replicates * self.num_particles))
        weights = Weights(drawn.log_weight.reshape(shape))
        ancestors = multinomial(weights.normalised) + torch.arange(shape[0])[:, None] * shape[1]
        now, log_weight = drawn.take(ancestors.reshape(-1)), weights.log_mean[:, None].expand(shape).clone()
        if self.honest:
            return of_particles(now, log_weight, Kind.RESAMPLED, log_proposal=None)
        return of_particles(now, log_weight, Kind.WEIGHTED)


def found(engine):
    report = check_engine(engine, FEW)
    return {check: [r.status for r in report.results if r.check == check] for check in ("scores", "Zhat", "weights")}


def test_what_was_moved_is_no_draw_of_the_prior():
    assert found(Resampled()) == {check: ["passed"] * 2 for check in ("scores", "Zhat", "weights")}
    wrong = found(Resampled(honest=False))
    assert wrong["Zhat"] == wrong["weights"] == ["passed"] * 2, "nothing else would tell"
    assert wrong["scores"] == ["failed"] * 2
