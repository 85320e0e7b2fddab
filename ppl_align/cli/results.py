"""From finished posteriors of one target to what is printed and saved: their comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ppl_align.cli.output import OutputFolder

if TYPE_CHECKING:
    from ppl_align.posterior import Posterior

SHOWN = 3  # completions printed for each engine


class Results:
    """Posteriors of one target by engine, and their ``comparison``."""

    def __init__(self, runs: Mapping[str, Posterior]) -> None:
        from ppl_align import compare

        self.runs, self.comparison = runs, compare(runs)

    def to_json(self) -> str:
        """The comparison."""
        return self.comparison.to_json()

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """The comparison, and the best completions of each engine."""
        from ppl_align.report.terminal import best_completions

        yield self.comparison
        for name, posterior in self.runs.items():
            yield f"\n{name}: the most probable of what it found"
            yield best_completions(posterior, SHOWN)

    def save(self, folder: OutputFolder) -> None:
        """Comparison and report."""
        folder.write_all(folder.root, self.comparison.save)
