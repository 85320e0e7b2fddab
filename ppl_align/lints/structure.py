"""Dynamic structure: particles that would visit different sites, or a program that changes from run to run."""

from __future__ import annotations

from collections.abc import Iterator

from ppl_align.core.errors import BatchTextError, ModelError
from ppl_align.lints.finding import Finding
from ppl_align.lints.prior_sample import PriorSample

CAUSES = (ModelError, BatchTextError)
"""What a program raises that engines cannot run on many particles at once."""
ALONE = 4
"""Particles that are looked at alone: a branch that half of them take is missed once in sixteen times."""


def dynamic(error: Exception) -> Finding:
    """The finding for what a run of the program raised."""
    return Finding("dynamic structure", "error", " ".join(str(error).split()))


def dynamic_structure(sample: PriorSample) -> Iterator[Finding]:
    """A site that a batch has and a particle of it has not, as after ``if (z > 0).any()``, or the other way round."""
    try:
        for i in range(min(ALONE, sample.num_draws)):
            sample.ask(rows=slice(i, i + 1))
    except CAUSES as error:
        yield dynamic(error)
