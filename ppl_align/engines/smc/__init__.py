"""Sequential Monte Carlo, twisted or not."""

from ppl_align.engines.smc.particle_gibbs import ParticleGibbs
from ppl_align.engines.smc.smc import SMC

__all__ = ["SMC", "ParticleGibbs"]
