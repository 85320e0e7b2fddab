"""Answers of rewards, remembered for the length of an engine run.

Sequential engines ask for the reward of every particle at every token, and resampled particles share their text:
most questions have been asked before. A reward is a fixed function while an engine runs, so its answers can be kept.
"""

from __future__ import annotations

import dis
from collections.abc import Hashable
from functools import lru_cache, partial
from types import CodeType, FunctionType
from typing import Any

from ppl_align.core.runs import remembered

Row = tuple[Hashable, ...]
"""What a reward saw of one completion, as a key: its text, and what else it reads (prompt, ids, data columns)."""


_PLAIN = frozenset({str, int, float, bool, type(None)})
"""Types whose values are what they are equal to."""


def answers_of(name: str, fn: Any) -> dict[Row, float]:
    """The answers known so far of this reward under this name: outside of any ``run_memory``, none."""
    tables: dict[Hashable, dict[Row, float]] | None = remembered("answers of rewards", dict)
    return {} if tables is None else tables.setdefault((name, identity(fn)), {})


class _Same:
    """Equal to itself only, and keeps its object alive so that no other can take over its id."""

    __slots__ = ("thing",)

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


def identity(fn: Any) -> Hashable:
    """A key that is equal for two objects only if they are the same function.

    A model's body runs once per step, so ``lambda texts: ...`` and ``Vader()`` written in it are new objects each
    time. Functions are therefore compared by their code and the very objects they hold on to (closure, defaults),
    adapters by what they wrap, and everything else by its own ``==``. A variable that a function writes itself (a
    counter) is the same variable whatever it holds.
    """
    if isinstance(fn, FunctionType):
        written = _written(fn.__code__)
        cells = zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
        held = [*(cell if name in written else _contents(cell) for name, cell in cells), *(fn.__defaults__ or ())]
        held += [*(fn.__kwdefaults__ or {}).values(), *vars(fn).values()]
        code: CodeType = fn.__code__
        return (_Same(code), _Same(fn.__globals__), *map(_Same, held))
    if isinstance(fn, partial):
        return (partial, identity(fn.func), content(fn.args), content(fn.keywords))
    parts = getattr(fn, "identity_parts", None)
    if parts is not None:
        return (type(fn), *parts())
    try:
        hash(fn)
    except TypeError:
        return _Same(fn)
    return fn


def content(value: Any) -> Hashable:
    """A key for a value of a data set: equal for lists and dictionaries with equal contents, ``1`` is not ``True``.

    >>> content({"a": [1, 2]}) == content({"a": [1, 2]}), content(1) == content(True)
    (True, False)
    """
    if type(value) in _PLAIN:
        return type(value), value
    if isinstance(value, (list, tuple)):
        return (type(value), *map(content, value))
    if isinstance(value, dict):
        return (dict, *((content(name), content(held)) for name, held in value.items()))
    return (type(value), identity(value))


@lru_cache(maxsize=1024)
def _written(code: CodeType) -> frozenset[str]:
    """The variables of outer functions that this code assigns to, or the functions inside of it do."""
    stores = {step.argval for step in dis.get_instructions(code) if step.opname in ("STORE_DEREF", "DELETE_DEREF")}
    inner = (_written(one) for one in code.co_consts if isinstance(one, CodeType))
    return (frozenset(stores).union(*inner)) & frozenset(code.co_freevars)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return cell
