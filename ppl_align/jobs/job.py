"""A job: the rows of a data set, group by group, from where it stopped to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from ppl_align.core.errors import InputError
from ppl_align.jobs.delivered import as_table, with_columns_of
from ppl_align.jobs.executors import Executor
from ppl_align.jobs.folder import JobFolder
from ppl_align.jobs.groups import RowGroup, in_groups, of_shard
from ppl_align.jobs.ledger import Event, Ledger, last_events
from ppl_align.jobs.plan import Plan
from ppl_align.jobs.results import deliver
from ppl_align.jobs.rows import Rows
from ppl_align.jobs.work import GroupResult


@dataclass(frozen=True)
class Selection:
    """Which rows of the data are wanted now: the first ``limit``, those with these ``keys``; of the groups, those of
    ``shard`` (which, of how many). It is no part of what a job is: the rest may follow later."""

    limit: int | None = None
    keys: tuple[str, ...] = ()
    shard: tuple[int, int] = (1, 1)

    def rows(self, rows: Rows) -> set[int]:
        """Their numbers. Raises ``InputError`` for a key that no row has."""
        numbers = set(range(len(rows.rows)))
        if self.keys:
            known = {key: number for number, key in enumerate(rows.keys)}
            for key in self.keys:
                if key not in known:
                    raise InputError(f"--rows {key}: no row of {rows.header.path} is called that")
            numbers = {known[key] for key in self.keys}
        return numbers if self.limit is None else set(sorted(numbers)[: self.limit])


@dataclass
class Progress:
    """How far a job is: ``rows`` summaries so far, of ``total``; ``new``: how many of them were done since it was
    started, in ``seconds``; ``lm_tokens`` that took; ``at_work``: a note on the group at work, ``since`` when (s)."""

    total: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    new: int = 0
    seconds: float = 0.0
    lm_tokens: int = 0
    at_work: str = ""
    since: float = 0.0

    @property
    def left(self) -> float | None:
        """Seconds to go, if the rest goes as what is done went; None before anything is."""
        if not self.new:
            return None
        return max(0.0, (self.total - len(self.rows)) * self.seconds / self.new - self.since)


@dataclass
class Job:
    """``plan`` with a data file, the ``groups`` of its rows, the ``folder`` and the ``ledger`` of it, and the rows that
    are ``wanted``."""

    plan: Plan
    groups: Sequence[RowGroup]
    folder: JobFolder
    ledger: Ledger
    wanted: set[int]

    @property
    def rows(self) -> Rows:
        assert self.plan.rows is not None
        return self.plan.rows

    def wanted_of(self, group: RowGroup) -> list[int]:
        return [row for row in group.rows if row in self.wanted]

    def _together(self, group: RowGroup, there: Event | None) -> list[int]:
        """The rows of a group to do: those that are wanted, and those that are there, which are written anew."""
        return [row for row in group.rows if row in self.wanted or (there is not None and row in there["rows"])]

    def done(self) -> dict[int, Event]:
        """The last event of each group."""
        return last_events(self.ledger.events)

    def pending(self) -> list[RowGroup]:
        """Groups of which not all wanted rows are there; those too in which one failed that another try may mend: the
        whole group, so that its rows have the batch mates that they always have."""
        done, found = self.done(), []
        for group in self.groups:
            wanted, event = self.wanted_of(group), done.get(group.number)
            missing = event is None or not set(wanted) <= set(event["rows"]) or set(wanted) & set(event["again"])
            if wanted and missing:
                found.append(group)
        return found

    def run(
        self,
        executor: Executor,
        tell: Callable[[Progress], None],
        hear: Callable[[str], None] = lambda line: None,
        fail_fast: bool = False,
    ) -> Progress:
        """Do what is pending; ``tell`` is called whenever there is more to tell, ``hear`` with what models and engines
        have to say, a line once. What is done is kept in any case.

        Raises ``RunError`` where results cannot be written."""
        pending = self.pending()
        progress = Progress(len(self.wanted), self.summaries({group.number for group in pending}))
        started = time.perf_counter()
        tell(progress)

        def working(done: int, total: int, note: str) -> None:
            progress.at_work, progress.since = (
                f"{note} {done}/{total}",
                time.perf_counter() - started - progress.seconds,
            )
            tell(progress)

        done = self.done()
        together = {group.number: self._together(group, done.get(group.number)) for group in pending}
        works = [(number, [(row, self.rows.rows[row]) for row in rows]) for number, rows in together.items()]
        heard: set[str] = set()
        with closing(executor.run(works, working)) as results:
            for number, result in results:
                self._keep(number, result)
                for line in dict.fromkeys(result.said):
                    if line not in heard:
                        hear(line)
                heard.update(result.said)
                wanted = [row.as_summary() for row in result.rows if row.number in self.wanted]
                progress.rows += wanted
                progress.new += len(wanted)
                progress.lm_tokens += result.cost.lm_tokens
                progress.seconds, progress.since, progress.at_work = time.perf_counter() - started, 0.0, ""
                tell(progress)
                if fail_fast and any(row.error is not None for row in result.rows):
                    break
        return progress

    def _keep(self, number: int, result: GroupResult) -> None:
        """On disk first, then in the ledger: a kill between the two only means that it is done again."""
        for row in result.rows:
            if row.files:
                self.folder.write_row(self.rows.header.label(row.number), row.files)
        lines = as_table([{"_number": row.number, **line} for row in result.rows for line in row.lines])
        lines = with_columns_of(self.rows, lines)
        self.folder.write_part(number, lines, [row.as_summary() for row in result.rows])
        self.ledger.note(
            "group",
            group=number,
            rows=[row.number for row in result.rows],
            failed=[row.number for row in result.rows if row.error is not None],
            again=[row.number for row in result.rows if row.again],
            seconds=round(result.seconds, 3),
            **{name: round(value, 3) for name, value in result.cost.as_dict().items() if name != "seconds"},
        )

    def finished(self) -> list[int]:
        """The groups that have results, of other shards too, in the order of the data."""
        return sorted(self.done())

    def summaries(self, without: set[int] = frozenset()) -> list[dict[str, Any]]:  # type: ignore[assignment]
        """Of the wanted rows that are done, in the order of the data."""
        found = []
        for number in self.finished():
            if number not in without:
                found += [row for row in self.folder.read_part(number)[1] if row["number"] in self.wanted]
        return found

    def deliver(self) -> list[dict[str, Any]]:
        """Write ``completions.parquet``, ``completions.csv`` and the top page of all that is done, whether it is wanted
        now or was before; the summaries."""
        return deliver(self.folder, self.finished())


def grouped(plan: Plan, max_batch_tokens: int, shard: tuple[int, int] = (1, 1)) -> list[RowGroup]:
    """The groups of a plan's rows: a row counts with the tokens that its texts hold at most, prompts included, by what
    its program says before anything is drawn.

    Raises ``InputError`` where the model cannot be called with any of the rows; a few of them fail as they come."""
    assert plan.rows is not None
    texts = max((engine.texts_at_once for engine in plan.engines.values()), default=1)
    sizes, refused = [], []
    for number, row in plan.rows.select(None):
        try:
            sizes.append(texts * plan.tokens(plan.target(number, row)))
        except InputError as error:
            sizes.append(texts)
            refused.append(error)
    if len(refused) == len(sizes):
        raise refused[0]
    return of_shard(in_groups(sizes, max_batch_tokens), *shard)
