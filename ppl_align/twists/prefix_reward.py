"""The twist ``"prefix"``: what the rest of the program says of the text so far, as if it were the whole."""

from __future__ import annotations

from torch import Tensor

from ppl_align.twists.twist import Prefixes, Twist


class PrefixReward(Twist):
    """The program executed on unfinished texts; its prefix-closed factors, hard constraints among them, may reject.

    ``floor``: what any other factor of -inf is worth on a prefix, nats (at the end it is -inf). The lower, the more
    eagerly prefixes that have not succeeded yet are given up, and the heavier the tail of Zhat."""

    asks_program = True
    by_ids = True
    certain = True
    only_once = True
    names_its_errors = True

    def __init__(self, floor: float = -2.0) -> None:
        self.floor = floor

    def prefix(self, prefixes: Prefixes) -> Tensor:
        assert prefixes.said is not None
        return prefixes.said.prefix_potential(self.floor) - prefixes.log_potential.clamp_min(-1e300)
