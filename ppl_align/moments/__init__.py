"""Moment constraints, E[phi] = mu, as a posterior whose reward weights are fitted."""

from ppl_align.moments.constraint import MomentConstraint, moment_constraint
from ppl_align.moments.fit import MomentFit

__all__ = ["MomentConstraint", "MomentFit", "moment_constraint"]
