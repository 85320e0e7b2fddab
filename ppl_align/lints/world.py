"""What the world answers: not to be conditioned on, nor hidden from the agent, nor drawn in secret.

A tilted environment, whose answers are followed by something to condition on. A partially observed one: it has
answered, the agent is not told, and what is best to say depends on it. Randomness that is not declared: a function that
answers the same question otherwise when asked again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ppl_align.lints.finding import Finding
from ppl_align.lints.prior_sample import PriorSample

AGAIN = 3
"""Times that the world is asked once more."""


def tilted_environment(sample: PriorSample) -> Iterator[Finding]:
    """Does a factor depend on what the world answers, directly or through what is said or answered after it?

    Conditioning on a reward tilts the environment as well: p*(answer) ∝ p0(answer) E[w | answer]. Who wants to know
    what to *do* has to leave the world as it is (Levine 2018, arXiv:1805.00909, section 2.3)."""
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


def partially_observed(sample: PriorSample) -> Iterator[Finding]:
    """Each answer of the world that a later prompt should have shown, for all the agent could do with it.

    ``TreePlanner`` looks ahead from the history, in which every answer of the world so far stands, shown or not; so
    does the backward induction that gives ``Enumeration`` its best J. Both are then the values of an agent who knows
    more than the program tells it (Kaelbling, Littman & Cassandra 1998: a POMDP is not the MDP of its states). A guide
    reads prompts only."""
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


def undeclared_randomness(sample: PriorSample) -> Iterator[Finding]:
    """Ask functions that stand for the world anew, about the same. Whoever is the first to answer otherwise is to
    blame; those after it may only have been asked about what it said.

    Engines run a program many times over on the same values. What they hold fixed are its latents: a world's randomness
    has to be one of them, or nothing that follows is a function of what was drawn."""
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
