"""Lints: what is legal in a program but probably not meant, found by looking at a few draws of its prior."""

from ppl_align.core.deprecation import old_names
from ppl_align.lints.finding import Finding
from ppl_align.lints.prior_sample import PriorSample
from ppl_align.lints.run import LINTS, lint, lint_proposal

__all__ = ["LINTS", "Finding", "PriorSample", "lint", "lint_proposal"]

__getattr__ = old_names(globals(), {"Glance": "PriorSample"})
