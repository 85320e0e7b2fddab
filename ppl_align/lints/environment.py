"""A tilted environment: what the world answers, followed by something to condition on.

Conditioning on a reward explains it by the world's luck as well: p*(answer) ∝ p0(answer) E[w | answer]. Who wants to
know what to *do* has to leave the world as it is (Levine 2018, arXiv:1805.00909, section 2.3).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ppl_align.lints.finding import Finding
from ppl_align.lints.glance import Glance
from ppl_align.program import Execution

OTHERS = 3
"""Answers of other particles that each particle is given in place of its own."""


def tilted_environment(glance: Glance) -> Iterator[Finding]:
    """Swap the world's answers between particles, all else held fixed: what comes after must not notice."""
    for name in glance.execution.environment:
        held = glance.values[name]
        runs = [glance.ask({**glance.values, name: held.roll(k + 1, 0)}) for k in range(OTHERS)]
        moved = [factor for run in runs for factor in _moved(glance.execution, run)]
        if moved:
            yield Finding(
                "tilted environment",
                "warning",
                f"{name!r} is what the world answers, and {moved[0]!r} depends on it: engines that condition believe "
                "in a world that answers more kindly",
                "to decide in the world as it is use SVI or Nested",
            )


def _moved(before: Execution, after: Execution) -> Iterator[str]:
    """Factors that say something else; or all of them, if a completion would have been written after another prompt."""
    for source, other in zip(before.sources.values(), after.sources.values(), strict=True):
        if source.prompt_rows(source.batch_shape) != other.prompt_rows(source.batch_shape):
            yield from list(before.factors)[-1:]
    for name, factor in before.factors.items():
        if not torch.allclose(factor, after.factors[name], rtol=1e-4, atol=1e-6, equal_nan=True):
            yield name
