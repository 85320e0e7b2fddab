"""Chains whose step is a run of SMC that keeps the state among its particles.

Right where SMC with a twist is a good engine, and more draws are wanted than one population holds. Each step costs a
population, and ancestor sampling reads the rest of its texts once more: dearer than `mcmc`, and less often stuck.
"""

from ppl_align import SMC, ParticleGibbs

engine = ParticleGibbs(
    SMC(num_particles=8, twist="prefix", every=6, resampling="multinomial"),
    num_chains=4,
    num_samples=8,
    num_warmup=2,
)
