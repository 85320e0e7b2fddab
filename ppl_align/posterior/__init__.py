"""The result of every engine, and what can be asked of it without comparing it to anything."""

from ppl_align.posterior.estimates import Estimate
from ppl_align.posterior.result import Posterior

__all__ = ["Estimate", "Posterior"]
