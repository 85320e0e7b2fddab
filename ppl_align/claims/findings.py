"""What a study found: numbers beside what they had to be, each with a verdict.

There are five ways for a number to be right, and every study says which one it means:

* ``equal``      two exact computations of the same thing, to rounding;
* ``rounds_to``  a published figure, correct to its last digit;
* ``agrees``     an estimate within 4.6 standard errors of an exact value (about 200 such checks in all: at 4.6 the
                 chance that a correct library fails any of them is 1e-3 over seeds);
* ``less``       one number below another, for estimates by more than 4.6 standard errors of the difference;
* ``holds``      something that is true or false.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, SupportsFloat

Z = 4.6


@dataclass(frozen=True)
class Finding:
    """One line of the table: texts as they are printed, and the verdict."""

    what: str
    expected: str
    measured: str
    error: str
    passed: bool


@dataclass
class Findings:
    """Filled by the ``study`` of a claim, in order. ``data`` is whatever its figure needs."""

    seed: int = 0
    lines: list[Finding] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Something was found, and all of it as expected."""
        return bool(self.lines) and all(line.passed for line in self.lines)

    def equal(self, what: str, measured: SupportsFloat, expected: SupportsFloat, tolerance: float = 1e-9) -> None:
        """Two exact computations agree: ``|measured - expected| <= tolerance``."""
        got, want = float(measured), float(expected)
        off = abs(got - want)
        self._add(what, _short(want), _short(got), f"≤ {tolerance:.0e}", off <= tolerance)

    def rounds_to(self, what: str, measured: SupportsFloat, published: str) -> None:
        """``measured`` rounds to a published figure, given as text: ``"0.700567"`` means six decimals."""
        digits = -int(Decimal(published).as_tuple().exponent)
        half = 0.5 * 10.0**-digits
        got = float(measured)
        shown = f"{got:.{max(digits, 0)}f}"
        self._add(what, published, shown, f"≤ {half:.0e}", abs(got - float(published)) <= half * (1 + 1e-6))

    def agrees(
        self, what: str, measured: SupportsFloat, standard_error: SupportsFloat, expected: SupportsFloat
    ) -> None:
        """An estimate lies within 4.6 standard errors of the exact value; a standard error of zero proves nothing."""
        got, error, want = float(measured), float(standard_error), float(expected)
        sound = math.isfinite(error) and error > 0
        near = sound and abs(got - want) <= Z * error
        self._add(what, _short(want), _short(got), f"se {error:.2g}", near)

    def less(
        self, what: str, smaller: SupportsFloat, larger: SupportsFloat, standard_error: SupportsFloat = 0.0
    ) -> None:
        """``smaller < larger``, by more than 4.6 standard errors of the difference (0: both are exact)."""
        low, high, error = float(smaller), float(larger), float(standard_error)
        shown = f"se {error:.2g}" if error else "exact"
        self._add(what, f"< {_short(high)}", _short(low), shown, high - low > Z * error)

    def holds(self, what: str, condition: bool, seen: str = "") -> None:
        """A statement is true; ``seen`` says what was looked at."""
        self._add(what, "true", seen or str(bool(condition)).lower(), "", bool(condition))

    def _add(self, what: str, expected: str, measured: str, error: str, passed: bool) -> None:
        self.lines.append(Finding(what, expected, measured, error, bool(passed)))


def _short(value: float) -> str:
    """Six significant digits; what is zero to rounding is 0."""
    return "0" if abs(value) < 1e-12 else f"{value:.6g}"
