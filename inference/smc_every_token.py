"""Particles weighed at every token: rewards of any prefix.

Right for rewards that can be judged on any prefix (a sum over tokens, a log-probability, a prefix-closed reward):
particles that fall behind are replaced at once. (What is written with `constrain` is steered by every SMC.) Wrong for a
sentiment or a classifier, which read half a sentence badly: resampling on that noise loses diversity, and the evidence
comes out too low more often than not. It is also the dearest in reward calls: one per particle and token.
"""

from ppl_align import SMC

engine = SMC(num_particles=32, num_replicates=4, twist="prefix", every=1)
