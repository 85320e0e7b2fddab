"""What an engine says in every run is worth hearing once."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """Inside, each warning and each log line of the same words is shown once (by each log handler)."""
    heard: set[Any] = set()
    show = warnings.showwarning

    def show_once(message: Any, category: Any, *where: Any, **more: Any) -> None:
        if (key := (category, str(message))) not in heard:
            heard.add(key)
            show(message, category, *where, **more)

    filters = [(handler, _Once()) for handler in _handlers()]
    warnings.showwarning = show_once
    for handler, once in filters:
        handler.addFilter(once)
    try:
        yield
    finally:
        warnings.showwarning = show
        for handler, once in filters:
            handler.removeFilter(once)


class _Once(logging.Filter):
    """Lets a line through the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: set[tuple[str, int, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        key = (record.name, record.levelno, record.getMessage())
        new = key not in self.heard
        self.heard.add(key)
        return new


def _handlers() -> set[logging.Handler]:
    """All handlers there are; the one of last resort is used where there are none."""
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    found = {handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers}
    return found | ({logging.lastResort} if logging.lastResort else set())
