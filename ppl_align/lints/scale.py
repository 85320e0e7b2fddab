"""Uninformative and over-scaled rewards: constant on the prior, or with a beta out of scale with the spread of r.

What a hard constraint turns down is no waste: most engines never draw it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ppl_align.lints.finding import Finding
from ppl_align.lints.prior_sample import PriorSample
from ppl_align.posterior.findings import constant_reward, out_of_scale
from ppl_align.program.notes import notes_of
from ppl_align.program.sketch import sketch

WIDE = 12.0  # nats from the typical draw to the best one: beyond this the prior hardly ever finds the posterior


def constant(sample: PriorSample) -> Iterator[Finding]:
    """A reward that does not tell the draws apart."""
    for name, r in sample.particles.rewards.items():
        text = constant_reward(name, r)
        if text is not None:
            yield Finding("constant reward", "warning", text)


def beta_out_of_scale(sample: PriorSample) -> Iterator[Finding]:
    """The spread of each reward in nats, and of all factors together."""
    run = sample.particles
    for name in run.rewards:
        if name in run.targets:
            continue  # its weight is solved for
        text = out_of_scale(name, run.factors[name], run.scales[name], run.log_potential)
        if text is not None:
            yield Finding("beta out of scale", "warning", text)
    alive = run.log_potential[~run.log_potential.isneginf()]
    if len(alive) == 0:
        yield _all_rejected(sample)
    elif float(alive.max() - alive.median()) > WIDE:
        gap = float(alive.max() - alive.median())
        text = f"the best draw outweighs the typical one by {gap:.0f} nats: expect few effective particles"
        yield Finding("beta out of scale", "warning", text)


def _all_rejected(sample: PriorSample) -> Finding:
    within = _drawn_within(sample)
    alive = torch.ones(sample.num_draws, dtype=torch.bool)
    for name, factor in sample.particles.factors.items():
        alive &= ~factor.isneginf() | (name in within)
    if not bool(alive.any()):
        text = f"all {sample.num_draws} draws are rejected: acceptable completions are rare under the prior"
        return Finding("beta out of scale", "warning", text)
    named = " and ".join(map(repr, within))
    text = f"none of {sample.num_draws} draws of the prior meets {named}: engines draw from within, except Rejection"
    return Finding("beta out of scale", "note", text)


def _drawn_within(sample: PriorSample) -> list[str]:
    """The hard constraints that engines know before they write: on completions of the agent, and seen beforehand."""
    matchers, world = sketch(sample.program).matchers, sample.particles.environment
    known = [(name, notes_of(node)) for name, node in sample.nodes.items()]
    seen = [(name, notes) for name, notes in known if notes.constrains in matchers and notes.constrains not in world]
    return [name for name, notes in seen if notes.matcher and all(part.acts != "end" for part in notes.matcher.parts)]


def nothing_to_infer(sample: PriorSample) -> Iterator[Finding]:
    """No completion, or nothing that would tell the posterior from the prior."""
    if not sample.completions:
        text = "no completion is left to infer: the language model only scores what is observed"
        yield Finding("nothing to infer", "warning", text)
    if not sample.particles.factors:
        text = "nothing is observed or rewarded: the posterior is the prior"
        yield Finding("nothing to infer", "warning", text)
