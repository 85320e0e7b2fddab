"""Hard constraints on completions: what they are, and how they are read over token ids."""

from ppl_align.constraints.automata import AcceptedBy, AutomatonMatcher, Contains, EndsWith
from ppl_align.constraints.base import Constraint
from ppl_align.constraints.both import Both
from ppl_align.constraints.grammars import Grammar, JsonSchema, Regex
from ppl_align.constraints.length import LengthLimit
from ppl_align.constraints.predicate import Predicate
from ppl_align.core.deprecation import old_names
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
    "LengthLimit",
    "Matcher",
    "Predicate",
    "Regex",
]

__getattr__ = old_names(
    globals(), {"Length": "LengthLimit", "Reader": "Matcher", "AutomatonReader": "AutomatonMatcher"}
)
