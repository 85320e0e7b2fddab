"""What Pyro keeps to itself and this library needs: active handlers, their plates' dimensions, stored parameters.

The only module that touches Pyro's private names."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro import get_param_store
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


Handlers = tuple[list[Any], list[Any]]
Parameters = tuple[dict[Any, Any], dict[Any, Any], dict[Any, Any]]


def active() -> Handlers:
    """The handlers and the dimensions of their plates, to be put back by :func:`activate`."""
    return list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)


def activate(found: Handlers) -> None:
    """These handlers, and no others."""
    _PYRO_STACK[:], _DIM_ALLOCATOR._stack[:] = found


def parameters() -> Parameters:
    """What is in the parameter store, to be put back by :func:`store`. (Its ``get_state`` forgets which tensors belong
    to constrained parameters, which are being trained, perhaps.)"""
    kept: Any = get_param_store()
    return dict(kept._params), dict(kept._param_to_name), dict(kept._constraints)


def store(found: Parameters) -> None:
    """These parameters, and no others."""
    kept: Any = get_param_store()
    kept._params, kept._param_to_name, kept._constraints = map(dict, found)


@contextmanager
def apart() -> Iterator[None]:
    """A run within a run: no handler and no plate of the program that is being run reaches what is run inside.

    A model may learn its reward when it is first called. What is inferred there is no part of the model: without
    this, its sites would become sites of the model, and its plates collide with the engine's."""
    found = active()
    activate(([], []))
    try:
        yield
    finally:
        activate(found)
