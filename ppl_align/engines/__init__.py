"""Inference engines, one algorithm per file."""

from ppl_align.engines.base import Engine
from ppl_align.engines.conditional import Bounds, Conditional, evidence_bounds
from ppl_align.engines.exact import Exact
from ppl_align.engines.importance import ImportanceSampling
from ppl_align.engines.nested import Nested
from ppl_align.engines.rejection import Rejection
from ppl_align.engines.smc import SMC
from ppl_align.engines.svi import SVI
from ppl_align.twists.lookahead import LookAhead, look_ahead

__all__ = [
    "SMC",
    "SVI",
    "Bounds",
    "Conditional",
    "Engine",
    "Exact",
    "ImportanceSampling",
    "LookAhead",
    "Nested",
    "Rejection",
    "evidence_bounds",
    "look_ahead",
]
