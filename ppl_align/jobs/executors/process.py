"""Several processes on this machine, each with a worker that loads model and engines once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from ppl_align.core.progress import Report
from ppl_align.jobs.executors import Work
from ppl_align.jobs.rows import Row
from ppl_align.jobs.work import GroupResult, Order, Worker, lost

DEATHS = 3
"""A group that so many processes have died of is given up."""
_worker: Worker | None = None


class Processes:
    """``workers`` processes. One that is killed takes the others with it (a pool does not survive it). What was at work
    is then done again, a group at a time, so that it shows which one it was: of that its rows have failed."""

    def __init__(self, order: Order, workers: int) -> None:
        self.order, self.workers = order, workers

    def run(self, works: Sequence[Work], progress: Report) -> Generator[tuple[int, GroupResult]]:
        left, deaths, suspects = dict(works), Counter[int](), list[int]()
        while left:
            group = suspects[0] if suspects else None
            if group is not None and deaths[group] >= DEATHS:
                rows = left.pop(suspects.pop(0))
                yield group, lost(self.order, rows, f"{DEATHS} processes died of it, perhaps for lack of memory")
                continue
            pool = self._pool(1 if suspects else self.workers)
            at_work: dict[Future[GroupResult], int] = {}
            try:
                for done, result in _done(pool, {group: left[group]} if group is not None else left, at_work):
                    del left[done]
                    suspects = [one for one in suspects if one != done]
                    yield done, result
            except BrokenProcessPool:
                begun = sorted(at_work.values())[: self.workers]
                deaths.update(begun)
                suspects = sorted({*suspects, *begun})
            finally:
                _stop(pool)

    def _pool(self, workers: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a forked process would inherit threads of torch that are gone
        return ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(self.order,))


def _done(
    pool: ProcessPoolExecutor, works: dict[int, Sequence[tuple[int, Row]]], at_work: dict[Future[GroupResult], int]
) -> Iterator[tuple[int, GroupResult]]:
    """Groups as they are done; no more are handed over than are at work, and one that waits for whoever is free."""
    workers = pool._max_workers  # type: ignore[attr-defined]
    waiting = iter(list(works.items()))
    while True:
        while len(at_work) <= workers and (following := next(waiting, None)) is not None:
            at_work[pool.submit(_do, following[1])] = following[0]
        if not at_work:
            return
        for future in wait(at_work, return_when=FIRST_COMPLETED).done:
            result = future.result()
            yield at_work.pop(future), result


def _begin(order: Order) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal: who started us says when
    sys.stdout = sys.stderr  # what a model prints is no result
    _worker = Worker(order)


def _end_with_parent() -> None:
    """Whoever is killed with -9 can stop nobody: a worker sees for itself that nobody waits for it any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(rows: Sequence[tuple[int, Row]]) -> GroupResult:
    assert _worker is not None
    return _worker.do(rows)


def _stop(pool: ProcessPoolExecutor) -> None:
    """At once: what is at work is lost, and done again another time."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()
