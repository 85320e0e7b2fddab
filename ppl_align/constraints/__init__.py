"""Hard constraints on completions: what they are, and how they are read over token ids."""

from ppl_align.constraints.automata import AcceptedBy, AutomatonMatcher, Contains, EndsWith
from ppl_align.constraints.base import Constraint
from ppl_align.constraints.both import Both
from ppl_align.constraints.grammars import Grammar, JsonSchema, Regex
from ppl_align.constraints.length import Length
from ppl_align.lm.matcher import Matcher

__all__ = [
    "AcceptedBy",
    "AutomatonMatcher",
    "Both",
    "Constraint",
    "Contains",
    "EndsWith",
    "Grammar",
    "JsonSchema",
    "Length",
    "Matcher",
    "Regex",
]
