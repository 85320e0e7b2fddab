"""A partially observed environment: it has answered, the agent is not told, and what is best to say depends on it.

``TreePlanner`` looks ahead from the history, in which every answer of the world so far stands, shown or not; so does
the backward induction that gives ``Enumeration`` its best J. Both are then the values of an agent who knows more than
the program tells it (Kaelbling, Littman & Cassandra 1998: a POMDP is not the MDP of its states). A guide reads prompts
only.
"""

from __future__ import annotations

from collections.abc import Iterator

from ppl_align.lints.finding import Finding
from ppl_align.lints.prior_sample import PriorSample


def partially_observed(sample: PriorSample) -> Iterator[Finding]:
    """Each answer of the world that a later prompt should have shown, for all the agent could do with it."""
    for name in sample.particles.environment:
        found = hidden_from(sample, name)
        if found is not None:
            site, factor = found
            yield Finding(
                "partially observed environment",
                "warning",
                f"{name!r} is what the world answers, the prompt of {site!r} does not show it, and {factor!r} depends "
                "on both: TreePlanner and the best J of Enumeration decide as if the agent knew it",
                f"use SVI, whose policy reads prompts only; show it, or let the world answer after {site!r}",
            )


def hidden_from(sample: PriorSample, name: str) -> tuple[str, str] | None:
    """``(site, factor)``: the first later completion of the agent that would be another if it knew, and what for."""
    order, world = list(sample.values), sample.particles.environment
    for site in order[order.index(name) + 1 :]:
        if site in sample.completions and site not in world:
            factor = sample.influence.unseen(name, site)
            if factor is not None:
                return site, factor
    return None
