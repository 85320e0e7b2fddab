"""Draw from the prior, weigh by the rewards: start here.

Right when the posterior is close to the prior (up to a few nats of KL). It is the cheapest engine, its weights are
easy to reason about, and it is the yardstick for the others: if its ESS is healthy, nothing else is needed. When
all the weight sits on a handful of completions, take `smc` or `svi`.
"""

from ppl_align import ImportanceSampling

engine = ImportanceSampling(num_particles=64, num_replicates=4)
