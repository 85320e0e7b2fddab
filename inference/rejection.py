"""Exact draws of the posterior: the judge of the others.

Right when every reward has a known largest value and that value can be reached: draws of the prior are accepted with
probability exp(likelihood - its maximum), one in exp(B) / Z. It is dear, and says how dear before it starts. Run it
beside another engine: its draws are the only ones that can show a mode which that engine has never visited, and one
of them, retained, bounds log Z from above. When it refuses, the posterior is too far from the prior: take `svi`.
"""

from ppl_align import Rejection

engine = Rejection(num_particles=16, num_replicates=4, max_draws=20_000)
