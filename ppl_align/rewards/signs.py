"""Signs that a reward may answer one text in two ways: known without asking it twice, for a judge has its price.

A counter, a clock, a generator of its own, a service behind an API: none of them moves a global random generator. What
a function reads and what it writes says where to look; whether it does answer in two ways only a second question tells,
and that is asked by ``ppl-align check``.
"""

from __future__ import annotations

import dis
import inspect
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

SOURCES = {
    *("random", "secrets", "uuid", "time", "datetime", "subprocess", "socket", "http", "urllib", "urllib3"),
    *("requests", "httpx", "aiohttp", "websockets", "grpc", "openai", "anthropic", "litellm", "ollama", "mistralai"),
    *("cohere", "google", "boto3", "botocore", "huggingface_hub", "gradio_client", "vllm"),
}
"""Modules (their first name) of random numbers, clocks, other processes and services."""
NAMES = {
    *("urandom", "getrandom", "getpid", "default_rng", "time_ns", "perf_counter", "perf_counter_ns", "monotonic"),
    *("monotonic_ns", "process_time", "utcnow", "uuid1", "uuid4", "SystemRandom"),
}
"""Functions of other modules that never say the same twice."""
GROWS = {"append", "appendleft", "extend", "add", "update", "insert", "pop", "popleft", "popitem", "setdefault", "send"}
_ATTRIBUTES = 64  # of an object are looked at


def may_vary(fn: Any) -> bool:
    """Does a reward show any sign that it answers one text in two ways?

    ``async`` functions do (they wait for something), and functions that reach a generator, an iterator, a clock or a
    client, or read what they have written: a counter that is only counted up is no sign.

    >>> import itertools, random
    >>> numbers, dice = itertools.count(), random.Random(0)
    >>> may_vary(lambda texts: [next(numbers) for _ in texts]), may_vary(lambda texts: [dice.random() for _ in texts])
    (True, True)
    >>> asked = []
    >>> may_vary(lambda texts: asked.extend(texts) or [float(len(text)) for text in texts])
    False
    """
    loads, stores = Counter[str](), Counter[str]()  # of attributes, whichever method they are in
    for part in _parts(fn):
        if _is_sign(part):
            return True
        if isinstance(part, FunctionType):
            for step in _steps(part.__code__, "ATTR"):
                (stores if step.opname.startswith("STORE") else loads)[step.argval] += 1
    return _read_what_is_written(loads, stores)


def _parts(fn: Any) -> Iterator[Any]:
    """Functions of the user's that are called, and the values that they reach."""
    waiting: list[tuple[Any, frozenset[str]]] = [(fn, frozenset())]  # with the names of whoever reaches it
    seen: dict[int, Any] = {}
    while waiting:
        at, names = waiting.pop()
        if id(at) in seen:
            continue
        seen[id(at)] = at  # kept alive: its id is its own
        if isinstance(at, partial):
            waiting += [(part, names) for part in (at.func, *at.args, *at.keywords.values())]
        elif isinstance(at, MethodType):
            waiting += [(at.__func__, names), (at.__self__, names)]
        elif isinstance(at, FunctionType):
            yield at
            within = frozenset(name for code in _codes(at.__code__) for name in code.co_names)
            waiting += [(part, within) for part in _reached(at)]
        elif hasattr(at, "identity_parts"):  # an adapter of ours: what it wraps
            waiting.append((getattr(at, "fn", None), names))
        elif _is_own(at):
            yield at
            waiting += [(part, names) for part in (*list(vars(at).values())[:_ATTRIBUTES], *_methods(at, names))]
        else:
            yield at


def _reached(fn: FunctionType) -> list[Any]:
    """What a function holds on to, and what its code names among its module's globals."""
    held = [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]
    for name, value in _variables(fn):
        own = name in fn.__code__.co_freevars or not isinstance(value, FunctionType) or _first(value) == _first(fn)
        held += [value] if own else []
    return held


def _is_own(value: Any) -> bool:
    """Is it an object of a class of the user's, as far as its module tells?"""
    kind = type(value)
    library = isinstance(value, (type, ModuleType)) or _first(kind) in _LIBRARIES or _first(kind) in SOURCES
    return hasattr(value, "__dict__") and not library


_LIBRARIES = {"ppl_align", "torch", "transformers", "pyro", "numpy", "peft", "sklearn", "builtins"}


def _methods(value: Any, names: frozenset[str]) -> list[Any]:
    """``__call__``, the methods of these names, and those they go through, by the names in their code."""
    kind, found, waiting = type(value), dict[str, Any](), ["__call__", *names]
    while waiting:
        name = waiting.pop()
        method = inspect.getattr_static(kind, name, None)
        if isinstance(method, FunctionType) and name not in found:
            found[name] = method
            waiting += [called for code in _codes(method.__code__) for called in code.co_names]
    return list(found.values())


def _is_sign(value: Any) -> bool:
    if isinstance(value, FunctionType):
        return inspect.iscoroutinefunction(value) or _first(value) in SOURCES or _is_suspicious(value)
    if isinstance(value, ModuleType):
        return value.__name__.partition(".")[0] in SOURCES
    kind = type(value)
    if kind.__name__ in ("Generator", "RandomState") and _first(kind) in ("numpy", "torch"):
        return True
    return _first(value if isinstance(value, type) or inspect.isroutine(value) else kind) in SOURCES or hasattr(
        kind, "__next__"
    )


def _is_suspicious(fn: FunctionType) -> bool:
    """Does it call what never says the same twice, or read what it writes?"""
    loads, stores = Counter[str](), Counter[str]()
    for step in _steps(fn.__code__, "DEREF", "GLOBAL"):
        (stores if step.opname.startswith("STORE") else loads)[step.argval] += 1
    names = Counter(name for code in _codes(fn.__code__) for name in code.co_names)
    if NAMES & names.keys() or _read_what_is_written(loads, stores):
        return True
    containers = sum(loads[name] for name, value in _variables(fn) if isinstance(value, (list, dict, set, deque)))
    grows = sum(step.opname == "STORE_SUBSCR" for step in _steps(fn.__code__, "SUBSCR"))
    grows += sum(step.argval in GROWS for step in _steps(fn.__code__, "ATTR", "METHOD"))
    return 0 < grows < containers


def _read_what_is_written(loads: Counter[str], stores: Counter[str]) -> bool:
    """Counting up reads a variable as often as it writes it."""
    return any(count < loads[name] for name, count in stores.items())


def _steps(code: CodeType, *kinds: str) -> Iterator[dis.Instruction]:
    for each in _codes(code):
        for step in dis.get_instructions(each):
            if step.opname.endswith(kinds):
                yield step


def _variables(fn: FunctionType) -> Iterator[tuple[str, Any]]:
    """Variables of outer functions that have a value, and globals that its code names."""
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        with suppress(ValueError):  # a name that has no value yet
            yield name, cell.cell_contents
    names = {name for code in _codes(fn.__code__) for name in code.co_names}
    yield from ((name, fn.__globals__[name]) for name in sorted(names) if name in fn.__globals__)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the comprehensions and functions inside."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)


def _first(thing: Any) -> str:
    return str(getattr(thing, "__module__", None) or "").partition(".")[0].lstrip("_")
