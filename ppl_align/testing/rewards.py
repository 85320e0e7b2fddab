"""The contract of a reward: a fixed function of one text, whatever stands beside it in the batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ppl_align.core.errors import InputError, PplAlignError, one_line
from ppl_align.rewards.answers import read_answers, shorten
from ppl_align.rewards.calling import as_reward
from ppl_align.rewards.convention import call, convention
from ppl_align.testing.checks import Finding
from ppl_align.testing.report import Report, Result
from ppl_align.testing.texts import PROMPTS, TEXTS

PASSED: Finding = ("passed", "", None)
ROUNDING = 1e-4  # relative to the answer (at least 1): what padding a batch may do to a network in float32


def check_reward(
    fn: Any,
    texts: Sequence[str] | None = None,
    prompts: str | Sequence[str] | None = None,
    **columns: Any,
) -> Report:
    """Is this a reward that inference can trust? ``check_reward(fn).raise_if_failed()``.

    ``fn``       whatever :func:`ppl_align.reward` takes for a completion: a TRL reward, ``f(texts)``, a model, a name
    ``texts``    completions to ask about; by default some two dozen of all kinds
    ``prompts``  one for all, or one for each text, where the reward reads them
    ``columns``  data columns of a TRL reward: a list with one entry for each text, or one value for all

    =============  ================================================================================================
    runs           it answers a batch
    length         one answer for each text
    numbers        each answer is a number or None (does not apply)
    finite         neither NaN nor +inf; -inf (rejected) is fine
    deterministic  asked twice, it says the same
    single         a text alone gets what it gets in a batch
    order          the batch reversed gets the answers reversed
    duplicates     a text twice in a batch gets the same answer twice
    bounds         within ``fn.upper`` and ``fn.lower`` (-inf apart); "none stated" if it has neither
    inputs         the lists it was given are as they were
    empty text     the empty text gets an answer
    =============  ================================================================================================

    Answers agree if they differ by less than 1e-4 (of their size, where above 1): a network in float32 rounds that
    much. Nothing that the reward raises gets out. Raises ``InputError`` for something that is no reward, or columns
    of another length than the texts.
    """
    if isinstance(texts, str):
        raise InputError("check_reward(texts=...) takes a list of texts")
    name = fn if isinstance(fn, str) else getattr(fn, "__name__", type(fn).__name__)
    reward = as_reward(name, fn)
    asked = list(TEXTS if texts is None else texts)
    if len(asked) < 2:
        raise InputError("check_reward() needs at least two texts")
    table: dict[str, list[Any]] = {"completions": asked}
    if convention(reward).trl:
        some = [PROMPTS[i % len(PROMPTS)] for i in range(len(asked))]
        for column, value in {"prompts": some if prompts is None else prompts, **columns}.items():
            table[column] = _column(column, value, len(asked))
        if "completion_ids" in convention(reward).required - set(table):
            raise InputError(
                f"reward {name!r} reads completion_ids: give them with the texts, completion_ids=[[...], ...]"
            )
        convention(reward).check(name, tuple(table))
    elif columns or prompts is not None:
        column = next(iter(columns), "prompts")
        raise InputError(f"reward {name!r} takes the texts only: it cannot read the column {column!r}")
    case = _Case(name, reward, table)
    return Report(f"contract of the reward {name}", [case.judge(check) for check in _CHECKS])


def _column(name: str, value: Any, size: int) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        return [value] * size
    if len(value) != size:
        raise InputError(f"the column {name!r} has {len(value)} entries for {size} texts")
    return list(value)


@dataclass
class _Case:
    """A reward and what it is asked about; ``answers`` are those to the whole batch."""

    name: str
    fn: Callable[..., Any]
    table: Mapping[str, list[Any]]
    changed: list[str] = field(default_factory=list)

    def judge(self, check: str) -> Result:
        try:
            finding = _CHECKS[check](self)
        except _NoAnswers:
            finding = ("inconclusive", "there are no answers to look at", None)
        except Exception as error:
            finding = _failed(f"expected an answer, it raised {one_line(error)}")
        return Result(self.name, check, *finding)

    @property
    def texts(self) -> list[str]:
        return self.table["completions"]

    def raw(self, rows: Sequence[int]) -> Any:
        """What the reward returns for these rows, as it returns it."""
        columns = {name: [copy.deepcopy(values[i]) for i in rows] for name, values in self.table.items()}
        before = copy.deepcopy(columns)
        result = call(self.fn, columns)
        self.changed += [name for name, values in columns.items() if values != before[name]]
        return result

    def ask(self, rows: Sequence[int]) -> list[float]:
        """Its answers as numbers, NaN for None."""
        return read_answers(self.name, self.raw(rows), [self.texts[i] for i in rows])

    @cached_property
    def batch(self) -> Any:
        """The raw answer to all texts, or the exception."""
        try:
            return self.raw(range(len(self.texts)))
        except Exception as error:
            return error

    @cached_property
    def answers(self) -> list[float]:
        if isinstance(self.batch, Exception):
            raise _NoAnswers
        try:
            return read_answers(self.name, self.batch, self.texts)
        except PplAlignError:
            raise _NoAnswers from None

    @cached_property
    def listed(self) -> list[Any]:
        """The raw answers, one by one, as far as there are any."""
        if isinstance(self.batch, (Exception, str, bytes, Mapping)) or not hasattr(self.batch, "__len__"):
            raise _NoAnswers
        return self.batch.tolist() if hasattr(self.batch, "tolist") else list(self.batch)

    def compare(self, rows: Sequence[int], answers: Sequence[float], when: str) -> Finding:
        """Do new answers about these rows agree with those of the batch?"""
        for i, got in zip(rows, answers, strict=True):
            if not _agree(self.answers[i], got):
                return _failed(
                    f"expected {_say(self.answers[i])} for {shorten(self.texts[i], 40)} {when}, got {_say(got)}"
                )
        return PASSED


class _NoAnswers(Exception):
    """The batch has no usable answers: another check says why."""


def _failed(line: str) -> Finding:
    return "failed", line, None


def _agree(one: float, two: float) -> bool:
    if math.isnan(one) or math.isnan(two) or math.isinf(one) or math.isinf(two):
        return one == two or (math.isnan(one) and math.isnan(two))
    return abs(one - two) <= ROUNDING * max(1.0, abs(one))


def _say(answer: float) -> str:
    return "None" if math.isnan(answer) else f"{answer:.6g}"


def _number(answer: Any) -> float | None:
    """The answer as a float, NaN included; None if it is no number."""
    if isinstance(answer, (str, bytes)):
        return None
    try:
        return float(answer)
    except (TypeError, ValueError, RuntimeError):
        return None


# -- the checks ---------------------------------------------------------------------------------------------------


def _runs(case: _Case) -> Finding:
    if not isinstance(case.batch, Exception):
        return PASSED
    for i in range(len(case.texts)):  # one by one: on which text?
        try:
            case.raw([i])
        except Exception as error:
            return _failed(f"expected an answer, it raised {one_line(error)}, on {shorten(case.texts[i], 40)}")
    return _failed(f"expected an answer, it raised {one_line(case.batch)}, on {len(case.texts)} texts together")


def _length(case: _Case) -> Finding:
    if isinstance(case.batch, Exception):
        raise _NoAnswers
    try:
        got = f"{len(case.listed)} answers"
    except (_NoAnswers, TypeError):
        got = shorten(case.batch, 40)
    passed = got == f"{len(case.texts)} answers"
    return PASSED if passed else _failed(f"expected {len(case.texts)} answers, got {got}")


def _numbers(case: _Case) -> Finding:
    for text, answer in zip(case.texts, case.listed, strict=False):
        if answer is not None and _number(answer) is None:
            return _failed(f"expected a number or None for {shorten(text, 40)}, got {shorten(answer, 40)}")
    return PASSED


def _finite(case: _Case) -> Finding:
    for text, answer in zip(case.texts, case.listed, strict=False):
        number = 0.0 if answer is None else _number(answer)
        if number is not None and (math.isnan(number) or number == math.inf):
            return _failed(f"expected a number below +inf for {shorten(text, 40)}, got {number} (None: does not apply)")
    return PASSED


def _deterministic(case: _Case) -> Finding:
    rows = range(len(case.answers))
    return case.compare(rows, case.ask(rows), "asked again")


def _single(case: _Case) -> Finding:
    rows = range(len(case.answers))
    return case.compare(rows, [case.ask([i])[0] for i in rows], "on its own, as in the batch")


def _order(case: _Case) -> Finding:
    for rows in (
        list(range(len(case.answers)))[::-1],
        np.random.default_rng(0).permutation(len(case.answers)).tolist(),
    ):
        finding = case.compare(rows, case.ask(rows), "in another order")
        if finding != PASSED:
            return finding
    return PASSED


def _duplicates(case: _Case) -> Finding:
    rows = [i for i in range(len(case.answers)) for _ in range(2)]
    return case.compare(rows, case.ask(rows), "with each text twice in the batch")


def _bounds(case: _Case) -> Finding:
    held = {name: getattr(case.fn, name, None) for name in ("upper", "lower")}
    stated = {name: bound for name, bound in held.items() if bound is not None and not callable(bound)}
    if not stated:
        return "absent", "", None
    for name, bound in stated.items():
        side = 1 if name == "upper" else -1
        for text, answer in zip(case.texts, case.answers, strict=True):
            beyond = side * (answer - bound) > ROUNDING * max(1.0, abs(bound))
            if beyond and not (side < 0 and answer == -math.inf):
                relation = "at most" if side > 0 else "at least"
                return _failed(
                    f"expected {relation} its {name} = {bound:g} for {shorten(text, 40)}, got {_say(answer)}"
                )
    return PASSED


def _inputs(case: _Case) -> Finding:
    if isinstance(case.batch, Exception):
        raise _NoAnswers
    if case.changed:
        return _failed(f"expected the {case.changed[0]} it was given to stay as they were, it changed them")
    return PASSED


def _empty_text(case: _Case) -> Finding:
    _Case(case.name, case.fn, {k: ["" if k == "completions" else v[0]] for k, v in case.table.items()}).raw([0])
    return PASSED


_CHECKS: dict[str, Callable[[_Case], Finding]] = {
    "runs": _runs,
    "length": _length,
    "numbers": _numbers,
    "finite": _finite,
    "deterministic": _deterministic,
    "single": _single,
    "order": _order,
    "duplicates": _duplicates,
    "bounds": _bounds,
    "inputs": _inputs,
    "empty text": _empty_text,
}
