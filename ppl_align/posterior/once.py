"""What is told of a run is computed once: a verdict over several runs asks for the same numbers again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

_Args = ParamSpec("_Args")
_Answer = TypeVar("_Answer")

_told: ContextVar[dict[Any, Any] | None] = ContextVar("told", default=None)


@contextmanager
def told_once() -> Iterator[None]:
    """Within, functions that are :func:`once` keep their answers. No run may change meanwhile."""
    if _told.get() is not None:
        yield
        return
    token = _told.set({})
    try:
        yield
    finally:
        _told.reset(token)


def once(function: Callable[Concatenate[Any, _Args], _Answer]) -> Callable[Concatenate[Any, _Args], _Answer]:
    """A function of a run, computed once for each run (and further hashable arguments) inside :func:`told_once`."""

    @wraps(function)
    def answer(run: Any, /, *args: _Args.args, **kwargs: _Args.kwargs) -> _Answer:
        told = _told.get()
        if told is None:
            return function(run, *args, **kwargs)
        key = function, id(run), args, tuple(sorted(kwargs.items()))
        if key not in told:
            told[key] = run, function(run, *args, **kwargs)  # the run is held: no other gets its id
        return told[key][1]

    return answer
