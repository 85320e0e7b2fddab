"""Runs that take turns: each goes on until it asks for something, and what all of them ask for is answered at once.

A run is ordinary code: an engine, a program, a reward. Each has a thread of its own, of which only one is awake at any
time, always in the same order, so that the result depends on nobody's speed. What a process has only one of (random
numbers, Pyro's handlers and parameters, filters of warnings) is put in its place when a run wakes up and put aside when
it asks: runs know nothing of each other. Context variables are each run's own, as threads have them.

    def serve(asked):                       # everybody who is not done is waiting
        for one in asked:
            one.answer(one.question + 1)    # at least one

    Turns(serve).run([lambda: ask(1), lambda: ask(2)])      # [2, 3]
"""

from __future__ import annotations

import contextvars
import random
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from ppl_align.core import pyro_stack
from ppl_align.core.cost import among_others, count_share

T = TypeVar("T")


@dataclass(eq=False)
class Asked:
    """A run that waits: its ``number``, its ``question``, and once it has one, its answer."""

    number: int
    question: Any
    answered: bool = False
    value: Any = None
    error: BaseException | None = None

    def answer(self, value: Any) -> None:
        """The run goes on with this value at its next turn."""
        self.answered, self.value = True, value

    def refuse(self, error: BaseException) -> None:
        """The run meets this error where it asked."""
        self.answered, self.error = True, error


@dataclass(eq=False)
class Outcome(Generic[T]):
    """What became of a run: its ``value``, or the ``error`` that ended it."""

    value: T | None = None
    error: BaseException | None = None

    def get(self) -> T:
        """The value; raises the error."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


class Closed(BaseException):
    """Unwinds a run that will get no answer any more; a BaseException, so that ``except Exception`` lets it through."""


_OF_WARNINGS = ("filters", "showwarning", "_showwarnmsg_impl")  # what catch_warnings replaces


class World:
    """What a process has only one of, as one of several runs knows it."""

    def __init__(self) -> None:
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        self.numpy, self.random = np.random.get_state(), random.getstate()  # noqa: NPY002
        self.handlers, self.parameters = pyro_stack.active(), pyro_stack.parameters()
        self.warnings = {name: getattr(warnings, name) for name in _OF_WARNINGS}

    @classmethod
    def begin(cls) -> World:
        """As it is now, for a run that is about to begin: what it changes is its own."""
        world = cls()
        world.warnings["filters"] = list(warnings.filters)
        return world

    def restore(self) -> None:
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.random)
        pyro_stack.activate(self.handlers)
        pyro_stack.store(self.parameters)
        for name, value in self.warnings.items():
            setattr(warnings, name, value)
        warnings._filters_mutated()  # type: ignore[attr-defined]


@dataclass(eq=False)
class _Run(Generic[T]):
    """One run: its thread, and whose turn it is."""

    number: int
    work: Callable[[], T]
    world: World
    awake: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    asked: Asked | None = None
    outcome: Outcome[T] | None = None
    closing: bool = False


_current: ContextVar[tuple[Turns, _Run[Any]] | None] = ContextVar("ppl_align_turns", default=None)


def taking_turns() -> bool:
    """Is this a run among others, so that :func:`ask` has somebody to ask?"""
    return _current.get() is not None


def alone() -> None:
    """From here on, in this context, nobody takes turns: for what is called while all the runs wait."""
    _current.set(None)


def ask(question: Any) -> Any:
    """Let the others go on until the question is answered; the answer. Raises what it was refused with."""
    here = _current.get()
    if here is None:
        raise LookupError("nobody is there to answer: ask() belongs into a run of Turns")
    return here[0]._wait(here[1], question)


class Turns:
    """``serve``: called when everybody who is not done waits, with their questions in the order of the runs; it answers
    (or refuses) at least one of them."""

    def __init__(self, serve: Callable[[Sequence[Asked]], None]) -> None:
        self.serve = serve
        self._back = threading.Semaphore(0)

    def run(self, works: Sequence[Callable[[], T]]) -> list[Outcome[T]]:
        """All runs to their ends, in one process; what became of each. An interrupt unwinds all of them."""
        outside = World()
        runs = [_Run(number, work, World.begin()) for number, work in enumerate(works)]
        threads = []
        for run in runs:
            context = contextvars.copy_context()
            threads.append(threading.Thread(target=context.run, args=(self._live, run), daemon=True))
        for thread in threads:
            thread.start()
        try:
            ready = list(runs)
            while ready:
                for run in ready:
                    self._wake(run)
                waiting = [run.asked for run in runs if run.asked is not None]
                outside.restore()
                if waiting:
                    self.serve(waiting)
                ready = [run for run in runs if run.asked is not None and run.asked.answered]
                if waiting and not ready:
                    raise RuntimeError(f"{len(waiting)} runs wait, and none of them was answered")
        finally:
            for run in runs:
                if run.outcome is None:
                    run.closing = True
                    self._wake(run)
            outside.restore()
            for thread in threads:
                thread.join()
        return [run.outcome for run in runs if run.outcome is not None]

    def _wake(self, run: _Run[Any]) -> None:
        """The run's turn: from where it waits to where it asks again, or to its end."""
        run.world.restore()
        run.awake.release()
        self._back.acquire()

    def _live(self, run: _Run[Any]) -> None:
        run.awake.acquire()
        try:
            if run.closing:
                raise Closed
            _current.set((self, run))
            with among_others():
                run.outcome = Outcome(value=run.work())
        except BaseException as error:
            run.outcome = Outcome(error=error)
        finally:
            run.asked = None
            self._back.release()

    def _wait(self, run: _Run[Any], question: Any) -> Any:
        if run.closing:
            raise Closed
        run.asked, run.world = Asked(run.number, question), World()
        started = time.perf_counter()
        self._back.release()
        run.awake.acquire()
        count_share(seconds=started - time.perf_counter())  # others were at work
        asked, run.asked = run.asked, None
        if run.closing or asked is None:
            raise Closed
        if asked.error is not None:
            raise asked.error
        return asked.value
