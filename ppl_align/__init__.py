"""ppl-align: language-model alignment as Bayesian inference.

Write the distribution over text that you want as a Pyro program; swap inference engines; compare them.

The public names are imported when they are first used, so that ``import ppl_align`` (and the command line's help)
does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ppl_align.core.version import __version__

if TYPE_CHECKING:
    from ppl_align.constraints import (
        AcceptedBy,
        Contains,
        EndsWith,
        Grammar,
        JsonSchema,
        LengthLimit,
        Predicate,
        Regex,
    )
    from ppl_align.diagnostics.comparison import Comparison, compare
    from ppl_align.engines import (
        MCMC,
        SMC,
        SVI,
        ConditionalSMC,
        Engine,
        Enumeration,
        ImportanceSampling,
        LookAhead,
        ParticleGibbs,
        Rejection,
        TemperedSMC,
        TreePlanner,
        evidence_bounds,
        look_ahead,
    )
    from ppl_align.guides import load_guide
    from ppl_align.inspection import Inspection, inspect
    from ppl_align.lm import LM, CallableLM, CausalLM, MarkovLM, Mixture, Product, Prompted
    from ppl_align.lm.completions import Completion
    from ppl_align.moments import MomentConstraint, moment_constraint
    from ppl_align.posterior import Posterior
    from ppl_align.program import (
        choose,
        completion,
        constrain,
        environment,
        expert,
        goes_on,
        label,
        power,
        prefers,
        rating,
        reward,
        reward_funcs,
    )


_HOME = {
    "AcceptedBy": "ppl_align.constraints",
    "Contains": "ppl_align.constraints",
    "EndsWith": "ppl_align.constraints",
    "Predicate": "ppl_align.constraints",
    "Regex": "ppl_align.constraints",
    "LengthLimit": "ppl_align.constraints",
    "JsonSchema": "ppl_align.constraints",
    "Grammar": "ppl_align.constraints",
    "Completion": "ppl_align.lm.completions",
    "Comparison": "ppl_align.diagnostics.comparison",
    "compare": "ppl_align.diagnostics.comparison",
    "ConditionalSMC": "ppl_align.engines",
    "Engine": "ppl_align.engines",
    "Enumeration": "ppl_align.engines",
    "TemperedSMC": "ppl_align.engines",
    "TreePlanner": "ppl_align.engines",
    "ImportanceSampling": "ppl_align.engines",
    "MCMC": "ppl_align.engines",
    "ParticleGibbs": "ppl_align.engines",
    "Rejection": "ppl_align.engines",
    "SMC": "ppl_align.engines",
    "SVI": "ppl_align.engines",
    "evidence_bounds": "ppl_align.engines",
    "LookAhead": "ppl_align.engines",
    "look_ahead": "ppl_align.engines",
    "load_guide": "ppl_align.guides",
    "Inspection": "ppl_align.inspection",
    "inspect": "ppl_align.inspection",
    "LM": "ppl_align.lm",
    "CallableLM": "ppl_align.lm",
    "CausalLM": "ppl_align.lm",
    "MarkovLM": "ppl_align.lm",
    "Mixture": "ppl_align.lm",
    "Product": "ppl_align.lm",
    "Prompted": "ppl_align.lm",
    "MomentConstraint": "ppl_align.moments",
    "moment_constraint": "ppl_align.moments",
    "Posterior": "ppl_align.posterior",
    "choose": "ppl_align.program",
    "environment": "ppl_align.program",
    "expert": "ppl_align.program",
    "power": "ppl_align.program",
    "completion": "ppl_align.program",
    "constrain": "ppl_align.program",
    "goes_on": "ppl_align.program",
    "label": "ppl_align.program",
    "prefers": "ppl_align.program",
    "rating": "ppl_align.program",
    "reward": "ppl_align.program",
    "reward_funcs": "ppl_align.program",
}

__all__ = [
    "LM",
    "MCMC",
    "SMC",
    "SVI",
    "AcceptedBy",
    "CallableLM",
    "CausalLM",
    "Comparison",
    "Completion",
    "ConditionalSMC",
    "Contains",
    "EndsWith",
    "Engine",
    "Enumeration",
    "Grammar",
    "ImportanceSampling",
    "Inspection",
    "JsonSchema",
    "LengthLimit",
    "LookAhead",
    "MarkovLM",
    "Mixture",
    "MomentConstraint",
    "ParticleGibbs",
    "Posterior",
    "Predicate",
    "Product",
    "Prompted",
    "Regex",
    "Rejection",
    "TemperedSMC",
    "TreePlanner",
    "__version__",
    "choose",
    "compare",
    "completion",
    "constrain",
    "environment",
    "evidence_bounds",
    "expert",
    "goes_on",
    "inspect",
    "label",
    "load_guide",
    "look_ahead",
    "moment_constraint",
    "power",
    "prefers",
    "rating",
    "reward",
    "reward_funcs",
]


_RENAMED = {"Conditional": "ConditionalSMC", "Exact": "Enumeration", "Length": "LengthLimit", "Nested": "TreePlanner"}
"""Names until 0.3.0: the same classes."""


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        from ppl_align.core.deprecation import deprecated

        deprecated(f"ppl_align.{name}", _RENAMED[name])
        return __getattr__(_RENAMED[name])
    if name not in _HOME:
        raise AttributeError(f"module 'ppl_align' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # a submodule of the same name (ppl_align.lm.completions) must not shadow it
    return value
