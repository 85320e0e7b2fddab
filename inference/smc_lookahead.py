"""SMC that looks ahead: a word that has to occur, an ending, a pattern, a length.

A pool of draws tells how likely `Contains`, `EndsWith`, an automaton of your own, `Regex` or `LengthLimit` is still to
be met from any prefix. Tokens are proposed and prefixes weighed by it. Constraints that cannot look ahead, and rewards,
are treated as without a twist.
"""

from ppl_align import SMC

engine = SMC(num_particles=32, num_replicates=4, twist="lookahead", num_pool=64)
