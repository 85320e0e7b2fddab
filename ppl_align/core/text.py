"""A batch of strings that behaves like one string where that is right, and refuses where it would mislead.

Inside a vectorised program every text is a batch, one element per particle. Ordinary string habits would
then silently mean something else (``"good" in review.text`` would ask whether one *element* equals "good"),
so :class:`Texts` raises on them and offers ``map`` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ppl_align.core.errors import BatchTextError

_HINT = "this text is a batch of {n} strings, one per particle: use .map(lambda s: ...) (elementwise) or .tolist()"


class Texts:
    """An array of strings with a batch shape.

    >>> t = Texts(["a b", "c"])
    >>> t.map(lambda s: len(s.split())).tolist()
    [2.0, 1.0]
    >>> (t + "!").tolist()
    ['a b!', 'c!']
    >>> "a" in t
    Traceback (most recent call last):
    ppl_align.core.errors.BatchTextError: this text is a batch of 2 strings, one per particle: ...
    """

    __slots__ = ("array",)
    array: np.ndarray
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, values: Sequence[str] | np.ndarray, shape: Sequence[int] | None = None) -> None:
        if isinstance(values, np.ndarray) and values.dtype == object:
            self.array = values
        else:
            self.array = np.empty(len(values), dtype=object)
            self.array[:] = list(values)
        if shape is not None:
            self.array = self.array.reshape(tuple(shape))

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.array.shape)

    def map(self, f: Callable[[str], Any]) -> Any:
        """Apply ``f`` to every string: strings give ``Texts``, numbers a tensor of the batch shape."""
        results = [f(s) for s in self.flat]
        if results and all(isinstance(r, str) for r in results):
            return Texts(results, self.shape)
        return torch.tensor([float(r) for r in results]).reshape(self.shape)

    @property
    def flat(self) -> list[str]:
        return list(self.array.ravel())

    def tolist(self) -> Any:
        return self.array.tolist()

    def reshape(self, *shape: int) -> Texts:
        return Texts(self.array.reshape(shape))

    def __getitem__(self, index: Any) -> Any:
        picked = self.array[index]
        return Texts(picked) if isinstance(picked, np.ndarray) else picked

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(self.array.shape[0]))

    def __add__(self, other: Any) -> Texts:
        return Texts(self.array + (other.array if isinstance(other, Texts) else other))

    def __radd__(self, other: Any) -> Texts:
        return Texts(other + self.array)

    def _refuse(self, *_: Any) -> Any:
        raise BatchTextError(_HINT.format(n=self.array.size))

    __contains__ = __len__ = __bool__ = __eq__ = __ne__ = __lt__ = __gt__ = __format__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if hasattr(str, name) and not name.startswith("__"):
            raise BatchTextError(f".{name}(): " + _HINT.format(n=self.array.size))
        raise AttributeError(name)

    def __repr__(self) -> str:
        first = self.flat[0] if self.array.size else ""
        shown = first if len(first) <= 40 else first[:37] + "..."
        return f'Texts({self.array.size} particles, "{shown}", ...)'
