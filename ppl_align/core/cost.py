"""What an inference run costs, counted and not guessed.

Counters live in a context, not on the language model: two engines that share one LM keep separate bills.

>>> with measure() as cost:
...     count(lm_tokens=32, lm_forwards=1)
>>> cost.lm_tokens, cost.lm_forwards, cost.reward_calls
(32, 1, 0)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass

from ppl_align.core.context import having


@dataclass
class Cost:
    """The bill of one run.

    ``lm_tokens``      rows pushed through the network while decoding (one row = one new position of one prefix)
    ``lm_forwards``    calls of the network, of whatever kind
    ``prompt_tokens``  prompt positions pushed through the network
    ``scored_tokens``  positions of teacher-forced scoring (observed text, rescoring)
    ``reward_calls``   texts that a reward function was asked about, after de-duplication
    ``environment_calls``  questions to functions that stand for the world, after de-duplication
    ``seconds``        wall time of the run
    ``lm_seconds``     wall time inside the network's forward
    ``reward_seconds`` wall time of reward functions, waiting for services and for another try included
    """

    lm_tokens: int = 0
    lm_forwards: int = 0
    prompt_tokens: int = 0
    scored_tokens: int = 0
    reward_calls: int = 0
    environment_calls: int = 0
    seconds: float = 0.0
    lm_seconds: float = 0.0
    reward_seconds: float = 0.0

    def __str__(self) -> str:
        slow = f" (rewards: {self.reward_seconds:.1f} s)" if self.reward_seconds > 0.1 * self.seconds else ""
        return (
            f"{self.lm_tokens:,} LM tokens, {self.lm_forwards:,} forwards, {self.reward_calls:,} reward calls, "
            f"{self.seconds:.1f} s{slow}"
        )

    def __add__(self, other: Cost) -> Cost:
        """The bill of both, one after the other."""
        return Cost(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


_open: ContextVar[tuple[Cost, ...]] = ContextVar("ppl_align_cost", default=())
_outside: ContextVar[int] = ContextVar("ppl_align_cost_of_others", default=0)


@contextmanager
def measure() -> Iterator[Cost]:
    """Collect the cost of everything inside the block, nested blocks included."""
    cost, started = Cost(), time.perf_counter()
    with having(_open, (*_open.get(), cost)):
        try:
            yield cost
        finally:
            cost.seconds += time.perf_counter() - started


@contextmanager
def uncounted() -> Iterator[None]:
    """What is done inside is on nobody's bill, but for the time it takes.

    >>> with measure() as cost, uncounted():
    ...     count(lm_forwards=1)
    >>> cost.lm_forwards
    0
    """
    with having(_open, ()):
        yield


def count(**amounts: float) -> None:
    """Add amounts to every open bill: ``count(lm_tokens=rows, lm_forwards=1)``."""
    _add(_open.get(), amounts)


@contextmanager
def among_others() -> Iterator[None]:
    """What is shared inside (:func:`count_share`) is on the bills that are opened inside, and on no others."""
    with having(_outside, len(_open.get())):
        yield


def count_share(**amounts: float) -> None:
    """What one of several runs takes of something that is done once, and is counted where that is done.

    >>> with measure() as all_of_them, among_others(), measure() as one:
    ...     count_share(lm_forwards=1)
    >>> all_of_them.lm_forwards, one.lm_forwards
    (0, 1)
    """
    _add(_open.get()[_outside.get() :], amounts)


def _add(bills: tuple[Cost, ...], amounts: dict[str, float]) -> None:
    for cost in bills:
        for name, amount in amounts.items():
            setattr(cost, name, getattr(cost, name) + amount)


@contextmanager
def network() -> Iterator[None]:
    """Time spent inside the network's forward (wall time; on CUDA the time to launch it)."""
    started = time.perf_counter()
    try:
        yield
    finally:
        count(lm_seconds=time.perf_counter() - started)
