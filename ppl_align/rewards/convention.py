"""How a reward function wants to be called: with TRL's keywords, or with the texts alone.

TRL calls ``f(prompts=[...], completions=[...], completion_ids=[...], **columns)``, keyword arguments only, every
list of the batch size (``trl/trainer/grpo_trainer.py``, ``_calculate_rewards``). A function whose signature names one
of these three is called like that; anything else gets the texts as its one positional argument.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

from ppl_align.core.columns import lacking
from ppl_align.core.errors import InputError
from ppl_align.rewards.waiting import wait_for

OWN_COLUMNS = ("prompts", "completions", "completion_ids")


def _unheard(*_: Any) -> None:
    """``log_extra`` and ``log_metric`` of a function that is called by hand: see :mod:`ppl_align.rewards.journal`."""


SERVICES: dict[str, Any] = {
    "log_extra": _unheard,
    "log_metric": _unheard,
    "trainer_state": SimpleNamespace(global_step=0),
}
"""What TRL hands to every reward besides columns."""


@dataclass
class Convention:
    """What the signature of a reward says.

    ``trl``       it takes TRL's keywords; otherwise the list of texts is its only argument
    ``named``     parameters it names; ``required``: those of them without a default
    ``open``      it takes any keyword, and may read it. By Python's habit a catch-all whose name starts with an
                  underscore (``**_``) is there to be ignored, so that such a reward depends on what it names only
    """

    trl: bool = False
    named: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    open: bool = False
    warned: bool = False

    def reads(self, column: str) -> bool:
        """Can the answer depend on this column?"""
        return column in self.named or self.open

    def check(self, name: str, available: Sequence[str], columns: Sequence[str] = ()) -> None:
        """Raise ``InputError`` for a column that the reward needs and nobody has; warn of a moving reward.

        ``available``: all that the reward could be given; ``columns``: those of the data set that there are."""
        missing = sorted(self.required - {*available, *SERVICES})
        if missing and missing[0] in OWN_COLUMNS:
            raise InputError(f"reward {name!r} reads {missing[0]}: give it the completion itself, not only its text")
        if missing:
            column = missing[0]
            there = f" ({lacking(column, columns)})" if columns else ""
            raise InputError(
                f"reward {name!r} needs the column {column!r}{there}: give it, "
                f"reward(..., columns={{{column!r}: ...}}) or reward_funcs(..., {column}=...)"
            )
        if "trainer_state" in self.named and not self.warned:
            self.warned = True
            warnings.warn(
                f"reward {name!r} reads trainer_state: a reward that changes during inference is not a likelihood. "
                "It always sees global_step=0 here",
                UserWarning,
                stacklevel=2,
            )


_conventions: WeakKeyDictionary[Any, Convention] = WeakKeyDictionary()


def convention(fn: Callable[..., Any]) -> Convention:
    """The convention of ``fn``, remembered as long as ``fn`` lives."""
    try:
        known = _conventions.get(fn)
    except TypeError:  # not hashable, or not weakly referable
        return _inspect(fn)
    if known is None:
        known = _conventions[fn] = _inspect(fn)
    return known


def _inspect(fn: Callable[..., Any]) -> Convention:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # builtins without a signature
        return Convention()
    by_keyword = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    catch_all = [p for p in parameters if p.kind is p.VAR_KEYWORD]
    named = frozenset(p.name for p in by_keyword)
    only_keywords = bool(catch_all) and len(parameters) == 1
    return Convention(
        trl=bool(named & set(OWN_COLUMNS)) or only_keywords,
        named=named,
        required=frozenset(p.name for p in by_keyword if p.default is p.empty),
        open=bool(catch_all) and not catch_all[0].name.startswith("_"),
    )


def start_call(fn: Callable[..., Any], columns: Mapping[str, Any]) -> Any:
    """Call ``fn`` in its own convention; keywords that it does not take are dropped. May return an awaitable.

    ``columns``: lists of the batch size, and services where the caller has better ones than none."""
    how = convention(fn)
    if not how.trl:
        return fn(columns["completions"])
    offered = {**SERVICES, **columns}
    return fn(**{name: value for name, value in offered.items() if how.reads(name)})


def call(fn: Callable[..., Any], columns: Mapping[str, Any]) -> Any:
    """``start_call``, awaited."""
    (result,) = wait_for([start_call(fn, columns)])
    if isinstance(result, BaseException):
        raise result
    return result


def plain_text(completion: Any) -> str:
    """The text of one completion or prompt in either of TRL's formats: a string, or chat messages (one a line).

    >>> plain_text("hello"), plain_text([{"role": "assistant", "content": "hello"}])
    ('hello', 'hello')
    """
    if isinstance(completion, str):
        return completion
    return "\n".join(_content(message["content"]) for message in completion)


def _content(content: Any) -> str:
    """A message's content is text, or a list of blocks of which some are text."""
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content)
