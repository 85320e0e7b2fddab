"""Rejection sampling, and the bounds that it needs."""

from ppl_align.engines.rejection.rejection import Rejection

__all__ = ["Rejection"]
