"""From regular expressions to automata over characters, and from there (:mod:`ppl_align.lm.spelling`) over tokens."""

from __future__ import annotations

import re
from re import _parser  # type: ignore[attr-defined]

import numpy as np

from ppl_align.core.errors import InputError
from ppl_align.lm.spelling import Characters
from ppl_align.tokens.patterns import REFUSED, operations


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
    refused = next((REFUSED[name] for name in operations(_parser.parse(pattern, re.ASCII)) if name in REFUSED), None)
    if refused is not None:
        return refused
    visible = re.sub(r"\\.", "x", pattern, flags=re.DOTALL)
    if not pattern.isascii() and re.search(r"\(\?[a-z]*i", visible):
        return "(?i) with letters beyond ASCII"
    inside_set = r"\[\^?\]?[^\]]*\]"
    if any(found.startswith(("[]", "[^]")) for found in re.findall(inside_set, visible)):
        return "] first in a set (write \\])"
    return "(?#" if "(?#" in re.sub(inside_set, "x", visible) else None
