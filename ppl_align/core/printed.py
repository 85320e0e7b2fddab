"""Numbers with their errors, as they are printed; records as JSON holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

_WIDEST = 20  # characters of a value with its error
_DECIMALS = 6
_FIXED = (1e-3, 1e9)  # sizes of a value that are read more easily without an exponent


def with_error(value: float, error: float) -> str:
    """Value and error to the error's second digit, in 20 characters; a question mark where there is no error.

    An error that is rounding is 0. What would take more than six decimals is said with exponents.

    >>> with_error(0.86712, 0.00591), with_error(-4.6, math.nan), with_error(0.5, 0.0)
    ('0.8671 ± 0.0059', '-4.6 ± ?', '0.5 ± 0')
    >>> with_error(1.234e-7, 5e-9), with_error(1e9, 3e7), with_error(0.99999999763, 2.4e-9), with_error(0.1, 1e-17)
    ('1.234e-07 ± 5e-09', '1e+09 ± 3e+07', '1.000000 ± 2.4e-09', '0.1 ± 0')
    """
    if not (math.isfinite(value) and math.isfinite(error)):
        return f"{value:.4g} ± ?"
    if is_rounding(error, value):
        return f"{value:.4g} ± 0"
    places = 1 - math.floor(math.log10(error))  # of the error's second digit
    decimals = max(0, places)
    shown = f"{value:.{decimals}f} ± {error:.{decimals}f}"
    if decimals <= _DECIMALS and len(shown) <= _WIDEST:
        return shown
    if _FIXED[0] <= abs(value) < _FIXED[1]:
        kind, digits, fewest = "f", min(decimals, _DECIMALS), 0
    else:
        size = math.floor(math.log10(abs(value))) if value else -places
        kind, digits, fewest = "g", max(1, size + places + 1), 1
    while len(shown := f"{value:.{digits}{kind}} ± {error:.2g}") > _WIDEST and digits > fewest:
        digits -= 1
    return shown


def is_rounding(difference: float, value: float) -> bool:
    """Too small beside ``value``, or on its own, to be more than floating point.

    >>> is_rounding(3e-17, 0.2), is_rounding(1e-6, 0.2)
    (True, False)
    """
    return abs(difference) <= max(1e-9 * abs(value), 1e-12)


def say_z(z: float) -> str:
    """A deviation in words: far out, a score is no longer a number of anything.

    >>> say_z(4.21), say_z(1.3e9)
    ('4.2 standard errors', 'over 100 standard errors')
    """
    return "over 100 standard errors" if z > 100 else f"{z:.1f} standard errors"


def say_draws(predicted: float) -> str:
    """How many effective draws are foretold, in words."""
    return f"{predicted:.0f} effective draws" if predicted >= 1.5 else "hardly one effective draw"


def jsonable(value: Any) -> Any:
    """What JSON can hold of a value: records as objects, null for a number that has no meaning, else text.

    >>> jsonable({"a": (1, math.nan), "b": 1j})
    {'a': [1, None], 'b': '1j'}
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in fields(value)}
    elif hasattr(value, "_asdict"):  # a named tuple
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): jsonable(held) for key, held in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [jsonable(held) for held in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
