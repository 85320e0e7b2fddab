"""One group after the other, in this process."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from ppl_align.core.progress import Report
from ppl_align.jobs.executors import Work
from ppl_align.jobs.work import GroupResult, Worker


class Serial:
    """The groups in their order, by a worker that is at hand."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def run(self, works: Sequence[Work], progress: Report) -> Generator[tuple[int, GroupResult]]:
        for group, rows in works:
            yield group, self.worker.do(rows, progress)
