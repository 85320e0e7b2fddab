"""``evaluate``: ask a reward about a batch, once per distinct text, and say clearly what went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from ppl_align.completions import Completion
from ppl_align.cost import count
from ppl_align.errors import InputError, PplAlignError, RewardError
from ppl_align.rewards.answers import check_number, read_answers, shorten
from ppl_align.rewards.cache import Row, answers_of, reward_cache
from ppl_align.rewards.classifier import ClassifierReward, find_tokenizer
from ppl_align.rewards.convention import call, convention
from ppl_align.rewards.registry import resolve
from ppl_align.text import Texts

__all__ = ["evaluate", "reward_cache"]


def evaluate(name: str, fn: Any, completion: Completion | Texts | Tensor | str) -> Tensor:
    """Raw rewards r of a batch, float64 on the CPU, of the batch shape; NaN where the reward said ``None``.

    ``fn`` may be

    * a TRL reward function, sync or async: it is called with the keywords it takes among ``prompts``,
      ``completions``, ``completion_ids``, ``log_extra``, ``log_metric`` and ``trainer_state``. Prompts and
      completions are strings; ``chat(fn)`` makes them messages, ``columns(fn, answer=...)`` adds data columns;
    * ``f(texts)``: a list of strings in, as many numbers out (``None``: does not apply; ``-inf``: rejected);
    * a transformers sequence-classification model with one output, or ``ClassifierReward(model, tokenizer)``;
    * the name of a shipped reward, or a dotted path ``package.module:function``;
    * for a tensor instead of a completion: ``f(tensor) -> tensor`` of the batch shape (the leading dimensions).

    Distinct texts are asked about once per call, and once per run inside :func:`reward_cache`; what was really
    asked is counted as ``reward_calls``. Raises ``InputError`` for something that is no reward, ``RewardError`` if
    the reward raises or returns a wrong number of values, NaN, +inf or something that is no number.
    """
    fn = as_reward(name, fn)
    if isinstance(completion, Tensor):
        return _of_tensor(name, fn, completion)
    seen, shape = _what_it_sees(name, fn, completion)
    rows: list[Row] = list(zip(*seen.values(), strict=True))
    known = answers_of(name, fn)
    new = [row for row in dict.fromkeys(rows) if row not in known]
    if new:
        known.update(zip(new, _ask(name, fn, tuple(seen), new), strict=True))
    return torch.tensor([known[row] for row in rows], dtype=torch.float64).reshape(shape)


def as_reward(name: str, fn: Any) -> Callable[..., Any]:
    """The callable behind whatever was given as a reward; raises ``InputError`` if there is none."""
    if isinstance(fn, str):
        fn = resolve(fn)
    if isinstance(fn, nn.Module) and hasattr(fn, "config"):
        return ClassifierReward(fn, find_tokenizer(fn))
    if isinstance(fn, type):
        raise InputError(f"reward {name!r}: {fn.__name__} is a class, write {fn.__name__}()")
    if not callable(fn):
        raise InputError(
            f"reward {name!r}: a reward is a function, a sequence-classification model or a name, "
            f"got {type(fn).__name__}"
        )
    return fn


def _what_it_sees(
    name: str, fn: Callable[..., Any], completion: Completion | Texts | str
) -> tuple[dict[str, Sequence[Any]], torch.Size]:
    """The columns that the answer may depend on, each a flat list of the batch, and the batch shape."""
    if isinstance(completion, str):
        texts, shape = [completion], torch.Size()
    elif isinstance(completion, Texts):
        texts, shape = completion.flat, completion.shape
    elif isinstance(completion, Completion):
        texts, shape = completion.texts(), completion.shape
    else:
        raise InputError(f"reward {name!r} reads a completion, its text or a tensor, got {type(completion).__name__}")
    columns: dict[str, Sequence[Any]] = {"completions": texts}
    how = convention(fn)
    if not how.trl:
        return columns, shape
    if isinstance(completion, Completion):
        if how.reads("prompts"):
            with suppress(ValueError):  # a completion made by hand may carry no prompt
                columns["prompts"] = completion.texts("prompt")
        if how.reads("completion_ids"):
            columns["completion_ids"] = _trl_ids(completion)
    how.check(name, tuple(columns))
    return columns, shape


def _trl_ids(completion: Completion) -> list[tuple[int, ...]]:
    """Ids as TRL gives them: the terminal token belongs, padding does not."""
    tokens = completion.tokens.reshape(-1, completion.tokens.shape[-1]).tolist()
    return [tuple(row[:n]) for row, n in zip(tokens, completion.lengths.reshape(-1).tolist(), strict=True)]


def _ask(name: str, fn: Callable[..., Any], names: Sequence[str], rows: Sequence[Row]) -> list[float]:
    texts = [row[names.index("completions")] for row in rows]
    count(reward_calls=len(rows))
    try:
        result = _call(fn, names, rows)
    except PplAlignError:
        raise
    except Exception as error:
        text, error = _culprit(fn, names, rows, error)
        raise RewardError(f"reward {name!r} raised {_one_line(error)}, on {text}{_hint(error)}") from error
    return read_answers(name, result, texts)


def _call(fn: Callable[..., Any], names: Sequence[str], rows: Sequence[Row]) -> Any:
    columns = {column: list(values) for column, values in zip(names, zip(*rows, strict=True), strict=True)}
    if "completion_ids" in columns:
        columns["completion_ids"] = [list(ids) for ids in columns["completion_ids"]]
    return call(fn, columns)


def _culprit(
    fn: Callable[..., Any], names: Sequence[str], rows: Sequence[Row], error: Exception
) -> tuple[str, Exception]:
    """The text on which a failed batch fails: asked one by one, until one does."""
    at = names.index("completions")
    for row in rows if len(rows) > 1 else ():
        try:
            _call(fn, names, [row])
        except Exception as single:
            return f"the text {shorten(row[at])}", single
    where = "the text" if len(rows) == 1 else f"a batch of {len(rows)} texts, the first of them"
    return f"{where} {shorten(rows[0][at])}", error


def _one_line(error: Exception) -> str:
    message = str(error).strip().splitlines()
    return type(error).__name__ + (f": {message[0]}" if message else "")


def _hint(error: Exception) -> str:
    if isinstance(error, AttributeError) and "'list' object" in str(error):
        return ". It gets a list of texts: if it is a function of one text, wrap it: ppl_align.rewards.each(fn)"
    if isinstance(error, TypeError) and "string indices" in str(error):
        return ". It seems to expect chat messages: wrap it: ppl_align.rewards.chat(fn)"
    return ""


def _of_tensor(name: str, fn: Callable[..., Any], value: Tensor) -> Tensor:
    try:
        r = fn(value)
    except PplAlignError:
        raise
    except Exception as error:
        raise RewardError(f"reward {name!r} raised {_one_line(error)}, on {_describe(value)}") from error
    if not isinstance(r, Tensor):
        raise RewardError(f"reward {name!r} of {_describe(value)} must be a tensor, not {type(r).__name__}")
    if r.shape != value.shape[: r.dim()] or (r.dim() == 0 and value.dim() and _inside_a_plate()):
        raise RewardError(
            f"reward {name!r} of {_describe(value)} has shape {list(r.shape)}: it must keep the batch, that is the "
            "leading dimensions (sum over dim=-1, not over everything)"
        )
    r = r.to("cpu", torch.float64)
    count(reward_calls=r.numel())
    bad = (r.isnan() | (r == math.inf)).reshape(-1)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        row = value.detach().cpu().reshape(r.numel(), -1)[at].tolist()
        check_number(name, float(r.reshape(-1)[at]), f"the value {shorten(row)}")
    return r


def _describe(value: Tensor) -> str:
    return f"a tensor of shape {list(value.shape)}"


def _inside_a_plate() -> bool:
    """Is there a batch at all? Then a reward without one has mixed its elements."""
    return any(isinstance(handler, IndepMessenger) for handler in _PYRO_STACK)
