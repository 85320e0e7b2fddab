"""What to say where a column of a data set is asked for that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def lacking(column: str, present: Iterable[str]) -> str:
    """The columns there are, and the one that was probably meant.

    >>> lacking("keyword", ["prompt", "keywrd"])
    "the columns are 'prompt', 'keywrd'; did you mean 'keywrd'?"
    >>> lacking("keyword", [])
    'there are no columns'
    """
    names = list(present)
    if not names:
        return "there are no columns"
    close = difflib.get_close_matches(column, names, n=1)
    are = "the columns are" if len(names) > 1 else "the only column is"
    return f"{are} {', '.join(map(repr, names))}" + (f"; did you mean {close[0]!r}?" if close else "")
