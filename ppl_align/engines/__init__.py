"""Inference engines, one algorithm per file."""

from ppl_align.core.deprecation import old_names
from ppl_align.engines.base import Engine
from ppl_align.engines.conditional import Bounds, ConditionalSMC, evidence_bounds
from ppl_align.engines.enumeration import Enumeration
from ppl_align.engines.environment.tree_planner import TreePlanner
from ppl_align.engines.importance import ImportanceSampling
from ppl_align.engines.mcmc import MCMC
from ppl_align.engines.rejection.rejection import Rejection
from ppl_align.engines.smc import SMC, ParticleGibbs
from ppl_align.engines.svi.svi import SVI
from ppl_align.engines.tempered import TemperedSMC
from ppl_align.twists.lookahead import LookAhead, look_ahead

__all__ = [
    "MCMC",
    "SMC",
    "SVI",
    "Bounds",
    "ConditionalSMC",
    "Engine",
    "Enumeration",
    "ImportanceSampling",
    "LookAhead",
    "ParticleGibbs",
    "Rejection",
    "TemperedSMC",
    "TreePlanner",
    "evidence_bounds",
    "look_ahead",
]

__getattr__ = old_names(globals(), {"Conditional": "ConditionalSMC", "Exact": "Enumeration", "Nested": "TreePlanner"})
