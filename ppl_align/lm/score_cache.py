"""Scores of whole texts, remembered row by row for the length of an engine run.

A factor that asks how probable a text is (``power``, ``expert``) is asked again whenever the program is run anew: at
every site that follows, at every token that SMC weighs. Language models are fixed meanwhile, so an answer can be kept.
The decode loop knows the prior's scores of what it has drawn; engines leave them here, and a power prior costs nothing.
Rows are found by value (LM, warp, prompt, ids), so a score that is remembered can save a forward and never change more
than its rounding.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.lm.memo import recall, remember

if TYPE_CHECKING:
    from ppl_align.lm.base import Ids
    from ppl_align.lm.distribution import CompletionDistribution

_LARGEST = 100_000  # rows kept; beyond, everything is forgotten
_Row = tuple["Ids", "Ids"]
_Drawn = tuple["CompletionDistribution", Tensor, Tensor]


class _Scores:
    """``known``: log p by distribution and row. ``drawn``: by site what was last drawn there, not yet cut into rows.
    ``trained``: by distribution whether its scores have a gradient, as far as somebody asked with gradients on."""

    def __init__(self) -> None:
        self.known: dict[Hashable, dict[_Row, float]] = {}
        self.trained: dict[Hashable, bool] = {}
        self.drawn: dict[str, _Drawn] = {}

    def table(self, source: CompletionDistribution) -> dict[_Row, float]:
        """The rows known of a distribution, whatever its prompts."""
        for drawn, tokens, log_p in self.drawn.values():
            shape = tokens.shape[:-1]
            rows = _rows(drawn, tokens)
            self._of(drawn).update(zip(rows, log_p.expand(shape).reshape(-1).tolist(), strict=True))
        self.drawn.clear()
        if sum(map(len, self.known.values())) > _LARGEST:
            self.known.clear()
        return self._of(source)

    def _of(self, source: CompletionDistribution) -> dict[_Row, float]:
        return self.known.setdefault(_key(source), {})


def _key(source: CompletionDistribution) -> Hashable:
    return source.lm, source.warp, source.terminal


_open: ContextVar[_Scores | None] = ContextVar("ppl_align_score_cache", default=None)


@contextmanager
def score_cache() -> Iterator[None]:
    """Remember scores inside the block; a block inside a block shares the outer one's memory."""
    token = _open.set(_Scores()) if _open.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _open.reset(token)


def leave_scores(site: str, source: CompletionDistribution, tokens: Tensor, log_p: Tensor) -> None:
    """What was drawn at a site, ``tokens [*batch, t]``, with its ``log_p [*batch]`` under the prior ``source``.

    Nothing is copied until somebody asks; what was left for the same site before and never asked for is dropped."""
    scores = _open.get()
    if scores is not None:
        scores.drawn[site] = source, tokens, log_p


def log_prob_of(source: CompletionDistribution, tokens: Tensor) -> Tensor:
    """``source.log_prob(tokens)``, ``[*batch]``: only rows that were never scored are read by the network, each once.

    Where the LM is being trained (its score has a gradient) nothing is remembered, and what was scored before gradients
    were on is not used until it is known that there are none."""
    scores = _open.get()
    known = recall(source, tokens)
    if known is not None or scores is None or scores.trained.get(_key(source), False):
        return source.log_prob(tokens) if known is None else known
    untold = torch.is_grad_enabled() and _key(source) not in scores.trained
    shape = torch.broadcast_shapes(tokens.shape[:-1], source.batch_shape)
    tokens = tokens.expand(*shape, tokens.shape[-1])
    expanded = source.expand(shape)
    table, rows = scores.table(source), _rows(expanded, tokens)
    new: dict[_Row, int] = {}
    for at, row in enumerate(rows):
        if untold or row not in table:
            new.setdefault(row, at)
    if new:
        first = torch.tensor(list(new.values()))
        flat = tokens.reshape(-1, tokens.shape[-1])
        found = expanded.reshaped((len(rows),)).with_index(expanded.index.reshape(-1)[first])
        log_p = found.log_prob(flat[first.to(flat.device)])
        if untold:
            scores.trained[_key(source)] = log_p.requires_grad
        if log_p.requires_grad:
            return source.log_prob(tokens)
        table.update(zip(new, log_p.double().tolist(), strict=True))
    result = torch.tensor([table[row] for row in rows], dtype=torch.float64).reshape(shape)
    remember(expanded, tokens, result)
    return result


def _rows(source: CompletionDistribution, tokens: Tensor) -> list[_Row]:
    """``(prompt, ids)`` of every element; what follows the end is no part of it."""
    shape, width = tokens.shape[:-1], tokens.shape[-1]
    flat = tokens.reshape(-1, width)
    lengths = (~source.ended_before(flat)).sum(-1).tolist()
    # A row is cut at its end only if what follows is padding; anything else there has probability zero.
    padded = (source.ended_before(flat) <= (flat == source.pad_id)).all(-1).tolist()
    ids = [tuple(row[:n]) if ok else tuple(row) for row, n, ok in zip(flat.tolist(), lengths, padded, strict=True)]
    return list(zip(source.prompt_rows(shape), ids, strict=True))
