"""Chains that redraw the ends of their texts, and a few tokens in the middle.

Many draws of one posterior, in the order in which they came: look at R-hat and effective sample size. There is no log
Z, and chains that agree may all have missed the same mode, so run something with evidence beside them.
"""

from ppl_align import MCMC
from ppl_align.kernels import Cycle, InfillMH, SuffixMH

engine = MCMC(Cycle(InfillMH(size=2), SuffixMH()), num_chains=16, num_samples=24, num_warmup=8)
