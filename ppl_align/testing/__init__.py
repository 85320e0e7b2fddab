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
    from ppl_align.testing.contract import check_engine
    from ppl_align.testing.liars import (
        all_dead,
        duplicate_strings,
        heavy_tail,
        hidden_mode,
        optimistic_environment,
    )
    from ppl_align.testing.oracle import Oracle
    from ppl_align.testing.programs import PROGRAMS
    from ppl_align.testing.report import ContractError, Report
    from ppl_align.testing.rewards import check_reward

_HOME = {
    "ContractError": "report",
    "Oracle": "oracle",
    "PROGRAMS": "programs",
    "Report": "report",
    "all_dead": "liars",
    "check_engine": "contract",
    "check_reward": "rewards",
    "duplicate_strings": "liars",
    "heavy_tail": "liars",
    "hidden_mode": "liars",
    "optimistic_environment": "liars",
}

__all__ = [
    "PROGRAMS",
    "ContractError",
    "Oracle",
    "Report",
    "all_dead",
    "check_engine",
    "check_reward",
    "duplicate_strings",
    "heavy_tail",
    "hidden_mode",
    "optimistic_environment",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ppl_align.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ppl_align.testing.{_HOME[name]}"), name)
    globals()[name] = value
    return value
