"""Temperature or top-p hidden in a guide or a proposal.

Weights correct for whatever a proposal does, as long as it can write everything that the model can. What top-k, top-p
or a mask has cut away has q = 0: it is in no estimate, and nothing in the weights says so. The mass of the prior that
is lost is p0(q = 0), estimated by draws of the prior that the proposal could not have written.

A proposal that is the prior at a lower temperature can write everything, but rare tokens so rarely that the weights p/q
have no useful bound. Whoever writes it down by hand may have meant the target. Trained guides are what the target made
of them, and are left alone; so is a proposal that is flatter than the prior.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_align.core.seeds import isolated, mix
from ppl_align.guides.program import ProgramGuide
from ppl_align.guides.tokens import forced_rows
from ppl_align.lints.finding import Finding
from ppl_align.lints.prior_sample import PriorSample
from ppl_align.lints.sharpness import sharpness
from ppl_align.lm.base import LM
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.posterior.findings import other_warp
from ppl_align.runner.proposals import FromTokens, as_proposal

LINT = "temperature or top-p in a guide"
SHARPER = 1.02
"""Slope of log q in log p0 from which a temperature is named."""


def hidden_warp(sample: PriorSample, proposal: Any) -> Iterator[Finding]:
    """``proposal``: what an engine takes as ``proposal=``, or a Pyro program as ``guide=`` (in a ``ProgramGuide``)."""
    if isinstance(proposal, ProgramGuide):
        yield from _of_program(sample, proposal)
        return
    source_of = as_proposal(proposal)
    for site, prior in sample.completions.items():
        if site in sample.particles.environment:
            continue
        inner = source_of.tokens(site)
        if inner is None:
            continue
        flat = _flat(prior)
        tokens = sample.values[site].reshape(-1, prior.max_new_tokens)
        yield from _lost(site, flat, tokens, inner, sample.num_draws)
        if isinstance(source_of, FromTokens):
            yield from _sharper(site, flat, tokens, inner)


def _of_program(sample: PriorSample, guide: ProgramGuide) -> Iterator[Finding]:
    with isolated(mix(sample.seed, "guide")), torch.no_grad(), sample.program.plate(sample.num_draws):
        nodes: Mapping[str, Any] = (
            poutine.trace(guide.guide).get_trace(*sample.program.args, **sample.program.kwargs).nodes
        )
    for site, prior in sample.completions.items():
        fn = nodes[site]["fn"] if site in nodes else None
        if not isinstance(fn, CompletionDistribution):
            continue
        if fn.warp == prior.warp:
            if fn.lm is not prior.lm and fn.prompts == prior.prompts:
                yield from _sharper(site, _flat(prior), sample.values[site].reshape(-1, prior.max_new_tokens), fn.lm)
            continue
        log_q = fn.log_prob(sample.values[site]).reshape(sample.num_draws, -1).sum(-1)
        text = other_warp(site, fn.warp, prior.warp)
        yield _finding(text, float(log_q.isneginf().double().mean()), sample.num_draws)


def _lost(site: str, prior: CompletionDistribution, tokens: Tensor, inner: Any, num_draws: int) -> Iterator[Finding]:
    """Re-read the draws of the prior: which of their tokens could the proposal not have written?"""
    log_q = _score(prior, tokens, inner)
    lost = (log_q.isneginf() & ~prior.ended_before(tokens)).any(-1).reshape(num_draws, -1).any(-1)
    if bool(lost.any()):
        text = f"the proposal for {site!r} gives probability zero to tokens that the model can write"
        yield _finding(text, float(lost.double().mean()), num_draws)


def _sharper(site: str, prior: CompletionDistribution, tokens: Tensor, inner: Any) -> Iterator[Finding]:
    """Is the proposal p0 to a power above 1? ``tokens``: draws of the prior [M, T]."""
    slope = sharpness(prior, tokens, inner)
    if slope is not None and slope > SHARPER:
        temperature = f"{prior.warp.temperature / slope:.3g}"
        yield Finding(
            LINT,
            "warning",
            f"the proposal for {site!r} is its prior at temperature={temperature} (declared: "
            f"{prior.warp.temperature:g}): the weights p/q of rare tokens have no useful bound",
            f"if texts are meant to be that sharp write completion(..., temperature={temperature}), else propose at "
            "the declared temperature",
        )


def _flat(prior: CompletionDistribution) -> CompletionDistribution:
    return prior.reshaped((prior.batch_shape.numel(),))


def _score(prior: CompletionDistribution, tokens: Tensor, inner: Any) -> Tensor:
    """log q of every token [M, T]."""
    if isinstance(inner, LM):
        return prior.proposed_log_probs(inner, tokens).cpu()
    columns = []
    with torch.no_grad():
        for t, (rows, where) in enumerate(forced_rows(prior, tokens)):
            columns.append(torch.as_tensor(inner(rows))[where, tokens[:, t]].cpu())
    return torch.stack(columns, -1)


def _finding(text: str, lost: float, num_draws: int) -> Finding:
    if lost == 0:
        return Finding(LINT, "warning", text, "give the guide the model's own")
    return Finding(
        LINT,
        "warning",
        f"{text}; it could not have written {100 * lost:.0f}% of {num_draws} draws of the prior",
        "declare it in the model (it is part of the prior), or leave it out",
    )
