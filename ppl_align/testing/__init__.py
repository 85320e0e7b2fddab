"""For tests, of this library and of yours: exact answers, programs that have them, and the contract of an engine.

::

    from ppl_align.testing import check_engine, check_reward

    check_engine(MyEngine()).raise_if_failed()
    print(check_reward(my_reward))

The public names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppl_align.testing.adversarial_programs import (
        all_dead,
        duplicate_strings,
        heavy_tail,
        hidden_mode,
        optimistic_environment,
    )
    from ppl_align.testing.calibration import Calibration, calibrate
    from ppl_align.testing.chain import ChainOracle
    from ppl_align.testing.contract import check_engine
    from ppl_align.testing.delivery import Delivered, delivered, total_variation
    from ppl_align.testing.oracle import Oracle, entropy, kl_divergence
    from ppl_align.testing.programs import PROGRAMS
    from ppl_align.testing.report import ContractError, Report
    from ppl_align.testing.rewards import check_reward
    from ppl_align.testing.simulation import Simulation, simulate

_NAMES = {
    "adversarial_programs": ("all_dead", "duplicate_strings", "heavy_tail", "hidden_mode", "optimistic_environment"),
    "calibration": ("Calibration", "calibrate"),
    "chain": ("ChainOracle",),
    "contract": ("check_engine",),
    "delivery": ("Delivered", "delivered", "total_variation"),
    "oracle": ("Oracle", "entropy", "kl_divergence"),
    "programs": ("PROGRAMS",),
    "report": ("ContractError", "Report"),
    "rewards": ("check_reward",),
    "simulation": ("Simulation", "simulate"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "PROGRAMS",
    "Calibration",
    "ChainOracle",
    "ContractError",
    "Delivered",
    "Oracle",
    "Report",
    "Simulation",
    "all_dead",
    "calibrate",
    "check_engine",
    "check_reward",
    "delivered",
    "duplicate_strings",
    "entropy",
    "heavy_tail",
    "hidden_mode",
    "kl_divergence",
    "optimistic_environment",
    "simulate",
    "total_variation",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ppl_align.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ppl_align.testing.{_HOME[name]}"), name)
    globals()[name] = value
    return value
