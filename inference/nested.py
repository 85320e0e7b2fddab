"""Decide instead of condition: plan over sampled answers.

For programs with `environment(...)`: a tool that may fail, a simulated user. Engines of conditioning tilt the
environment as well; this one, like `svi`, takes the world as it is and asks what to say in it. It needs no
training and no gradient, and its price is a power of the number of turns: (num_actions * num_outcomes) ** turns
histories for each episode. Where that is too many, `svi` trains a policy.
"""

from ppl_align import TreePlanner

engine = TreePlanner(num_actions=4, num_outcomes=2, num_particles=4, num_replicates=4)
