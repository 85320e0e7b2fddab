"""Who does the groups of a job: one file for each way. All of them give the same results, in whatever order."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from ppl_align.core.progress import Report
from ppl_align.jobs.rows import Row
from ppl_align.jobs.work import GroupResult

Work = tuple[int, Sequence[tuple[int, Row]]]
"""A group's number, and its rows ``(number, row)``."""


class Executor(Protocol):
    """Does groups, and hands over what came of each as it is done."""

    def run(self, works: Sequence[Work], progress: Report) -> Generator[tuple[int, GroupResult]]:
        """``(group, result)`` of all groups, in the order in which they are done. Closing the iterator stops the work.

        ``progress``: called with the tokens of the group at work, where somebody here sees them."""
        ...
