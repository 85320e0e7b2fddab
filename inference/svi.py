"""Train a proposal first, then draw from it and weigh.

Right when the same posterior will be drawn from many times, or when the prior hardly ever finds what the rewards
ask for: the training is paid once. The proposal is a low-rank head on the frozen LM (for toys, a table of prefixes).
The draws carry weights p*/q, so what the guide got wrong is visible on what it visits. Rewards of -inf cannot be
trained on: use `smc_every_token` for hard constraints. A low rank learns fastest from few draws.
"""

from ppl_align import SVI

engine = SVI(num_steps=50, num_particles=32, num_replicates=4, guide="auto", rank=1)
