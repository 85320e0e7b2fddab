"""``evaluate``: ask a reward about a batch, once per distinct text, and say clearly what went wrong."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ppl_align.core.cost import count
from ppl_align.core.errors import InputError, PplAlignError, RewardError, type_and_line
from ppl_align.core.pyro_stack import plates
from ppl_align.core.runs import is_top_level, on_run_end, remembered
from ppl_align.core.seeds import generators
from ppl_align.core.text import Texts
from ppl_align.lm.completions import Completion
from ppl_align.rewards.answers import check_number, read_answers, shorten
from ppl_align.rewards.cache import answers_of, identity
from ppl_align.rewards.classifier import ClassifierReward, find_tokenizer
from ppl_align.rewards.convention import start_call
from ppl_align.rewards.journal import services
from ppl_align.rewards.registry import resolve
from ppl_align.rewards.seen import what_it_sees
from ppl_align.rewards.signs import may_vary
from ppl_align.rewards.waiting import Call, settle, wait_for

__all__ = ["evaluate", "evaluate_all"]


def evaluate(
    name: str, fn: Any, completion: Completion | Texts | Tensor | str, columns: Mapping[str, Any] | None = None
) -> Tensor:
    """Raw rewards r of a batch, float64 on the CPU, of the batch shape; NaN where the reward said ``None``.

    ``fn`` may be

    * a TRL reward function, sync or async: it is called with the keywords it takes among ``prompts``,
      ``completions``, ``completion_ids``, ``log_extra``, ``log_metric``, ``trainer_state`` and ``columns``. Where the
      prompt is chat messages, prompts and completions are messages too, else strings; ``chat(fn)`` wraps strings;
    * ``f(texts)``: a list of strings in, as many numbers out (``None``: does not apply; ``-inf``: rejected);
    * a transformers sequence-classification model with one output, or ``ClassifierReward(model, tokenizer)``;
    * the name of a shipped reward, a dotted path ``package.module:function``, or a model's folder or hub name;
    * for a tensor instead of a completion: ``f(tensor) -> tensor`` of the batch shape (the leading dimensions).

    ``columns``: a data column's value by its name. A batch (``Texts``, a tensor, another completion) is broadcast to
    the batch of completions, anything else is one value for all.

    Distinct texts are asked about once per call, and once per run inside ``run_memory()``; what was really
    asked is counted as ``reward_calls``. Raises ``InputError`` for something that is no reward, ``RewardError`` if
    the reward raises or returns a wrong number of values, NaN, +inf or something that is no number.
    """
    return evaluate_all({name: fn}, completion, columns)[name]


def evaluate_all(
    fns: Mapping[str, Any], completion: Completion | Texts | Tensor | str, columns: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """:func:`evaluate` for several rewards by name; ``async def`` ones among them wait at the same time."""
    rewards = {name: as_reward(name, fn) for name, fn in fns.items()}
    if isinstance(completion, Tensor):
        if columns:
            raise InputError(f"the column {next(iter(columns))!r}: a reward of a tensor reads no columns")
        return {name: _of_tensor(name, fn, completion) for name, fn in rewards.items()}
    questions = [_Question(name, fn, completion, columns or {}) for name, fn in rewards.items()]
    answers = settle([Call(question.start(), question.ask) for question in questions])
    return {q.name: q.read(answer) for q, answer in zip(questions, answers, strict=True)}


class _Question:
    """One reward, one batch: what is not known yet is asked about."""

    def __init__(self, name: str, fn: Callable[..., Any], completion: Any, columns: Mapping[str, Any]) -> None:
        self.name, self.fn = name, fn
        refuse_batches(name, fn)
        self.seen = what_it_sees(name, fn, completion, columns)
        self.known = answers_of(name, fn)
        first = {row: i for i, row in reversed(list(enumerate(self.seen.rows))) if row not in self.known}
        self.new = sorted(first.values())
        self.drew = False  # did a global random generator move while it was asked?

    def start(self) -> Any:
        """:meth:`ask`, on the bill with its time: who asks again counts that while waiting."""
        started = time.perf_counter()
        try:
            return self.ask()
        finally:
            count(reward_seconds=time.perf_counter() - started)

    def ask(self) -> Any:
        """The reward's result for what is new: perhaps an awaitable, an exception, or None where nothing is."""
        if not self.new:
            return None
        count(reward_calls=len(self.new))
        before = generators()
        try:
            return self._call(self.new)
        except Exception as error:
            return error
        finally:
            self.drew = generators() != before

    def read(self, result: Any) -> Tensor:
        """All answers, once the result is there."""
        if self.new:
            if isinstance(result, BaseException):
                self._explain(result)
            rows, texts = self.seen.rows, [self.seen.texts[i] for i in self.new]
            answers = read_answers(self.name, result, texts)
            self._note_if_it_may_vary()
            self.known.update(zip([rows[i] for i in self.new], answers, strict=True))
        r = [self.known[row] for row in self.seen.rows]
        return torch.tensor(r, dtype=torch.float64).reshape(self.seen.shape)

    def _note_if_it_may_vary(self) -> None:
        """A reward that drew random numbers (or loaded a network, which does so too), or that shows another sign that
        it answers one text in two ways (:mod:`ppl_align.rewards.signs`): the run says so at its end."""
        drew = self.drew
        looked_at: dict[Hashable, bool] | None = remembered("do rewards vary?", dict) if is_top_level() else None
        if looked_at is None:
            return
        which = (self.name, identity(self.fn))
        if which not in looked_at:
            looked_at[which] = may_vary(self.fn)
        if drew or looked_at[which]:
            on_run_end(("a reward that may vary", self.name), lambda: lambda: _varies(self.name, drew))

    def _call(self, at: Sequence[int]) -> Any:
        return start_call(self.fn, {**self.seen.take(at), **services(self.name, [self.seen.texts[i] for i in at])})

    def _explain(self, error: BaseException) -> NoReturn:
        if isinstance(error, PplAlignError) or not isinstance(error, Exception):
            raise error
        text, error = self._culprit(error)
        hint = _hint(error, chat=not isinstance(self.seen.columns["completions"][0], str))
        raise RewardError(f"reward {self.name!r} raised {type_and_line(error)}, on {text}{hint}") from error

    def _culprit(self, error: Exception) -> tuple[str, Exception]:
        """The text on which a failed batch fails: asked one by one, until one does; not of a service that is away."""
        texts = self.seen.texts
        for i in self.new if len(self.new) > 1 and not isinstance(error, OSError) else ():
            try:
                (single,) = wait_for([self._call([i])])
            except Exception as raised:
                single = raised
            if isinstance(single, Exception):
                return f"the text {shorten(texts[i])}", single
        first = shorten(texts[self.new[0]])
        many = f"a batch of {len(self.new)} texts, the first of them {first}"
        return f"the text {first}" if len(self.new) == 1 else many, error


