"""Stochastic variational inference, and its gradient estimator."""

from ppl_align.engines.svi.svi import SVI

__all__ = ["SVI"]
