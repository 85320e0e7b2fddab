"""What is told of a run is computed once, and kept with it: a verdict asks for the same numbers again and again."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

_Args = ParamSpec("_Args")
_Answer = TypeVar("_Answer")
_TOLD = "_told"


def once(function: Callable[Concatenate[Any, _Args], _Answer]) -> Callable[Concatenate[Any, _Args], _Answer]:
    """A function of a run, computed once for each run (and further hashable arguments)."""

    @wraps(function)
    def answer(run: Any, /, *args: _Args.args, **kwargs: _Args.kwargs) -> _Answer:
        told = run.__dict__.setdefault(_TOLD, {})
        key = function, args, tuple(sorted(kwargs.items()))
        if key not in told:
            told[key] = function(run, *args, **kwargs)
        return told[key]

    return answer


def forget(run: Any) -> None:
    """The run is about to change: what has been told of it no longer holds."""
    run.__dict__.pop(_TOLD, None)
