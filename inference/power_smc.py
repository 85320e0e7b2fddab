"""SMC for a power of the prior, on texts that may end.

For programs with `power(..., alpha=2)`: what the model finds probable as a whole. Tokens are drawn at temperature 1/alpha,
and the exponent that prefixes are weighed by grows to alpha over the first tokens, for texts that have ended as for those
that go on. Better than `smc_tempered` where texts end at different lengths. For another alpha change both numbers; for a
large one (4) also try a temperature between 1/alpha and 1, and keep the one whose replicates agree better on log Z.
Rewards beside the power are not asked until a text has ended.
"""

from ppl_align import SMC
from ppl_align.kernels import at_temperature
from ppl_align.twists import PowerRamp

engine = SMC(num_particles=128, num_replicates=4, twist=PowerRamp(2.0, tokens=4), proposal=at_temperature(0.5))
