"""What a study found: numbers beside what they had to be, each with a verdict.

There are six ways for a number to be right, and every study says which one it means:

* ``equal``      two exact computations of the same thing, to rounding;
* ``rounds_to``  a stated figure (closed form or published), correct to its last digit;
* ``agrees``     an estimate within 4.6 standard errors of an exact value (about 200 such checks in all: at 4.6 the
                 chance that a correct library fails any of them is 1e-3 over seeds);
* ``less``       what was measured is below a bound or another number, for estimates by more than 4.6 standard errors
                 of the difference; ``run=True`` marks one random run, whose error is not known;
* ``greater``    the same, above;
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

    def rounds_to(self, what: str, measured: SupportsFloat, stated: str) -> None:
        """``measured`` rounds to a stated figure, closed form or published, as text: ``"0.7005"`` means 4 decimals."""
        digits = -int(Decimal(stated).as_tuple().exponent)
        half = 0.5 * 10.0**-digits
        got = float(measured)
        shown = f"{got:.{max(digits, 0)}f}"
        self._add(what, stated, shown, f"≤ {half:.0e}", abs(got - float(stated)) <= half * (1 + 1e-6))

    def agrees(
        self, what: str, measured: SupportsFloat, standard_error: SupportsFloat, expected: SupportsFloat
    ) -> None:
        """An estimate lies within 4.6 standard errors of the exact value; a standard error of zero proves nothing."""
        got, error, want = float(measured), float(standard_error), float(expected)
        sound = math.isfinite(error) and error > 0
        near = sound and abs(got - want) <= Z * error
        self._add(what, _short(want), _short(got), f"se {error:.2g}", near)

    def less(
        self,
        what: str,
        smaller: SupportsFloat,
        larger: SupportsFloat,
        standard_error: SupportsFloat = 0.0,
        run: bool = False,
    ) -> None:
        """``smaller``, the measured one, is below ``larger`` by more than 4.6 standard errors of the difference.

        A standard error of 0 means that both are exact or, with ``run``, that one comes from a single random run."""
        self._ordered(what, "<", smaller, larger, standard_error, run)

    def greater(
        self,
        what: str,
        larger: SupportsFloat,
        smaller: SupportsFloat,
        standard_error: SupportsFloat = 0.0,
        run: bool = False,
    ) -> None:
        """``larger``, the measured one, is above ``smaller``; otherwise as ``less``."""
        self._ordered(what, ">", larger, smaller, standard_error, run)

    def _ordered(
        self, what: str, sign: str, measured: SupportsFloat, bound: SupportsFloat, error: SupportsFloat, run: bool
    ) -> None:
        got, limit, se = float(measured), float(bound), float(error)
        margin = limit - got if sign == "<" else got - limit
        self._add(what, f"{sign} {_short(limit)}", _short(got), _error(se, run), margin > Z * se)

    def holds(self, what: str, condition: bool, seen: str = "") -> None:
        """A statement is true; ``seen`` says what was looked at."""
        self._add(what, "true", seen or str(bool(condition)).lower(), "", bool(condition))

    def _add(self, what: str, expected: str, measured: str, error: str, passed: bool) -> None:
        self.lines.append(Finding(what, expected, measured, error, bool(passed)))


def _error(error: float, run: bool) -> str:
    if error:
        return f"se {error:.2g}"
    return "one run" if run else "exact"


def _short(value: float) -> str:
    """Six significant digits; what is zero to rounding is 0."""
    return "0" if abs(value) < 1e-12 else f"{value:.6g}"
