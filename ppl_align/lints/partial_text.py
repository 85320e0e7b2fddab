"""Rewards and tools on unfinished text: what ``SMC(twist="prefix")`` asks them, and most were never meant for.

A prefix potential may be anything finite without biasing Z, so a bad one costs draws and not truth. A rejection that is
declared ``prefix_closed`` is the exception: SMC drops such prefixes at once, and what could have followed is lost.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ppl_align.core.errors import PredicateError, RewardError, RunError, type_and_line
from ppl_align.lints.finding import Finding
from ppl_align.lints.prior_sample import PriorSample
from ppl_align.particles.particles import Particles

NOISY = 3.0
"""Times the standard deviation on whole texts that a reward may have on halves of them."""
HEAVY = 1.0  # nats: rewards that say less than this on prefixes mislead nobody


def partial_text(sample: PriorSample) -> Iterator[Finding]:
    """Ask the program about the first half of each text, as SMC does."""
    for site, prior in sample.completions.items():
        if prior.max_new_tokens < 2 or site in sample.particles.environment:
            continue
        names = list(sample.values)
        given = {name: sample.values[name] for name in names[: names.index(site)]}
        given[site] = sample.values[site][..., : prior.max_new_tokens // 2]
        try:
            halves = sample.ask(given)
        except Exception as error:  # whatever the program raises
            own: dict[type[Exception], str] = {
                RewardError: "reward",
                PredicateError: "predicate",
                RunError: "world",
            }
            who = own.get(type(error), "program")
            said = str(error) if who != "program" else f"{site!r} cannot be read: {type_and_line(error)}"
            yield Finding(
                f"{who} on partial text", "warning", f"on unfinished text: {said}", "use SMC(twist=None), or catch it"
            )
            continue
        for name in sample.particles.rewards:
            if name in halves.rewards:
                yield from _of_reward(sample.particles, halves, name)
        yield from _closed_too_early(sample.particles, halves)


def _of_reward(whole: Particles, halves: Particles, name: str) -> Iterator[Finding]:
    before, after = halves.rewards[name], whole.rewards[name]
    if bool(before.isnan().all()) and not bool(after.isnan().all()):
        yield _note(f"reward {name!r} does not apply to unfinished text")
        return
    sd_before, sd_after = _sd(halves.factors[name]), _sd(whole.factors[name])
    if sd_before == 0 and sd_after > 0:
        yield _note(f"reward {name!r} is the same on all halves of the texts")
    elif sd_before > max(NOISY * sd_after, HEAVY):
        yield Finding(
            "reward on partial text",
            "warning",
            f"reward {name!r} varies by {sd_before:.2g} nats over halves of the texts and by {sd_after:.2g} over whole "
            'ones: SMC(twist="prefix") would follow noise',
            'use SMC(twist=None) or every="sentence"',
        )


def _closed_too_early(whole: Particles, halves: Particles) -> Iterator[Finding]:
    for name, closed in halves.prefix_closed.items():
        if closed and name in whole.factors:
            lost = halves.factors[name].isneginf() & whole.factors[name].isfinite()
            if bool(lost.any()):
                yield Finding(
                    "reward on partial text",
                    "warning",
                    f"{name!r} is declared prefix_closed, but rejects the first half of {int(lost.sum())} texts that "
                    "it accepts whole: SMC would lose them",
                    "leave prefix_closed out",
                )


def _note(text: str) -> Finding:
    return Finding("reward on partial text", "note", f'{text}: SMC(twist="prefix") would steer by nothing')


def _sd(values: Tensor) -> float:
    finite = values[torch.isfinite(values)]
    return float(finite.std()) if len(finite) > 1 else 0.0
