"""Tempered sequential Monte Carlo: from what is drawn to the posterior, exponent by exponent."""

from ppl_align.engines.tempered.tempered import TemperedSMC

__all__ = ["TemperedSMC"]
