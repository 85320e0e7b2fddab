"""Non-static structure: particles that would visit different sites, or a program that changes from run to run."""

from __future__ import annotations

from ppl_align.errors import BatchTextError, ModelError
from ppl_align.lints.finding import Finding

CAUSES = (ModelError, BatchTextError)
"""What a program raises that engines cannot run on many particles at once."""


def non_static(error: Exception) -> Finding:
    """The finding for what a run of the program raised."""
    return Finding("non-static structure", "error", " ".join(str(error).split()))
