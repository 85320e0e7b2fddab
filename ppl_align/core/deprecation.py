"""Names that were: they stay until 0.3.0, the same objects, and say what they are called now."""

from __future__ import annotations

import warnings

UNTIL = "0.3.0"


def deprecated(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn of a name that is about to go."""
    warnings.warn(f"{old} is now called {new}; the old name goes with {UNTIL}", DeprecationWarning, stacklevel)
