"""A pandas frame whose texts can be read when it is printed."""

from __future__ import annotations

import pandas as pd

_LONGEST = 40  # rows; beyond that pandas' own shortened view is the better one


class TextFrame(pd.DataFrame):
    """A ``DataFrame`` in every respect, except that printing wraps long texts instead of cutting them."""

    @property
    def _constructor(self) -> type[TextFrame]:
        return TextFrame

    def __repr__(self) -> str:
        from ppl_align.report.terminal import frame

        return str(frame(self)) if 0 < len(self) <= _LONGEST else super().__repr__()

    __str__ = __repr__
