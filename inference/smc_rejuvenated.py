"""SMC whose unfinished texts are moved, so that copies become different again.

For twists that resample often and early: after that many particles share their beginning. Every eight tokens each text
redraws its last words or a few in the middle. Where particles keep their own beginnings, `smc` does as well for less.
"""

from ppl_align import SMC
from ppl_align.kernels import Cycle, InfillMH, SuffixMH

engine = SMC(
    num_particles=32, num_replicates=4, twist="prefix", every=8, rejuvenate=Cycle(InfillMH(size=2), SuffixMH())
)
