"""The Pyro side: what a user writes (``completion``, ``reward``, ...) and what an engine sees (``Program``)."""

from ppl_align.core.deprecation import old_names
from ppl_align.particles.particles import Particles, Site
from ppl_align.program.compiled import Program
from ppl_align.program.completion import choose, completion
from ppl_align.program.constrain import constrain
from ppl_align.program.environment import environment
from ppl_align.program.experts import expert, power
from ppl_align.program.observe import goes_on, label, prefers, rating
from ppl_align.program.reward import reward
from ppl_align.program.reward_funcs import reward_funcs

__all__ = [
    "Particles",
    "Program",
    "Site",
    "choose",
    "completion",
    "constrain",
    "environment",
    "expert",
    "goes_on",
    "label",
    "power",
    "prefers",
    "rating",
    "reward",
    "reward_funcs",
]

__getattr__ = old_names(globals(), {"Execution": "Particles"})
