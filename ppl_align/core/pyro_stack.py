"""What Pyro keeps to itself and this library needs: the handlers that are active, and their plates' dimensions.

The only module that touches Pyro's private names."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.indep_messenger import _DIM_ALLOCATOR, IndepMessenger
from pyro.poutine.runtime import _PYRO_STACK


def handlers() -> list[Any]:
    """The active handlers, innermost first."""
    return list(reversed(_PYRO_STACK))


def plates() -> list[IndepMessenger]:
    """Those of them that are plates, outermost first."""
    return [handler for handler in _PYRO_STACK if isinstance(handler, IndepMessenger)]


def plates_collide(error: BaseException) -> bool:
    """Did Pyro raise this because two plates want one dimension?"""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_code is type(_DIM_ALLOCATOR).allocate.__code__


@contextmanager
def apart() -> Iterator[None]:
    """A run within a run: no handler and no plate of the program that is being run reaches what is run inside.

    A model may learn its reward when it is first called. What is inferred there is no part of the model: without
    this, its sites would become sites of the model, and its plates collide with the engine's."""
    active, dims = list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)
    _PYRO_STACK.clear()
    _DIM_ALLOCATOR._stack.clear()
    try:
        yield
    finally:
        _PYRO_STACK[:] = active
        _DIM_ALLOCATOR._stack[:] = dims
