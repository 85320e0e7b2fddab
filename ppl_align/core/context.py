"""A context variable that has another value for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def having(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Inside of the block the variable has this value, after it the one from before."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
