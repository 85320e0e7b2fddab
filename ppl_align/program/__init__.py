"""The Pyro side: what a user writes (``completion``, ``reward``, ``choose``) and what an engine sees (``Program``)."""

from ppl_align.program.compiled import Execution, Program, Site
from ppl_align.program.completion import choose, completion
from ppl_align.program.constrain import constrain
from ppl_align.program.reward import reward

__all__ = ["Execution", "Program", "Site", "choose", "completion", "constrain", "reward"]
