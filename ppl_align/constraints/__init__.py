"""Hard constraints on completions: what they are, and how they are read over token ids."""

from ppl_align.constraints.automata import AcceptedBy, AutomatonReader, Contains, EndsWith
from ppl_align.constraints.base import Constraint, Reader

__all__ = ["AcceptedBy", "AutomatonReader", "Constraint", "Contains", "EndsWith", "Reader"]
