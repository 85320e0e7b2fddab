"""Temperature or top-p hidden in a guide or a proposal.

Weights correct for whatever a proposal does, as long as it can write everything that the model can. What top-k, top-p
or a mask has cut away has q = 0: it is in no estimate, and nothing in the weights says so. The mass of the prior that
is lost is p0(q = 0), estimated by draws of the prior that the proposal could not have written.

A proposal that is the prior at a lower temperature can write everything, but rare tokens so rarely that the weights p/q
have no useful bound. Whoever writes it down by hand may have meant the target. Trained guides are what the target made
of them, and are left alone; so is a proposal that is flatter than the prior.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_align.core.seeds import isolated, mix
from ppl_align.guides.program import ProgramGuide
from ppl_align.guides.tokens import forced_rows
from ppl_align.lints.finding import Finding
from ppl_align.lints.prior_sample import PriorSample
from ppl_align.lm.base import LM
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.posterior.findings import other_warp
from ppl_align.runner.proposals import FromTokens, as_proposal

LINT = "temperature or top-p in a guide"
SHARPER = 1.02
"""Slope of log q in log p0 from which a temperature is named."""
POSITIONS = 3
"""Tokens of each draw that are looked at: their prefixes are forwards of an LM."""
POINTS = 4  # tokens that a line is put through, over all prefixes: two of one prefix are always on one
SCATTER = 0.01  # standard deviation about the line, in those of log q
AGREE = 0.01  # slopes of different prefixes, relative to each other


def hidden_warp(sample: PriorSample, proposal: Any) -> Iterator[Finding]:
    """``proposal``: what an engine takes as ``proposal=``, or a Pyro program as ``guide=`` (in a ``ProgramGuide``)."""
    if isinstance(proposal, ProgramGuide):
        yield from _of_program(sample, proposal)
        return
    source_of = as_proposal(proposal)
    for site in sample.completions:
        inner = None if site in sample.particles.environment else source_of.tokens(site)
        if inner is None:
            continue
        prior, tokens = _flat(sample, site)
        yield from _lost(site, prior, tokens, inner, sample.num_draws)
        if isinstance(source_of, FromTokens):
            yield from _sharper(site, prior, tokens, inner)


def _of_program(sample: PriorSample, guide: ProgramGuide) -> Iterator[Finding]:
    with isolated(mix(sample.seed, "guide")), torch.no_grad(), sample.program.plate(sample.num_draws):
        trace = poutine.trace(guide.guide).get_trace(*sample.program.args, **sample.program.kwargs)
    for site, prior in sample.completions.items():
        fn = trace.nodes[site]["fn"] if site in trace.nodes else None
        if not isinstance(fn, CompletionDistribution):
            continue
        if fn.warp == prior.warp:
            if fn.lm is not prior.lm and fn.prompts == prior.prompts:
                yield from _sharper(site, *_flat(sample, site), fn.lm)
            continue
        log_q = fn.log_prob(sample.values[site]).reshape(sample.num_draws, -1).sum(-1)
        text = other_warp(site, fn.warp, prior.warp)
        yield _finding(text, float(log_q.isneginf().double().mean()), sample.num_draws)


def _lost(site: str, prior: CompletionDistribution, tokens: Tensor, inner: Any, num_draws: int) -> Iterator[Finding]:
    """Re-read the draws of the prior: which of their tokens could the proposal not have written?"""
    if isinstance(inner, LM):
        log_q = prior.proposed_log_probs(inner, tokens).cpu()
    else:
        with torch.no_grad():
            columns = [
                torch.as_tensor(inner(rows))[where, tokens[:, t]].cpu()
                for t, (rows, where) in enumerate(forced_rows(prior, tokens))
            ]
        log_q = torch.stack(columns, -1)
    lost = (log_q.isneginf() & ~prior.ended_before(tokens)).any(-1).reshape(num_draws, -1).any(-1)
    if bool(lost.any()):
        text = f"the proposal for {site!r} gives probability zero to tokens that the model can write"
        yield _finding(text, float(lost.double().mean()), num_draws)


def _sharper(site: str, prior: CompletionDistribution, tokens: Tensor, inner: Any) -> Iterator[Finding]:
    """Is the proposal p0 to a power above 1? ``tokens``: draws of the prior [M, T]."""
    slope = _sharpness(prior, tokens, inner)
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


def _sharpness(prior: CompletionDistribution, tokens: Tensor, inner: Any) -> float | None:
    """The slope 1/T of log q in log p0, by draws of the prior [M, T]; None where q is not p0 to some power.

    Is a proposal the prior at another temperature, then log q = log p0 / T + const over the vocabulary, everywhere.
    That is a straight line, and hardly anything else is: tilts, look-ahead and other networks scatter around theirs. So
    the fit has to be all but perfect, with one slope for all prefixes, before anything is said.

    ``inner``: ``Rows -> log_q [rows, V]`` or another LM."""
    if isinstance(inner, LM) and inner.vocab_size != prior.lm.vocab_size:
        return None
    slopes, points = [], 0
    with torch.no_grad():
        for log_p, log_q in islice(_side_by_side(prior, tokens, inner), POSITIONS):
            for x, y in zip(log_p.double(), log_q.double(), strict=True):
                on = x.isfinite() & y.isfinite()
                x, y = x[on] - x[on].mean(), y[on] - y[on].mean()
                if len(x) < 3 or float(x.std()) < 1e-3:
                    continue  # two points are on a line, equal ones on all of them
                slope = float((x * y).sum() / (x * x).sum())
                if slope <= 0 or float((y - slope * x).std()) > SCATTER * float(y.std()):
                    return None
                slopes.append(slope)
                points += len(x)
    if points < POINTS or max(slopes) - min(slopes) > AGREE * min(slopes):
        return None
    return sorted(slopes)[len(slopes) // 2]


def _side_by_side(prior: CompletionDistribution, tokens: Tensor, inner: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """log p0 and log q [rows, V] of the distinct prefixes, position by position."""
    rows = forced_rows(prior, tokens)
    if isinstance(inner, LM):
        settings = (prior.max_new_tokens, prior.warp, prior.stop_ids)
        other = CompletionDistribution(inner, prior.prompts, prior.index, *settings)
        for (ours, _), (theirs, _) in zip(rows, forced_rows(other, tokens), strict=True):
            yield ours.log_probs.cpu(), theirs.log_probs.cpu()
    else:
        for ours, _ in rows:
            yield ours.log_probs.cpu(), torch.as_tensor(inner(ours)).cpu()


def _flat(sample: PriorSample, site: str) -> tuple[CompletionDistribution, Tensor]:
    """The prior of a completion and its draws [M, T], plates laid end to end."""
    prior = sample.completions[site]
    return prior.reshaped((prior.batch_shape.numel(),)), sample.values[site].reshape(-1, prior.max_new_tokens)


def _finding(text: str, lost: float, num_draws: int) -> Finding:
    if lost == 0:
        return Finding(LINT, "warning", text, "give the guide the model's own")
    return Finding(
        LINT,
        "warning",
        f"{text}; it could not have written {100 * lost:.0f}% of {num_draws} draws of the prior",
        "declare it in the model (it is part of the prior), or leave it out",
    )
