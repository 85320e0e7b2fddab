"""Randomness of the world that is not declared: a function that answers the same question otherwise when asked again.

Engines run a program many times over on the same values. What they hold fixed are its latents: a world's randomness has
to be one of them, or nothing that follows is a function of what was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ppl_align.lints.finding import Finding
from ppl_align.lints.prior_sample import PriorSample

AGAIN = 3
"""Times that the world is asked once more."""


def undeclared_randomness(sample: PriorSample) -> Iterator[Finding]:
    """Ask functions that stand for the world anew, about the same. Whoever is the first to answer otherwise is to
    blame; those after it may only have been asked about what it said."""
    before = sample.particles.answers
    for _ in range(AGAIN if before else 0):
        after = sample.ask(known=()).answers
        for name, answers in before.items():
            if not all(map(_same, answers, after[name])):
                yield Finding(
                    "undeclared randomness",
                    "warning",
                    f"environment {name!r} answers otherwise when asked the same again: engines cannot hold fixed what "
                    "is no latent",
                    "let it draw from a generator that it is given, world(*inputs, rng), and keep no memory of its own",
                )
                break


def _same(one: str | float, other: str | float) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-9)
