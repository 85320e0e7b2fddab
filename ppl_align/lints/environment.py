"""A tilted environment: what the world answers, followed by something to condition on.

Conditioning on a reward tilts the environment as well: p*(answer) ∝ p0(answer) E[w | answer]. Who wants to
know what to *do* has to leave the world as it is (Levine 2018, arXiv:1805.00909, section 2.3).
"""

from __future__ import annotations

from collections.abc import Iterator

from ppl_align.lints.finding import Finding
from ppl_align.lints.partially_observed import hidden_from
from ppl_align.lints.prior_sample import PriorSample


def tilted_environment(sample: PriorSample) -> Iterator[Finding]:
    """Does a factor depend on what the world answers, directly or through what is said or answered after it?"""
    for name in sample.particles.environment:
        factor = sample.influence.factor(name)
        if factor is not None:
            yield Finding(
                "tilted environment",
                "warning",
                f"{name!r} is what the world answers, and {factor!r} depends on it: engines that condition believe "
                "in a world that answers more kindly",
                "to decide in the world as it is use SVI"
                + (" or TreePlanner" if hidden_from(sample, name) is None else ""),
            )
