"""From characters to tokens: a pattern over text becomes a table over token ids by walking what each token spells."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ppl_align.errors import InputError

if TYPE_CHECKING:
    from ppl_align.lm.base import LM

_BROKEN = "\ufffd"  # what a byte-level vocabulary shows for a token that is a part of a character
_UNABLE = re.compile(r"\(\?<?[=!]|\(\?[>#]|[*+?}]\+")  # look around, atomic groups, comments, possessive quantifiers


@dataclass(frozen=True)
class Characters:
    """A finite automaton over characters: ``step(state, character) -> state``, states 0 to ``len(accepting) - 1``."""

    step: Callable[[int, str], int]
    start: int
    accepting: np.ndarray


def contains_characters(text: str, *, at_the_end: bool = False) -> Characters:
    """Texts that contain ``text``, or end with it; state k: the last k characters read are the first k of ``text``."""

    def step(state: int, character: str) -> int:
        if state == len(text) and not at_the_end:
            return state
        read = text[:state] + character
        return next(k for k in range(len(read), -1, -1) if text.startswith(read[len(read) - k :]))

    return Characters(step, 0, np.arange(len(text) + 1) == len(text))


def regex_characters(pattern: str) -> Characters:
    """Texts that ``pattern`` matches as a whole, by ``interegular``."""
    try:
        import interegular
    except ImportError as error:
        raise InputError("Automaton.regex needs the package interegular: pip install ppl-align[oracles]") from error
    try:
        re.compile(pattern, re.ASCII)
    except (re.error, ValueError) as error:
        raise InputError(f"the regular expression {pattern!r} is not valid: {error}") from error
    misread = _misread(pattern)
    if misread:
        raise InputError(f"the pattern {pattern!r} uses {misread!r}, which cannot become a finite automaton here")
    try:
        machine = interegular.parse_pattern(pattern).to_fsm().reduce()
    except (interegular.Unsupported, interegular.InvalidSyntax) as error:
        hint = "; a pattern describes the whole text, so leave out ^ and $" if str(error) in ("'^'", "'$'") else ""
        reason = str(error) or "syntax that interegular does not know"
        raise InputError(f"the pattern {pattern!r} cannot become a finite automaton: {reason}{hint}") from error
    number = {state: i for i, state in enumerate(sorted(machine.states))}
    dead = len(number)

    def step(state: int, character: str) -> int:
        return table[state].get(machine.alphabet[character], dead)

    table = [{key: number[to] for key, to in machine.map.get(state, {}).items()} for state in sorted(machine.states)]
    table.append({})
    accepting = np.array([*(state in machine.finals for state in sorted(machine.states)), False])
    return Characters(step, number[machine.initial], accepting)


def _misread(pattern: str) -> str | None:
    """The part of a pattern that ``interegular`` would take, without a word, for something else than ``re`` does."""
    visible = re.sub(r"\\.", "x", pattern, flags=re.DOTALL)
    if not pattern.isascii() and re.search(r"\(\?[a-z]*i", visible):
        return "(?i) with letters beyond ASCII"
    inside_set = r"\[\^?\]?[^\]]*\]"
    if any(found.startswith(("[]", "[^]")) for found in re.findall(inside_set, visible)):
        return "] first in a set (write \\])"
    trap = _UNABLE.search(re.sub(inside_set, "x", visible))
    return trap[0] if trap else None


def spell(lm: LM, characters: Characters) -> np.ndarray:
    """The table over tokens: where the characters of token v lead from state s, ``[S, V]`` int64.

    Raises ``InputError`` if the text of a sequence is not the texts of its tokens one after the other."""
    vocabulary = lm.vocabulary
    whole = [v for v, text in enumerate(vocabulary) if _BROKEN not in text]
    if lm.decode(whole) != "".join(vocabulary[v] for v in whole):
        raise InputError(f"the text of {lm.name} is not its tokens' texts one after the other: give it tokens=[...]")
    alphabet = {character: i for i, character in enumerate(sorted(set("".join(vocabulary))))}
    states = len(characters.accepting)
    table = np.array([[characters.step(s, c) for c in alphabet] for s in range(states)], dtype=np.int64)
    result = np.repeat(np.arange(states)[:, None], len(vocabulary), axis=1)
    lengths = np.array([len(text) for text in vocabulary])
    for k in range(lengths.max(initial=0)):
        longer = np.flatnonzero(lengths > k)
        letter = np.array([alphabet[vocabulary[v][k]] for v in longer])
        result[:, longer] = table[result[:, longer], letter]
    return result
