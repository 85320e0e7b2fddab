"""``ppl-align models`` and ``ppl-align engines``: the galleries, one line each, read without importing them."""

from __future__ import annotations

from rich.table import Table

from ppl_align import gallery
from ppl_align.cli.console import note, show


def listing(kind: gallery.Kind) -> int:
    """Names and first docstring lines on stdout; how to run one of them on stderr."""
    entries = gallery.entries(kind)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for entry in entries:
        table.add_row(entry.name, entry.summary)
    show(table)
    usage = {"models": "ppl-align run NAME, ppl-align check NAME", "inference": "ppl-align run MODEL --engine NAME"}
    note(f"\n{usage[kind]}; files in {gallery.folder(kind)}")
    return 0
