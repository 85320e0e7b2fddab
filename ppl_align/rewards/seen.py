"""What a reward sees of a batch: texts, and where it reads them, prompts, ids and columns of a data set.

TRL shows completions as chat messages exactly where the prompt is chat messages, and so does this: a prompt remembers
the messages it was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.core.text import Texts
from ppl_align.lm.completions import Completion
from ppl_align.lm.prompts import ChatIds
from ppl_align.rewards.cache import Row, content
from ppl_align.rewards.convention import OWN_COLUMNS, SERVICES, convention

_DROPPED = ("prompt", "completion")
"""Columns of a data set that TRL does not hand on: the reward has ``prompts`` and ``completions``."""


@dataclass
class Seen:
    """A batch as one reward sees it.

    ``texts``    the completions as text, flat        ``shape``  of the batch
    ``columns``  keyword -> one value per completion  ``rows``   one key per completion: equal keys, equal answers
    """

    texts: list[str]
    shape: torch.Size
    columns: dict[str, list[Any]]
    rows: list[Row]

    def take(self, at: Sequence[int]) -> dict[str, list[Any]]:
        """The columns for some of the completions. Lists and messages are copies: a reward may spoil them."""
        return {name: [_fresh(values[i]) for i in at] for name, values in self.columns.items()}


def what_it_sees(
    name: str, fn: Callable[..., Any], completion: Completion | Texts | str, columns: Mapping[str, Any]
) -> Seen:
    """Completions, and what else the signature of ``fn`` reads of them and of the data columns.

    Raises ``InputError`` for a column that is missing, or whose shape does not fit."""
    texts, shape = _texts(name, completion)
    how = convention(fn)
    keys: list[Sequence[Hashable]] = [texts]
    if not how.trl:
        return Seen(texts, shape, {"completions": texts}, list(zip(*keys, strict=True)))
    taken = sorted({*columns} & {*OWN_COLUMNS, *SERVICES})
    if taken:
        raise InputError(f"reward {name!r}: a column cannot be called {taken[0]!r}, rewards get something else by it")
    chat = _chat_prompts(completion)
    seen: dict[str, list[Any]] = {"completions": list(texts)}
    if chat is not None:
        seen["completions"] = [[{"role": "assistant", "content": text}] for text in texts]
        keys.append([ChatIds] * len(texts))
    if isinstance(completion, Completion):
        if how.reads("prompts"):
            with suppress(ValueError):  # a completion made by hand may carry no prompt
                prompts = completion.texts("prompt")
                seen["prompts"] = list(prompts) if chat is None else [prompt.messages for prompt in chat]
                keys.append(prompts if chat is None else _keys(seen["prompts"]))
        if how.reads("completion_ids"):
            seen["completion_ids"] = _trl_ids(completion)
            keys.append(list(map(tuple, seen["completion_ids"])))
    for column, value in columns.items():
        if how.reads(column) and column not in _DROPPED:
            seen[column] = _spread(name, column, value, shape)
            keys.append(_keys(seen[column]))
    keys.append([tuple(seen)] * len(texts))
    how.check(name, tuple(seen), tuple(columns))
    return Seen(texts, shape, seen, list(zip(*keys, strict=True)))


def _fresh(value: Any) -> Any:
    if isinstance(value, list):
        return [_fresh(item) if isinstance(item, (list, dict)) else item for item in value]
    return {key: _fresh(item) for key, item in value.items()} if isinstance(value, dict) else value


def _texts(name: str, completion: Any) -> tuple[list[str], torch.Size]:
    if isinstance(completion, str):
        return [completion], torch.Size()
    if isinstance(completion, Texts):
        return completion.flat, completion.shape
    if isinstance(completion, Completion):
        return completion.texts(), completion.shape
    raise InputError(f"reward {name!r} reads a completion, its text or a tensor, got {type(completion).__name__}")


def _chat_prompts(completion: Any) -> list[ChatIds] | None:
    """The prompt of every element, where all of them are chat messages; None elsewhere."""
    source = completion.source if isinstance(completion, Completion) else None
    if source is None or not source.prompts:
        return None
    prompts = [prompt for prompt in source.prompts if isinstance(prompt, ChatIds)]
    if len(prompts) < len(source.prompts):
        return None
    return [prompts[i] for i in source.index.expand(completion.shape).reshape(-1).tolist()]


def _trl_ids(completion: Completion) -> list[list[int]]:
    """Ids as TRL gives them: the terminal token belongs, padding does not."""
    tokens = completion.tokens.reshape(-1, completion.tokens.shape[-1]).tolist()
    return [row[:n] for row, n in zip(tokens, completion.lengths.reshape(-1).tolist(), strict=True)]


def _spread(name: str, column: str, value: Any, shape: torch.Size) -> list[Any]:
    """One value per completion: a batch (``Texts``, a tensor, an array) is broadcast, anything else is repeated."""
    if isinstance(value, Completion):
        value = value.text
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    batch = value.array if isinstance(value, Texts) else value
    if not isinstance(batch, np.ndarray):
        return [batch] * shape.numel()
    try:
        return np.broadcast_to(batch, tuple(shape)).reshape(-1).tolist()
    except ValueError:
        raise InputError(
            f"reward {name!r}: the column {column!r} has shape {list(batch.shape)}, the completions have {list(shape)}"
        ) from None


def _keys(values: Sequence[Any]) -> list[Hashable]:
    """A key for each value; what is one object (a constant column, a shared prompt) is looked at once."""
    found: dict[int, Hashable] = {}
    return [found[id(v)] if id(v) in found else found.setdefault(id(v), content(v)) for v in values]
