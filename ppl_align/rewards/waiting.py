"""Waiting for rewards: several at a time, and again for those that fail for a moment.

A reward may be a service. ``async def`` rewards that are asked at one time are awaited at one time, as TRL does, and so
are those of several runs that take turns; :func:`patience` says how many, and how often a call that raised is tried
again.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any

from ppl_align.core.context import having
from ppl_align.core.cost import count, count_share
from ppl_align.core.errors import PplAlignError
from ppl_align.core.turns import Asked, alone, ask, taking_turns


@dataclass(frozen=True)
class Patience:
    """``retries`` of a call that raised, the first after ``pause`` seconds, each later one after twice the time;
    ``concurrency``: calls that are awaited at a time, None: all of them."""

    retries: int = 0
    pause: float = 1.0
    concurrency: int | None = None


NO_PATIENCE = Patience()
_patience: ContextVar[Patience] = ContextVar("ppl_align_patience", default=NO_PATIENCE)


@contextmanager
def patience(retries: int = 0, pause: float = 1.0, concurrency: int | None = None) -> Iterator[None]:
    """How to wait for rewards inside of the block."""
    with having(_patience, Patience(retries, pause, concurrency)):
        yield


@dataclass
class Call:
    """A reward that was called: its ``result`` so far (perhaps an awaitable, or an exception), how to call it again,
    and the ``seconds`` that it took in the end."""

    result: Any
    again: Callable[[], Any]
    context: Context = field(default_factory=copy_context)
    seconds: float = 0.0

    def is_settled(self) -> bool:
        """Is there nothing to wait for, and nothing to try again?"""
        return not inspect.isawaitable(self.result) and not (_failed(self.result) and _patience.get().retries)


def settle(calls: Sequence[Call]) -> list[Any]:
    """The results of the calls; an exception of one is its result, and leaves the others alone.

    In a run among others, theirs are waited for at the same time."""
    open_calls = [call for call in calls if not call.is_settled()]
    if open_calls and taking_turns():
        ask(Waiting(open_calls))
        waited = max(call.seconds for call in open_calls)
        count_share(reward_seconds=waited, seconds=waited)
    elif open_calls:
        wait(open_calls)
    return [call.result for call in calls]


def wait_for(results: Sequence[Any]) -> list[Any]:
    """The results themselves: awaitables among them are awaited, all at the same time.

    An exception of one becomes its result and leaves the others alone."""
    calls = [Call(result, lambda: None) for result in results]
    if any(inspect.isawaitable(result) for result in results):
        with patience():
            wait(calls)
    return [call.result for call in calls]


@dataclass
class Waiting:
    """The question of a run that waits for rewards."""

    calls: list[Call]


def serve(asked: Sequence[Asked]) -> None:
    """Answer runs that wait for rewards, all at once."""
    wait([call for one in asked for call in one.question.calls])
    for one in asked:
        one.answer(None)


def wait(calls: Sequence[Call]) -> None:
    """Await all calls at the same time, as far as :func:`patience` allows; afterwards they are settled."""
    started, how = time.perf_counter(), _patience.get()

    async def all_of_them() -> None:
        slots = nullcontext() if how.concurrency is None else asyncio.Semaphore(how.concurrency)
        await asyncio.gather(*(_settled(call, how, slots) for call in calls))

    _run(all_of_them())
    count(reward_seconds=time.perf_counter() - started)


async def _settled(call: Call, how: Patience, slots: AbstractAsyncContextManager[Any]) -> None:
    started, pause = time.perf_counter(), how.pause
    for tries_left in reversed(range(how.retries + 1)):
        async with slots:
            call.result = await _awaited(call)
        if not _failed(call.result) or not tries_left:
            break
        await asyncio.sleep(pause)
        pause *= 2
        call.result = call.context.run(_called_alone, call.again)
    call.seconds = time.perf_counter() - started


async def _awaited(call: Call) -> Any:
    """What a call comes to, as its own context has it; an exception is a result."""
    if not inspect.isawaitable(call.result):
        return call.result
    inside = call.context.copy()
    inside.run(alone)

    async def finish() -> Any:
        return await call.result

    try:
        return await asyncio.create_task(finish(), context=inside)
    except Exception as error:
        return error


def _failed(result: Any) -> bool:
    """Did the call raise something that is none of this library's errors, which say what to mend?"""
    return isinstance(result, Exception) and not isinstance(result, PplAlignError)


def _called_alone(again: Callable[[], Any]) -> Any:
    alone()
    return again()


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
    else:  # a loop is running already (a notebook): it cannot be entered twice, so wait in a thread with its own
        with ThreadPoolExecutor(1) as pool:
            pool.submit(copy_context().run, asyncio.run, work).result()
