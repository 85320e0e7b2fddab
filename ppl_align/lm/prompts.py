"""From what a user writes as a prompt to token ids: distinct prompts, and an index over the batch.

A prompt is text, a list of texts (one per batch element), chat messages, token ids, or a tuple of such parts;
an earlier completion is a part like any other and contributes its own ids, without EOS and padding, so that
nothing is ever tokenised twice. The contents of chat messages may be batches too (``choose(...)``, an earlier
completion). Chat messages that are the whole prompt stay known, for rewards that want to see them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_align.core.errors import PromptError
from ppl_align.core.text import Texts
from ppl_align.lm.base import LM, Ids, WholeIds
from ppl_align.lm.completions import Completion


class ChatIds(WholeIds):
    """Token ids of a chat prompt that remember the ``messages`` they were made from; in all else a tuple of ids.

    >>> ids = ChatIds((5, 7), [{"role": "user", "content": "hi"}])
    >>> ids == (5, 7), ids.messages[0]["content"]
    (True, 'hi')
    """

    messages: list[dict[str, Any]]

    def __new__(cls, ids: Iterable[int], messages: Sequence[Mapping[str, Any]]) -> ChatIds:
        made = super().__new__(cls, tuple(ids))
        made.messages = [dict(message) for message in messages]
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self), self.messages


def resolve_prompt(lm: LM, prompt: Any) -> tuple[tuple[Ids, ...], Tensor]:
    """``(distinct prompts, index)``; ``index`` is int64 and has the batch shape the prompt implies."""
    rows, shape = _part(lm, prompt)
    distinct: dict[Ids, int] = {}
    numbers = _numbered(rows)
    at = {n: distinct.setdefault(_begin(lm, rows[n]), len(distinct)) for n in dict.fromkeys(numbers)}
    index = np.array([at[n] for n in numbers], dtype=np.int64)
    return tuple(distinct), torch.from_numpy(index).reshape(shape)


def _begin(lm: LM, row: Ids) -> Ids:
    begun = lm.begin(row)
    return ChatIds(begun, row.messages) if isinstance(row, ChatIds) else begun


def _part(lm: LM, part: Any) -> tuple[list[Ids], torch.Size]:
    """A flat list of id tuples and its batch shape."""
    if isinstance(part, str):
        return [lm.encode(part)], torch.Size()
    if isinstance(part, Texts):
        return [lm.encode(text) for text in part.flat], part.shape
    if isinstance(part, Completion):
        return part.ids, part.shape
    if isinstance(part, Tensor) and not part.is_floating_point():
        listed = part.reshape(-1, part.shape[-1]).tolist()
        return [_check_ids(lm, row) for row in listed], part.shape[:-1]
    if isinstance(part, (list, tuple)):
        if all(isinstance(item, int) and not isinstance(item, bool) for item in part):
            return [_check_ids(lm, part)], torch.Size()
        if isinstance(part, tuple):
            return _join([_part(lm, item) for item in part])
        if all(isinstance(item, Mapping) for item in part):
            return _chat(lm, part)
        if all(isinstance(item, (str, list)) for item in part):
            rows = [_part(lm, item)[0] for item in part]
            return [row[0] for row in rows], torch.Size([len(rows)])
    raise PromptError(
        f"a prompt is text, a list of texts, chat messages, token ids, an earlier completion or a tuple of these; "
        f"got {type(part).__name__}"
    )


def _chat(lm: LM, messages: Sequence[Mapping[str, Any]]) -> tuple[list[Ids], torch.Size]:
    """A chat for each element of the batch that its contents make.

    A completion takes part with its text, as the template wants it: here alone text is tokenised anew."""
    said = [{**m, "content": c.text} if isinstance(c := m.get("content"), Completion) else dict(m) for m in messages]
    batches = {at: m["content"] for at, m in enumerate(said) if isinstance(m.get("content"), Texts)}
    if not batches:
        return [ChatIds(lm.chat_ids(said), said)], torch.Size()
    shape = _shape_of([batch.shape for batch in batches.values()], "messages of a chat")
    columns = [np.broadcast_to(batch.array, shape).ravel().tolist() for batch in batches.values()]
    made: dict[tuple[str, ...], ChatIds] = {}
    rows: list[Ids] = []
    for words in zip(*columns, strict=True):
        if words not in made:
            chat = [dict(m) for m in said]
            for at, word in zip(batches, words, strict=True):
                chat[at]["content"] = word
            made[words] = ChatIds(lm.chat_ids(chat), chat)
        rows.append(made[words])
    return rows, shape


def _check_ids(lm: LM, ids: Any) -> Ids:
    bad = [i for i in ids if not 0 <= i < lm.vocab_size]
    if bad:
        raise PromptError(f"token id {bad[0]} in the prompt: ids of {lm.name} run from 0 to {lm.vocab_size - 1}")
    return tuple(ids)


def _join(parts: list[tuple[list[Ids], torch.Size]]) -> tuple[list[Ids], torch.Size]:
    """Concatenate the parts of a tuple elementwise, shapes broadcast as tensors do."""
    shape = _shape_of([s for _, s in parts], "parts of a prompt")
    expanded = [torch.arange(len(rows)).reshape(s).expand(shape).reshape(-1).tolist() for rows, s in parts]
    made: dict[tuple[int, ...], Ids] = {}  # particles share most of their texts
    numbered = [_numbered(rows) for rows, _ in parts]
    picked = list(zip(*([n[i] for i in at] for n, at in zip(numbered, expanded, strict=True)), strict=True))
    for which in picked:
        if which not in made:
            made[which] = _chained([rows[i] for (rows, _), i in zip(parts, which, strict=True)])
    return [made[which] for which in picked], shape


def _numbered(rows: list[Ids]) -> list[int]:
    """For each row the number of the first that is the same, in its ids and in whether it is the whole prompt."""
    first: dict[type, dict[Ids, int]] = {kind: {} for kind in set(map(type, rows))}
    if len(first) == 1:
        (known,) = first.values()
        return list(map(known.setdefault, rows, range(len(rows))))
    return [first[type(row)].setdefault(row, at) for at, row in enumerate(rows)]


def _chained(row: list[Ids]) -> Ids:
    ids = tuple(i for part in row for i in part)
    first = next((part for part in row if part), ())
    return WholeIds(ids) if isinstance(first, WholeIds) else ids


def _shape_of(shapes: Sequence[torch.Size], what: str) -> torch.Size:
    try:
        return torch.Size(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        listed = ", ".join(str(tuple(shape)) for shape in shapes)
        raise PromptError(f"the {what} have batch shapes {listed}, which do not fit together") from None