def _varies(name: str, drew: bool) -> str:
    """The remark on a reward that may answer one text in two ways."""
    what, other = ("drew random numbers", "seed") if drew else ("may answer one text in two ways", "run")
    return (
        f"reward {name!r} {what}: each text was asked about once and its answer kept, so another {other} may have "
        "another target; `ppl-align check` says by how many nats it varies"
    )


def refuse_batches(name: str, fn: Any) -> None:
    """Raises ``InputError`` for a function that holds a batch of the program: it is asked about distinct texts only, in
    any order, so that what it was given as an argument and what it holds do not lie side by side."""
    if isinstance(fn, partial):
        held = {**{f"argument {i + 1}": value for i, value in enumerate(fn.args)}, **fn.keywords}
        fn = fn.func
    else:
        held = {}
    if isinstance(fn, FunctionType):
        held |= inspect.getclosurevars(fn).nonlocals if fn.__closure__ else {}
        names = fn.__code__.co_varnames[: fn.__code__.co_argcount]
        held |= dict(zip(reversed(names), reversed(fn.__defaults__ or ()), strict=False)) | (fn.__kwdefaults__ or {})
    for what, value in held.items():
        if isinstance(value, (Completion, Texts)) and value.shape.numel() > 1:
            raise InputError(
                f"reward {name!r} holds {what!r}, a batch of {value.shape.numel()}, but is asked about distinct texts "
                f"only: hand the batch over as columns={{{what!r}: {what}}}, and let it be an argument of the function"
            )


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


def _hint(error: Exception, chat: bool) -> str:
    if isinstance(error, (AttributeError, TypeError, KeyError)) and chat:
        return ". The prompt is chat messages, so a completion is too: read completion[0]['content']"
    if isinstance(error, AttributeError) and "'list' object" in str(error):
        return ". It gets a list of texts: if it is a function of one text, wrap it: ppl_align.rewards.each(fn)"
    if isinstance(error, (TypeError, IndexError)) and "string ind" in str(error):
        return ". It seems to expect chat messages: wrap it: ppl_align.rewards.chat(fn)"
    return ""


def _of_tensor(name: str, fn: Callable[..., Any], value: Tensor) -> Tensor:
    try:
        r = fn(value)
    except PplAlignError:
        raise
    except Exception as error:
        raise RewardError(f"reward {name!r} raised {type_and_line(error)}, on {_describe(value)}") from error
    if not isinstance(r, Tensor):
        raise RewardError(f"reward {name!r} of {_describe(value)} must be a tensor, not {type(r).__name__}")
    # Inside of a plate there is a batch: a reward without one has mixed its elements.
    if r.shape != value.shape[: r.dim()] or (r.dim() == 0 and value.dim() and plates()):
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
