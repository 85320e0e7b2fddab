"""A tilted environment: what the world answers, followed by something to condition on.

Conditioning on a reward explains it by the world's luck as well: p*(answer) ∝ p0(answer) E[w | answer]. Who wants to
know what to *do* has to leave the world as it is (Levine 2018, arXiv:1805.00909, section 2.3).
"""

from __future__ import annotations

from collections.abc import Iterator

from ppl_align.lints.finding import Finding
from ppl_align.lints.glance import Glance


def tilted_environment(glance: Glance) -> Iterator[Finding]:
    """A site of the world that is random, with a factor after it."""
    order = list(glance.nodes)
    for name in glance.execution.environment:
        if _is_certain(glance, name):
            continue
        after = [other for other in order[order.index(name) + 1 :] if other in glance.execution.factors]
        if after:
            yield Finding(
                "tilted environment",
                "warning",
                f"{name!r} is what the world answers, and {after[-1]!r} comes after it: engines that condition "
                "believe in a world that answers more kindly",
                "to decide in the world as it is use SVI or Nested",
            )


def _is_certain(glance: Glance, name: str) -> bool:
    """One possible answer only: there is nothing to tilt."""
    fn = glance.nodes[name]["fn"]
    base = getattr(fn, "base_dist", fn)
    return type(base).__name__ == "Delta"
