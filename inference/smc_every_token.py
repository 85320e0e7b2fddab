"""Particles weighed at every token: for hard constraints.

Right for constraints that can be judged on any prefix (a forbidden word, a length, a format, a prefix-closed reward):
particles that have failed are replaced at once. Wrong for a sentiment or a classifier, which read half a sentence
badly: resampling on that noise loses diversity, and the evidence comes out too low more often than not. It is also
the dearest in reward calls: one per particle and token.
"""

from ppl_align import SMC

engine = SMC(num_particles=32, num_replicates=4, twist="prefix", every=1)
