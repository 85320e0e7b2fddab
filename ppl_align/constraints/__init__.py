"""Hard constraints on completions: what they are, and how they are read over token ids."""

from ppl_align.constraints.base import Constraint, Reader

__all__ = ["Constraint", "Reader"]
