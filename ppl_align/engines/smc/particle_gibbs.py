"""Particle Gibbs: a Markov chain whose step is a run of conditional SMC."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from ppl_align.core.errors import InputError
from ppl_align.core.progress import silent
from ppl_align.engines.base import Engine, Task
from ppl_align.engines.chains import begun, check_chains, of_chains
from ppl_align.engines.smc.ancestor_sampling import AncestorSampling
from ppl_align.engines.smc.smc import SMC
from ppl_align.engines.smc.twisted import TwistedSMC
from ppl_align.kernels.kernel import learned_once
from ppl_align.particles.particles import Particles
from ppl_align.particles.resampling import draw_by
from ppl_align.posterior import Posterior
from ppl_align.runner.proposals import as_proposal


@dataclass(frozen=True)
class ParticleGibbs(Engine):
    """``num_chains`` chains; at each step a chain retains its state x in a population of SMC, and goes on from one of
    the particles, drawn by weight. That leaves the posterior as it is for any number of particles.

    ``engine``             the SMC whose conditional runs they are (its ``num_particles``: N, the retained one included)
    ``ancestor_sampling``  the retained state may take its beginning from another particle
                           (:mod:`ppl_align.engines.smc.ancestor_sampling`); asks for ``resampling="multinomial"``
    ``num_samples``, ``num_warmup``, ``thinning``, ``init``  as of :class:`~ppl_align.MCMC`

    There is no log Z. ``history["accepted"]`` [steps, chains]: has the state changed? Where the world answers
    (``environment``) it is asked about other beginnings than its own: take ``ancestor_sampling=False`` there.
    Sources: Andrieu, Doucet & Holenstein 2010; Lindsten, Jordan & Schön 2014 (arXiv:1401.0604).
    """

    engine: SMC = field(default_factory=lambda: SMC(16, twist="prefix", resampling="multinomial"))
    num_chains: int = 8
    num_samples: int = 32
    num_warmup: int = 16
    thinning: int = 1
    ancestor_sampling: bool = True
    init: Posterior | None = None

    name: ClassVar[str] = "particle_gibbs"

    def __post_init__(self) -> None:
        check_chains(self.num_chains, self.num_samples, self.num_warmup, self.thinning, self.init)
        if not isinstance(self.engine, SMC):
            raise InputError(
                f"engine= takes an SMC, whose conditional runs these are, got {type(self.engine).__name__}"
            )
        if self.engine.rejuvenate is not None:
            raise InputError("the retained state is not moved: take SMC without rejuvenate= in ParticleGibbs")
        if self.engine.num_particles < 2:
            raise InputError("ParticleGibbs needs an SMC of two particles or more: one is the state itself")
        if self.ancestor_sampling and self.engine.resampling != "multinomial":
            raise InputError(
                'ancestor_sampling asks for SMC(..., resampling="multinomial"): the others are drawn independently of '
                "the retained particle"
            )

    @property
    def texts_at_once(self) -> int:
        return self.num_chains * self.engine.num_particles

    def _infer(self, task: Task) -> Posterior:
        quiet = replace(task, progress=silent)
        smc = replace(self.engine, num_replicates=self.num_chains)
        proposal, parts = as_proposal(smc.proposal), learned_once(smc.twists)
        state = begun(quiet.runner(proposal), self.init, self.num_chains)
        states: list[Particles] = []
        changed = []
        total = self.num_warmup + self.num_samples * self.thinning
        for step in range(1, total + 1):
            runner = replace(quiet, retained=state.values).runner(proposal, smc.num_particles)
            ancestry = AncestorSampling(runner.program, state.values) if self.ancestor_sampling else None
            sweep = TwistedSMC(smc, runner, parts, ancestry)
            particles = runner.finish(Particles(self.num_chains * smc.num_particles), sweep)
            if ancestry is not None and particles.environment:
                raise InputError("where the world answers, take ParticleGibbs(ancestor_sampling=False)")
            chosen = draw_by(sweep.log_weight) + torch.arange(self.num_chains) * smc.num_particles
            before, state = state, particles.take(chosen)
            changed.append(_differ(before, state))
            if step > self.num_warmup and (step - self.num_warmup) % self.thinning == 0:
                states.append(state)
            task.progress(step, total, f"conditional runs, {changed[-1].double().mean():.0%} of states changed")
        return of_chains(states, {"accepted": torch.stack(changed), "num_warmup": self.num_warmup})


def _differ(one: Particles, other: Particles) -> torch.Tensor:
    """bool [P]: do they differ in any value?"""
    same = [
        (value == other.values[name].to(value.device)).reshape(one.size, -1).all(-1).cpu()
        for name, value in one.values.items()
    ]
    return ~torch.stack(same).all(0)


__all__ = ["ParticleGibbs"]
