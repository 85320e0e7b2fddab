"""Names that were: they stay until 0.3.0, the same objects, and say what they are called now."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

UNTIL = "0.3.0"


def deprecated(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn of a name that is about to go."""
    warnings.warn(f"{old} is now called {new}; the old name goes with {UNTIL}", DeprecationWarning, stacklevel)


def renamed(module: Mapping[str, Any], names: Mapping[str, str]) -> Callable[[str], Any]:
    """``__getattr__`` of a module with ``globals()`` in which things have new ``names``, by their old ones."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
        deprecated(f"{module['__name__']}.{name}", names[name])
        return module[names[name]]

    return find
