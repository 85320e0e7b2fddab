"""What Pyro lets pass and a posterior cannot: likelihoods that are a noisy estimate, or no number."""

from __future__ import annotations

from typing import Any

from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_align.errors import ModelError, RunError


def refuse_subsample(msg: Any) -> None:
    """Raise ``ModelError`` for a plate that subsamples: its likelihood is a noisy estimate, and weights need the value.

    A sequential plate (``for i in pyro.plate(...)``) that visits all its elements is none."""
    fn = msg["fn"]
    if site_is_subsample(msg) and fn.subsample_size is not None and fn.subsample_size < fn.size:
        raise ModelError(
            f"plate {msg['name']!r} takes a subsample of {fn.subsample_size} of {fn.size}: the likelihood would be a "
            f"noisy estimate, and the posterior another one for each seed; leave subsample_size= out"
        )


def refuse_no_number(name: str, log_prob: Tensor) -> None:
    """Raise ``RunError`` for a log-factor that is NaN or +inf, whether Pyro validates or not."""
    bad = log_prob.isnan() | log_prob.isposinf()
    if bool(bad.any()):
        what = "NaN" if bool(log_prob.isnan().any()) else "+inf"
        raise RunError(f"site {name!r} is {what} for some draws: a log-factor is a number below +inf (-inf rejects)")
