"""Which rows are decoded together: fixed groups, from the data and the settings alone.

A group is the unit of work: it is done as one batch, written as one file, done again as a whole after a kill, and
handed to one worker or shard. So who shares a batch with a row does not depend on how often a job was stopped, nor on
how many workers it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ppl_align.core.errors import InputError


@dataclass(frozen=True)
class RowGroup:
    """Rows by number, in the order of the data."""

    number: int
    rows: tuple[int, ...]


def in_groups(sizes: Sequence[int], most: int) -> list[RowGroup]:
    """Consecutive rows whose ``sizes`` (tokens that a batch holds of each) sum to ``most`` or less; a row that is
    larger than that is a group by itself.

    >>> [group.rows for group in in_groups([3, 3, 3, 9, 1], most=6)]
    [(0, 1), (2,), (3,), (4,)]
    """
    if most < 1:
        raise InputError(f"--max-batch-tokens must be at least 1, got {most}")
    groups: list[list[int]] = []
    held = 0
    for row, size in enumerate(sizes):
        if not groups or held + size > most:
            groups.append([])
            held = 0
        groups[-1].append(row)
        held += size
    return [RowGroup(number, tuple(rows)) for number, rows in enumerate(groups)]


def of_shard(groups: Iterable[RowGroup], shard: int, shards: int) -> list[RowGroup]:
    """The groups of shard ``shard`` of ``shards``, counted from 1: every ``shards``-th, so that all take equally long.

    >>> [group.number for group in of_shard(in_groups([1] * 5, most=1), 2, 2)]
    [1, 3]
    """
    if not 1 <= shard <= shards:
        raise InputError(f"--shard {shard}/{shards}: the first number is 1 to {shards}")
    return [group for group in groups if group.number % shards == shard - 1]
