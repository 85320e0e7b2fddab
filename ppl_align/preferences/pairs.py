"""Preference pairs: which of two texts somebody liked better, from a file in TRL's format or made here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppl_align.core.errors import InputError, first_line
from ppl_align.rewards.answers import shorten
from ppl_align.rewards.convention import plain_text

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
FEWEST = 2  # with a single pair there is nothing to standardise features by


@dataclass(frozen=True)
class Pairs:
    """n comparisons: ``better[i]`` was liked more than ``worse[i]``, as answers to ``prompts[i]`` where there are any.

    Raises ``InputError`` for columns of different lengths, a text that is none, or a pair of equal texts.

    >>> pairs = Pairs(["a fine film", "superb"], ["a bore", "a mess"])
    >>> len(pairs), (pairs + pairs[:1]).better
    (2, ('a fine film', 'superb', 'a fine film'))
    """

    better: Sequence[str]
    worse: Sequence[str]
    prompts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("better", "worse", "prompts"):
            texts = getattr(self, name)
            if texts is None and name == "prompts":
                continue
            if isinstance(texts, str):
                raise InputError(f"Pairs: {name} is a list of texts, got one text")
            for i, text in enumerate(texts):
                if not isinstance(text, str):
                    raise InputError(f"Pairs: {name}[{i}] is no text but {shorten(text)}")
            object.__setattr__(self, name, tuple(texts))
        if len(self.better) != len(self.worse) or len(self.better) != len(self.prompts or self.better):
            raise InputError(
                f"Pairs: {len(self.better)} better, {len(self.worse)} worse"
                + ("" if self.prompts is None else f" and {len(self.prompts)} prompts")
                + ": there must be as many of each"
            )
        for i, (better, worse) in enumerate(zip(self.better, self.worse, strict=True)):
            if better == worse:
                raise InputError(f"Pairs: pair {i} compares a text with itself, which says nothing: {shorten(better)}")

    def __len__(self) -> int:
        return len(self.better)

    def __getitem__(self, part: slice) -> Pairs:
        return Pairs(self.better[part], self.worse[part], None if self.prompts is None else self.prompts[part])

    def __add__(self, other: Pairs) -> Pairs:
        if (self.prompts is None) != (other.prompts is None):
            raise InputError("Pairs with prompts and pairs without cannot be joined")
        prompts = None if self.prompts is None or other.prompts is None else (*self.prompts, *other.prompts)
        return Pairs((*self.better, *other.better), (*self.worse, *other.worse), prompts)


def read_pairs(path: str | Path) -> Pairs:
    """A preference data set in TRL's format: columns ``chosen`` and ``rejected``, and ``prompt`` where there is one.

    JSONL (one object per line), JSON (a list of objects), CSV or Parquet. Entries are texts or lists of chat messages.
    Without a ``prompt`` column, messages that ``chosen`` and ``rejected`` begin with in common are the prompt (TRL's
    implicit prompt); texts are taken as they are.

    Raises ``InputError`` for a file that is missing, unreadable or empty, lacks a column, or holds a pair of equals.
    """
    path = Path(path)
    rows = _rows(path)
    if not rows:
        raise InputError(f"{path} holds no preference pairs: it is empty")
    for column in ("chosen", "rejected"):
        missing = next((i for i, row in enumerate(rows) if row.get(column) is None), None)
        if missing is not None:
            there = ", ".join(map(str, rows[missing])) or "none"
            raise InputError(
                f"{path}: row {missing} has no {column!r} (its columns: {there}); preference pairs have chosen, "
                "rejected and, if there is one, prompt"
            )
    try:
        prompts, better, worse = zip(*(_row(row, i) for i, row in enumerate(rows)), strict=True)
        held = None if all(prompt is None for prompt in prompts) else [prompt or "" for prompt in prompts]
        return Pairs(better, worse, held)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _rows(path: Path) -> list[Mapping[str, Any]]:
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: preference pairs are read from {', '.join(FORMATS)} files")
    if not path.is_file():
        why = "it is a folder" if path.is_dir() else "there is no such file"
        raise InputError(f"no preference pairs at {path}: {why}")
    try:
        if path.suffix == ".jsonl":
            lines = path.read_text("utf-8").split("\n")  # splitlines() would cut texts at other separators
            rows: Any = [_object(line, i) for i, line in enumerate(lines, 1) if line.strip()]
        elif path.suffix == ".json":
            rows = json.loads(path.read_text("utf-8"))
        else:
            rows = _frame(path)
    except (ValueError, OSError, UnicodeError) as error:
        raise InputError(f"{path} cannot be read as preference pairs ({first_line(error)[:120]})") from None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise InputError(f"{path} is not a list of objects with prompt, chosen and rejected")
    return rows


def _object(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {getattr(error, 'msg', error)}") from None


def _frame(path: Path) -> list[Mapping[str, Any]]:
    import pandas as pd

    if path.stat().st_size == 0:
        return []
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str, keep_default_na=False)
    rows = frame.to_dict("records")
    return [{str(k): v.tolist() if hasattr(v, "tolist") else v for k, v in row.items()} for row in rows]


def _row(row: Mapping[str, Any], number: int) -> tuple[str | None, str, str]:
    """Prompt (None: there is none), better, worse."""
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    try:
        if prompt is None and not isinstance(chosen, str) and not isinstance(rejected, str):
            shared = 0
            while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
                shared += 1
            prompt, chosen, rejected = chosen[:shared] or None, chosen[shared:], rejected[shared:]
        return None if prompt is None else plain_text(prompt), plain_text(chosen), plain_text(rejected)
    except (TypeError, KeyError):
        what = "an entry is neither a text nor a list of chat messages with a content"
        raise InputError(f"row {number}, counted from 0: {what}") from None
