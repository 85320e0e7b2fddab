"""What is known of an unfinished completion: constraints, rewards of prefixes, looks ahead, heads; one protocol."""

from ppl_align.twists.hard_constraint import HardConstraint
from ppl_align.twists.lookahead import LookAhead, look_ahead
from ppl_align.twists.power_ramp import PowerRamp
from ppl_align.twists.twist import Prefixes, PrefixReward, Scene, Sum, Twist

__all__ = [
    "HardConstraint",
    "LookAhead",
    "PowerRamp",
    "PrefixReward",
    "Prefixes",
    "Scene",
    "Sum",
    "Twist",
    "look_ahead",
]
