"""A log-factor of a Pyro program, with notes for the engines."""

from __future__ import annotations

from typing import Any

import pyro
from pyro.distributions import Unit
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ppl_align.program.notes import Notes


def factor(name: str, log_factor: Tensor, depends_on: Any, notes: Notes) -> None:
    """``pyro.factor(name, log_factor)`` that remembers ``notes`` (:mod:`ppl_align.program.notes`).

    ``depends_on``: the tensor that the factor was computed from. A value that leaves torch (ids -> text -> float) has
    lost the trace of it, and Pyro's TraceGraph_ELBO would then drop the factor without a word: its gradient is exactly
    zero. So the trace is attached again. Run by hand, outside any inference, there is nobody to tell."""
    if not am_i_wrapped():
        return
    unit = Unit(track_provenance(log_factor, get_provenance(depends_on)))
    infer: Any = notes.infer(is_auxiliary=True)
    pyro.sample(name, unit, obs=unit.sample(), infer=infer)
