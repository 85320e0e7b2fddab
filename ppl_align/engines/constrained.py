"""Hard constraints, as engines see them: known before the first token, or too late."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ppl_align.program import Program
from ppl_align.program.sketch import sketch

if TYPE_CHECKING:
    from ppl_align.constraints.base import Reader

log = logging.getLogger(__name__)


def foreseen(program: Program) -> Mapping[str, tuple[Reader, ...]]:
    """The constraints on each completion, by a look at the program before anything is drawn.

    Where the look fails, what follows is not known: a constraint there still holds, as a rejection at the end."""
    found = sketch(program)
    if found.stopped is not None:
        what = f"{type(found.stopped).__name__}: {found.stopped}".splitlines()[0]
        log.info("a look ahead at the program stopped at %s; constraints after that act only at the end", what)
    return found.readers
