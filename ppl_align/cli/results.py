"""From finished posteriors to what is printed and saved: one comparison, or one for each row of ``--data``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_align.cli.console import show
from ppl_align.cli.output import OutputFolder

if TYPE_CHECKING:
    from ppl_align.posterior import Posterior

SHOWN = 3  # completions of each engine


@dataclass
class Group:
    """Posteriors of one target, by engine. ``row`` is empty where there is only one target."""

    row: str
    prompt: Any
    runs: dict[str, Posterior]


@dataclass
class Compared:
    """A group and its comparison."""

    group: Group
    comparison: Any


def compare_groups(groups: Sequence[Group]) -> list[Compared]:
    """Engines are compared within a row: rows have different targets."""
    from ppl_align import compare

    return [Compared(group, compare(group.runs)) for group in groups]
