"""Hard constraints, as engines see them: known before the first token, or too late."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ppl_align.errors import ModelError
from ppl_align.program import Execution, Program
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


def hold(readers: Mapping[str, Sequence[Reader]], execution: Execution) -> None:
    """Are the constraints that engines drew within those of the program, now that it has run to its end?

    Raises ``ModelError`` where one is not: it hangs on something drawn, and what was drawn is confined to the wrong
    texts."""
    for site, expected in readers.items():
        met = execution.constraints.get(site, ())
        if any(all(reader is not other for other in met) for reader in expected):
            raise ModelError(
                f"the constraint on {site!r} changes with what was drawn before it (a latent, or an answer of the "
                f"world): a constraint is one for all draws; write what differs between them as a reward with -inf"
            )
