"""What code of others says while it runs: warnings, and records of this library's logger, a line each."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_OF_LIBRARIES = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


_listening: list[logging.Handler] = []


@contextmanager
def listening(say: Callable[[str], None]) -> Iterator[None]:
    """Each line that is new goes to ``say``, of the innermost who listens; what libraries say of their own future goes
    nowhere.

    >>> with listening(print):
    ...     for _ in range(2):
    ...         logging.getLogger("ppl_align").warning("mind the gap")
    mind the gap
    """
    seen: set[str] = set()

    def once(message: str) -> None:
        line = " ".join(message.split())
        if line not in seen:
            seen.add(line)
            say(line)

    class _Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if _listening[-1] is self:
                once(record.getMessage())

    def show_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        if not issubclass(category, _OF_LIBRARIES):
            once(str(message))

    handler, logger = _Handler(logging.WARNING), logging.getLogger("ppl_align")
    logger.addHandler(handler)
    _listening.append(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            yield
    finally:
        logger.removeHandler(handler)
        _listening.remove(handler)
