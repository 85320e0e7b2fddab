"""Whole texts, led from the prior to the posterior exponent by exponent.

For posteriors that importance sampling does not reach, where half a text does not yet tell how good the whole will be:
a classifier that reads the whole, two rewards that pull apart. A pilot chooses the path. Near the prior (about three
nats and less) `importance` needs fewer tokens, and where prefixes tell (rewards that add up along the text) `smc` does.
"""

from ppl_align import TemperedSMC
from ppl_align.kernels import SuffixMH

engine = TemperedSMC(num_particles=24, num_replicates=4, kernel=SuffixMH(), num_moves=3)
