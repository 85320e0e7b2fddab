"""Particles weighed at sentence ends, resampled at low ESS.

Right when a prefix already tells how good the whole will be: several sentences, rewards that add up along the text,
constraints that can fail early, or programs with several completions. The rewards are asked about unfinished text,
but only where a sentence has ended, so that they see something they can read. For a reward that shows its hand only
in the last word, `importance` does as well for less.
"""

from ppl_align import SMC

engine = SMC(num_particles=32, num_replicates=4, twist="prefix", every="sentence")
