"""Hard constraints on completions: what they are, and how they are read over token ids."""

from ppl_align.constraints.automata import AcceptedBy, AutomatonReader, Contains, EndsWith
from ppl_align.constraints.base import Constraint, Reader
from ppl_align.constraints.both import Both
from ppl_align.constraints.grammars import Grammar, JsonSchema, Regex
from ppl_align.constraints.length import Length

__all__ = [
    "AcceptedBy",
    "AutomatonReader",
    "Both",
    "Constraint",
    "Contains",
    "EndsWith",
    "Grammar",
    "JsonSchema",
    "Length",
    "Reader",
    "Regex",
]
