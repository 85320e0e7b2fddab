"""What a configuration may say: whole numbers, and one of several words."""

from __future__ import annotations

import difflib
from typing import Any

from ppl_align.core.errors import InputError


def at_least(low: int, **values: Any) -> None:
    """Every value is a whole number of at least ``low``."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise InputError(f"{name} must be a whole number of at least {low}, got {value!r}")


def one_of(name: str, value: Any, choices: list[Any]) -> None:
    """The value is one of the choices; suggests the nearest."""
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), [c for c in choices if isinstance(c, str)], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}{hint}")
