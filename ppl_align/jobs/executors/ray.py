"""Workers on a cluster, by Ray: each is an actor that loads model and engines once, and groups of rows are its tasks.

Who hands out the groups also writes the results, so that workers need no disk of their own. The model file, its
neighbours and the weights must be where the workers are: on a file system that they share, or in Ray's ``working_dir``.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from ppl_align.core.errors import InputError, RunError
from ppl_align.core.progress import Report
from ppl_align.jobs.executors import Work
from ppl_align.jobs.executors.process import DEATHS
from ppl_align.jobs.work import GroupResult, Order, Worker, lost

AHEAD = 2
"""Groups that an actor has at a time: one at work and one waiting, so that it never waits itself."""


class OnRay:
    """``workers`` actors on the cluster of ``RAY_ADDRESS``, or on a Ray of our own on this machine.

    Where the cluster has GPUs each actor takes one (a share, where there are fewer), else ``threads`` CPUs. The groups
    of an actor that dies are done again by another; one at whose work several have died is given up."""

    def __init__(self, order: Order, workers: int) -> None:
        try:
            import ray
        except ImportError:
            raise InputError("--executor ray needs Ray: pip install 'ppl-align[ray]'") from None
        self.ray: Any = ray
        self.order, self.workers = order, workers

    def run(self, works: Sequence[Work], progress: Report) -> Generator[tuple[int, GroupResult]]:
        ours = not self.ray.is_initialized()
        if ours:
            address = os.environ.get("RAY_ADDRESS") or "local"
            os.environ.setdefault("RAY_worker_niceness", "0")  # by default workers yield to whatever else runs here
            try:
                self.ray.init(address=address, include_dashboard=False, log_to_driver=False, configure_logging=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise RunError(f"Ray does not start (RAY_ADDRESS={address}): {error}") from error
        try:
            yield from self._all(deque(works))
        finally:
            if ours:
                self.ray.shutdown()

    def _all(self, waiting: deque[Work]) -> Iterator[tuple[int, GroupResult]]:
        actors = [self._actor() for _ in range(min(self.workers, len(waiting)))]
        at_work: dict[Any, tuple[int, Work]] = {}  # task -> (which actor, what it does)
        deaths = Counter[int]()
        while waiting or at_work:
            for which, actor in enumerate(actors):
                while waiting and sum(by == which for by, _ in at_work.values()) < AHEAD:
                    work = waiting.popleft()
                    at_work[actor.do.remote(work[1])] = which, work
            (task,), _ = self.ray.wait(list(at_work), num_returns=1)
            which, (group, rows) = at_work.pop(task)
            try:
                yield group, self.ray.get(task)
            except self.ray.exceptions.RayActorError:
                theirs = {task: work for task, (by, work) in at_work.items() if by == which}
                for task in theirs:
                    del at_work[task]
                actors[which] = self._actor()
                deaths[group] += 1
                if deaths[group] >= DEATHS:
                    yield group, lost(self.order, rows, f"{DEATHS} workers died of it, perhaps for lack of memory")
                    waiting.extendleft(theirs.values())
                else:
                    waiting.extendleft([*theirs.values(), (group, rows)])

    def _actor(self) -> Any:
        gpus = self.ray.cluster_resources().get("GPU", 0)
        share = min(1.0, gpus / self.workers) if gpus else 0
        remote = self.ray.remote(num_cpus=self.order.threads if not gpus else 0, num_gpus=share, max_restarts=0)
        return remote(Worker).remote(self.order)
