"""Sums over the sites of a program, one number per particle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppl_align.posterior.once import once
from ppl_align.posterior.result import Posterior


@once
def log_prior(posterior: Posterior) -> Tensor:
    """log p0 of everything drawn, [R, N] nats."""
    return _total(posterior, posterior.log_prior)


@once
def log_likelihood(posterior: Posterior) -> Tensor:
    """Sum of all factors (r / beta and observed sites), [R, N] nats."""
    return _total(posterior, posterior.factors)


def _total(posterior: Posterior, parts: Any) -> Tensor:
    return sum((part.double() for part in parts.values()), torch.zeros_like(posterior.log_weight))
