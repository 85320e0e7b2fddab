"""What a series of checks found: one result for each subject and check, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.text import Text

from ppl_align.core.errors import PplAlignError
from ppl_align.report.terminal import Printable, grids, verdict

Status = Literal["passed", "failed", "inconclusive", "refused", "absent"]
_SIGNS: dict[str, str] = {
    "passed": "ok",
    "failed": "FAIL",
    "inconclusive": "?",
    "refused": "-",
    "absent": "none stated",
}


class ContractError(PplAlignError, AssertionError):
    """Something that was checked does not keep its contract; the lines say what was expected and what was measured."""


@dataclass(frozen=True)
class Result:
    """One check of one subject (a program, a reward): its ``status``, and a ``line`` that says why.

    ``absent``: there was nothing to check, such as the bounds of a reward that states none; it counts as no check.
    ``p_value``: of a statistical check, how often a correct subject would deviate this much; None for the others."""

    subject: str
    check: str
    status: Status
    line: str = ""
    p_value: float | None = None

    def __str__(self) -> str:
        return f"{self.subject} ({self.check}): {self.line or self.status}"


class Report:
    """The results of :func:`~ppl_align.testing.check_engine` or :func:`~ppl_align.testing.check_reward`.

    True if every check passed, and at least one program was checked: refused ones do not count, however many they are,
    so read the verdict, which begins with how many were. ``print`` shows the table; ``failures``, ``inconclusive``,
    ``refused`` are the results that did not pass.
    """

    def __init__(self, title: str, results: Iterable[Result]) -> None:
        self.title = title
        self.results = tuple(results)

    def _with(self, status: Status) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.status == status)

    @property
    def failures(self) -> tuple[Result, ...]:
        """Checks whose answer is no."""
        return self._with("failed")

    @property
    def inconclusive(self) -> tuple[Result, ...]:
        """Checks that could not be judged: not a pass either."""
        return self._with("inconclusive")

    @property
    def refused(self) -> tuple[Result, ...]:
        """Subjects that were declined with a proper error: allowed."""
        return self._with("refused")

    def __bool__(self) -> bool:
        return bool(self._with("passed")) and not self.failures and not self.inconclusive

    def raise_if_failed(self) -> Report:
        """Raise :class:`ContractError` unless everything passed; returns the report, so that it can be chained."""
        if not self:
            raise ContractError("\n".join([self.verdict, *self.lines()]))
        return self

    @property
    def verdict(self) -> str:
        """One line: how many programs were checked, how many checks passed, and what became of the others."""
        passed = len(self._with("passed"))
        subjects = {result.subject for result in self.results}
        checked = subjects - {result.subject for result in self.refused}
        lead = f"{len(checked)} of {len(subjects)} programs checked, " if len(subjects) > 1 and checked else ""
        if self:
            said = f"{lead}all {passed} checks passed"
        elif not passed and not self.failures and not self.inconclusive:
            said = "nothing could be checked"
        else:
            judged = passed + len(self.failures) + len(self.inconclusive)
            said = f"{lead}{len(self.failures)} of {judged} checks failed"
            said += f", {len(self.inconclusive)} inconclusive" if self.inconclusive else ""
        return f"{self.title}: {said}" + (f"; {len(self.refused)} refused" if self.refused else "")

    def lines(self) -> Iterator[str]:
        """One line for everything that did not pass; subjects and checks with the same story share it."""
        told: dict[tuple[str, str], list[Result]] = {}
        for result in (*self.failures, *self.inconclusive, *self.refused):
            told.setdefault((result.status, result.line), []).append(result)
        for (status, line), results in told.items():
            subjects = list(dict.fromkeys(result.subject for result in results))
            who = ", ".join(subjects[:3]) + (f" and {len(subjects) - 3} more" if len(subjects) > 3 else "")
            checks = ", ".join(dict.fromkeys(result.check for result in results))
            kind = "" if status == "failed" else f"{status}: "
            yield (who if status == "refused" else f"{who} ({checks})") + f": {kind}{line}"

    # -- print --------------------------------------------------------------------------------------------------

    def _layout(self, width: int) -> RenderableType:
        subjects = list(dict.fromkeys(result.subject for result in self.results))
        checks = list(dict.fromkeys(result.check for result in self.results))
        cells = {(result.subject, result.check): _SIGNS[result.status] for result in self.results}
        if len(subjects) == 1:  # one column of checks reads better than one row of them
            tables = grids("check", subjects, [(check, [cells[subjects[0], check]]) for check in checks], width)
        else:
            rows = [(subject, [cells.get((subject, check), "-") for check in checks]) for subject in subjects]
            tables = grids("program", checks, rows, width)
        return Group(*tables, Text(), verdict(self.verdict, "green" if self else "red", self.lines()))

    def __str__(self) -> str:
        return str(Printable(self._layout))

    __repr__ = __str__

    def __rich_console__(self, console: Any, options: Any) -> Any:
        yield Printable(self._layout)
