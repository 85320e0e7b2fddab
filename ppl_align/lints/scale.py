"""Rewards that say nothing, or shout: constant on the prior, or with a beta out of scale with the spread of r."""

from __future__ import annotations

from collections.abc import Iterator

from ppl_align.lints.finding import Finding
from ppl_align.lints.glance import Glance
from ppl_align.posterior.findings import constant_reward, out_of_scale

WIDE = 12.0  # nats from the typical draw to the best one: beyond this the prior hardly ever finds the posterior


def constant(glance: Glance) -> Iterator[Finding]:
    """A reward that does not tell the draws apart."""
    for name, r in glance.execution.rewards.items():
        text = constant_reward(name, r)
        if text is not None:
            yield Finding("constant reward", "warning", text)


def beta_out_of_scale(glance: Glance) -> Iterator[Finding]:
    """The spread of each reward in nats, and of all factors together."""
    run = glance.execution
    for name in run.rewards:
        if name in run.targets:
            continue  # its weight is solved for
        text = out_of_scale(name, run.factors[name], run.scales[name], run.log_potential)
        if text is not None:
            yield Finding("beta out of scale", "warning", text)
    alive = run.log_potential[~run.log_potential.isneginf()]
    if len(alive) == 0:
        text = f"all {glance.num_draws} draws are rejected: acceptable completions are rare under the prior"
        yield Finding("beta out of scale", "warning", text)
    elif float(alive.max() - alive.median()) > WIDE:
        gap = float(alive.max() - alive.median())
        text = f"the best draw outweighs the typical one by {gap:.0f} nats: expect few effective particles"
        yield Finding("beta out of scale", "warning", text)


def nothing_to_infer(glance: Glance) -> Iterator[Finding]:
    """No completion, or nothing that would tell the posterior from the prior."""
    if not glance.completions:
        text = "no completion is left to infer: the language model only scores what is observed"
        yield Finding("nothing to infer", "warning", text)
    if not glance.execution.factors:
        text = "nothing is observed or rewarded: the posterior is the prior"
        yield Finding("nothing to infer", "warning", text)
