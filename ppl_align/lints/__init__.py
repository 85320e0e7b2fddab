"""Lints: what is legal in a program but probably not meant, found by looking at a few draws of its prior."""

from ppl_align.lints.finding import Finding
from ppl_align.lints.glance import Glance
from ppl_align.lints.run import LINTS, lint, lint_proposal

__all__ = ["LINTS", "Finding", "Glance", "lint", "lint_proposal"]
