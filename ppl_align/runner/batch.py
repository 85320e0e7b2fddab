"""The one loop of decoding: the completions of one program, or of several (rows of a data set) in one batch.

Particles of several programs share the forwards of a language model, and nothing else: each has its own hard
constraints, twist and observer, and is weighed and resampled among its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_align.lm.base import LM
from ppl_align.lm.decoding import Population, Rows, TokenProposal, population
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.growing import Growing
from ppl_align.lm.leaning import Lean, Leaning
from ppl_align.lm.prefix_cache import PrefixCache
from ppl_align.lm.restriction import Restriction
from ppl_align.particles.particles import Particles
from ppl_align.runner.decode import Decode


@dataclass
class Request:
    """Particles that wait for a completion, and how it is to be drawn.

    ``drew``: called after every token, None: nobody looks. ``given``: ``(where, tokens, length)`` as of
    :meth:`Decode.begin_with`. ``kept``: caches that prompts may go on from; ``keep``: of these texts as
    well"""

    particles: Particles
    restriction: Restriction | None = None
    proposal: TokenProposal | LM | None = None
    lean: Lean | None = None
    block: int | None = None
    drew: Callable[[Decode], None] | None = None
    given: Sequence[tuple[Tensor, Tensor, Tensor | int]] = ()
    kept: PrefixCache | None = None
    keep: bool = False

    @property
    def source(self) -> CompletionDistribution:
        return self.particles.site.fn

    @property
    def kind(self) -> Any:
        """Equal for completions that can be decoded as one batch."""
        source = self.source
        stops = tuple(source.stop_ids), source.stop_ids.text
        return id(source.lm), source.max_new_tokens, source.warp, stops, id(self.proposal)


def decode(requests: Sequence[Request], progress: Callable[[int], None]) -> list[Decode]:
    """Write the completions of all requests, which are of one ``kind``. ``progress``: called with the tokens so far."""
    texts, starts = _population(requests)
    decodes = [Decode(request.particles, texts, first) for request, first in zip(requests, starts, strict=True)]
    for request, one in zip(requests, decodes, strict=True):
        for given in request.given:
            one.begin_with(*given)
    while not texts.done:
        texts.step()
        for request, one in zip(requests, decodes, strict=True):
            if request.drew is not None and not one.done:
                request.drew(one)
        texts.advance()
        progress(texts.t)
    return decodes


def _population(requests: Sequence[Request]) -> tuple[Growing, list[int]]:
    """All texts, and the number of the first of each request."""
    first = requests[0]
    if len(requests) == 1:
        source = first.source.within(first.restriction)
        return population(source, first.proposal, first.lean, first.block, first.kept, first.keep), [0]
    sizes = [request.source.index.numel() for request in requests]
    counts = [len(request.source.prompts) for request in requests]
    starts, offsets = _before(sizes), _before(counts)
    index = torch.cat([r.source.index.reshape(-1) + at for r, at in zip(requests, offsets, strict=True)])
    prompts = tuple(prompt for request in requests for prompt in request.source.prompts)
    source = type(first.source)(
        first.source.lm, prompts, index, first.source.max_new_tokens, first.source.warp, first.source.stop_ids
    )
    leans = [request.restriction if request.lean is None else request.lean for request in requests]
    blocks = [request.block for request in requests if request.block is not None]
    each = None if all(lean is None for lean in leans) else _Each(leans, offsets)
    keep = any(request.keep for request in requests)
    texts = population(source, first.proposal, each, min(blocks, default=None), first.kept, keep)
    if each is not None and isinstance(texts, Population):
        each.attach(texts, index)
    return texts, starts


def _before(counts: Sequence[int]) -> list[int]:
    return [sum(counts[:i]) for i in range(len(counts))]


class _Each:
    """To each row what its own program knows of it. Programs never share a row: their prompts are kept apart."""

    def __init__(self, leans: Sequence[Lean | None], offsets: Sequence[int]) -> None:
        self.leans, self.offsets = leans, offsets
        self.proposes = any(lean is not None and lean.proposes for lean in leans)
        self.by_ids = all(lean is None or lean.by_ids for lean in leans)
        self.texts: Population | None = None

    def attach(self, texts: Population, index: Tensor) -> None:
        """``index`` [M]: the prompt of each text; the population numbers those that are used."""
        self.texts = texts
        used = torch.unique(index).cpu().numpy()
        self.owner = np.searchsorted(np.array(self.offsets), used, side="right") - 1

    def leaning(self, rows: Rows) -> Leaning:
        assert self.texts is not None
        assert rows.ids is not None
        owner = self.owner[self.texts.row_prompt]
        parts = []
        for which in np.unique(owner):
            where, lean = np.flatnonzero(owner == which), self.leans[which]
            at = torch.as_tensor(where, device=rows.log_probs.device)
            own = Rows(
                rows.log_probs[at],
                None if rows.hidden is None else rows.hidden[at],
                [] if self.by_ids else [rows.prompts[i] for i in where],
                rows.prefixes if self.by_ids else rows.prefixes[at.to(rows.prefixes.device)],
                [rows.ids[i] for i in where],
            )
            parts.append((at, own.log_probs, Leaning() if lean is None or not lean.proposes else lean.leaning(own)))
        return _joined(rows.log_probs, parts)


def _joined(log_probs: Tensor, parts: Sequence[tuple[Tensor, Tensor, Leaning]]) -> Leaning:
    """One leaning of all rows: what each part leans to, by the ratio of its own support to the prior."""
    allowed = torch.ones(log_probs.shape, dtype=torch.bool, device=log_probs.device)
    log_psi, weighs = torch.zeros_like(log_probs), torch.zeros_like(log_probs)
    for at, prior, part in parts:
        if part.allowed is not None:
            allowed[at] = part.allowed.to(allowed.device)
        if part.weighs is not None:
            weighs[at] = part.weighs.to(weighs)
        support = part.support(prior)
        log_psi[at] = torch.where(support.isneginf(), -torch.inf, support - prior)
    return Leaning(allowed, log_psi, weighs)
