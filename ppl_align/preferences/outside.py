"""Pyro as if no handler were there, for code that infers while a program is being run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyro.poutine.indep_messenger import _DIM_ALLOCATOR
from pyro.poutine.runtime import _PYRO_STACK


@contextmanager
def outside() -> Iterator[None]:
    """Inside the block, handlers and plates of the program that is being run are set aside.

    A model may learn its reward when it is first called. What is inferred there is no part of the model: without
    this, its sites would become sites of the model, and its plates collide with the engine's."""
    handlers, dims = list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)
    _PYRO_STACK.clear()
    _DIM_ALLOCATOR._stack.clear()
    try:
        yield
    finally:
        _PYRO_STACK[:] = handlers
        _DIM_ALLOCATOR._stack[:] = dims
