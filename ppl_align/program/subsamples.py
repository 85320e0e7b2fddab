"""Plates that subsample: their likelihood is a noisy estimate, fit to train a guide with and not to weigh draws.

SVI trains on ``pyro.plate(..., subsample_size=)`` as Pyro does. Everything else that it does with the program it does
under :func:`whole_plates`, where every plate visits all its elements.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pyro.poutine.subsample_messenger import SubsampleMessenger

from ppl_align.core.context import having
from ppl_align.core.errors import ModelError

_met: ContextVar[dict[str, tuple[int, int]] | None] = ContextVar("ppl_align_whole_plates", default=None)
_lock, _blocks = threading.Lock(), 0
_drawn: Any = SubsampleMessenger._subsample


@contextmanager
def whole_plates() -> Iterator[dict[str, tuple[int, int]]]:
    """A context in which no plate takes a subsample; the dict gets ``(subsample_size, size)`` of those that would.

    Pyro's own function is replaced as long as there are such contexts, and does what it did outside of them: of
    several runs that take turns, one may be within and another without."""
    found: dict[str, tuple[int, int]] = {}
    _count(1)
    try:
        with having(_met, found):
            yield found
    finally:
        _count(-1)


def _count(more: int) -> None:
    global _blocks
    plate: Any = SubsampleMessenger
    with _lock:
        _blocks += more
        plate._subsample = staticmethod(_whole if _blocks else _drawn)


def _whole(name: str, size: int | None = None, subsample_size: Any = None, subsample: Any = None, *rest: Any) -> Any:
    found = _met.get()
    taken = len(subsample) if subsample is not None else subsample_size
    if found is not None and size is not None and taken is not None and taken < size:
        found[name] = int(taken), int(size)
        subsample_size = subsample = None
    return _drawn(name, size, subsample_size, subsample, *rest)


def refuse_loops(nodes: Mapping[str, Any], subsampled: Mapping[str, tuple[int, int]]) -> None:
    """Raise ``ModelError`` for ``for i in pyro.plate(..., subsample_size=)``: each step would meet other sites."""
    for site, node in nodes.items():
        for frame in node["cond_indep_stack"]:
            if frame.dim is None and frame.name in subsampled:
                few, size = subsampled[frame.name]
                raise ModelError(
                    f"plate {frame.name!r} is a loop over a subsample of {few} of {size}, and site {site!r} is met "
                    f"when its turn comes only: write `with pyro.plate({frame.name!r}, ...) as i:`, or leave "
                    "subsample_size= out"
                )


def refuse_local_latents(
    plates: Mapping[str, tuple[str | None, ...]], subsampled: Mapping[str, tuple[int, int]]
) -> None:
    """Raise ``ModelError`` for a latent of its own for each element of a plate that subsamples: SVI's guide sees but a
    part of them at each step."""
    for site, around in plates.items():
        for plate in around:
            if plate is not None and plate in subsampled:
                few, size = subsampled[plate]
                raise ModelError(
                    f"latent {site!r} is inside of plate {plate!r}, which takes a subsample of {few} of {size}: the "
                    "guide would have to know which of them it sees; leave subsample_size= out, or draw it outside"
                )


def say_subsampled(subsampled: Mapping[str, tuple[int, int]]) -> str:
    """One line for the user."""
    each = ", ".join(f"{few} of {size} of plate {name!r}" for name, (few, size) in subsampled.items())
    return f"the guide was trained on subsamples ({each} at each step); the weights are those of the whole plate"
