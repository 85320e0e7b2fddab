"""SMC for a power of the prior: p(text)^2, texts may end.

For programs with `power(..., alpha=2)`. Tokens are drawn at temperature 1/alpha, and the exponent that prefixes are
weighed by grows to alpha over the first tokens, for texts that have ended as for those that go on. Where the power is
all there is, `smc_tempered` does as well; where there are rewards beside it, that one asks them about every prefix, and
this one about finished texts only. For another alpha change both numbers; for a large one (4) also try a temperature
between 1/alpha and 1, and keep the one whose replicates agree better on log Z.
"""

from ppl_align import SMC
from ppl_align.kernels import at_temperature
from ppl_align.twists import PowerRamp

engine = SMC(num_particles=128, num_replicates=4, twist=PowerRamp(2.0, tokens=4), proposal=at_temperature(0.5))
