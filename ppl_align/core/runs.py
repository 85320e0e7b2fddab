"""What goes on around a run: what it remembers, and whether it is the one that the user asked for.

A run asks the same questions again and again, of rewards, of the world, of language models, and the answers stay what
they are as long as it lasts. All of them are kept in one memory, switched on in one place. A run within a run shares
it. And a nested run, which is only a means to an end (the pool that a moment constraint is fitted on), logs nothing:
what it would say of the program, the run that the user asked for says as well.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from ppl_align.core.context import having

T = TypeVar("T")
Ending = Callable[[], "str | None"]
"""Called when a run has ended well; what it returns is a remark on the run."""
E = TypeVar("E", bound=Ending)


class _Memory:
    """``parts``: by name, whatever is kept. ``endings``: what is to be called at the end."""

    def __init__(self) -> None:
        self.parts: dict[Hashable, Any] = {}
        self.endings: dict[Hashable, Ending] = {}


_memory: ContextVar[_Memory | None] = ContextVar("ppl_align_memory", default=None)
_nested: ContextVar[bool] = ContextVar("ppl_align_nested", default=False)


@contextmanager
def run_memory() -> Iterator[list[str]]:
    """Remember inside the block what rewards, the world and language models answered; an inner block shares it.

    Gives a list that holds, once the (outer) block has ended well, what there was to remark on the run."""
    remarks: list[str] = []
    if _memory.get() is not None:
        yield remarks
        return
    memory = _Memory()
    with having(_memory, memory):
        yield remarks
        remarks += [remark for ending in memory.endings.values() if (remark := ending()) is not None]


def remembered(part: Hashable, make: Callable[[], T]) -> T | None:
    """What ``make`` made when this part of the memory was first asked for. None outside of :func:`run_memory`."""
    memory = _memory.get()
    if memory is None:
        return None
    if part not in memory.parts:
        memory.parts[part] = make()
    return memory.parts[part]


def on_run_end(key: Hashable, make: Callable[[], E]) -> E | None:
    """What ``make`` made for this key in this :func:`run_memory`; it is called once, when the block has ended well.

    For whoever has something to say of a run as a whole. None outside of any block; in a nested run nobody calls it."""
    memory = _memory.get()
    if memory is None:
        return None
    if not is_top_level():
        return make()
    if key not in memory.endings:
        memory.endings[key] = make()
    return memory.endings[key]  # type: ignore[return-value]


@contextmanager
def nested_run() -> Iterator[None]:
    """Runs inside the block are means to an end: they log nothing, and nobody is told what an agent would get.

    What they noticed is in their ``posterior.warnings``, for whoever started them to pass on. Python's warnings, and
    errors, are what they always are."""
    with having(_nested, True):
        yield


def is_top_level() -> bool:
    """Is a run that starts now one that the user asked for?"""
    return not _nested.get()
