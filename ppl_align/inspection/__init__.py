"""Analysis before inference: what a target is like, seen from draws of its prior."""

from ppl_align.inspection.inspection import Inspection, inspect

__all__ = ["Inspection", "inspect"]
