"""Scores of whole texts, remembered row by row for the length of a run: a score that is known saves a forward.

The trunk pass that draws a completion gives its ``log p`` as well, so engines and guides leave it here: Pyro's SVI,
which asks the model to score what the guide drew, gets it for nothing, and so does a power prior. A factor that asks
how probable a text is (``power``, ``expert``) is asked again whenever the program is run anew, and is answered from
here too. Rows are found by value (LM, warp, prompt, ids), never by identity, so memory changes no more than rounding.

What is remembered has no gradient. An LM that is being learned is therefore never answered for: where its score has a
gradient, or nobody knows yet and gradients are on, it is asked.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.core.runs import remembered
from ppl_align.lm.base import Ids

if TYPE_CHECKING:
    from ppl_align.lm.distribution import CompletionDistribution

_LARGEST = 100_000  # rows kept; beyond, everything is forgotten
_Row = tuple["Ids", "Ids"]
_Drawn = tuple["CompletionDistribution", Tensor, Tensor]


class _Scores:
    """``known``: log p by distribution and row. ``drawn``: by site what was last drawn there, not yet cut into rows.
    ``learned``: by distribution whether its scores have a gradient, as far as somebody asked with gradients on."""

    def __init__(self) -> None:
        self.known: dict[Hashable, dict[_Row, float]] = {}
        self.learned: dict[Hashable, bool] = {}
        self.drawn: dict[str, _Drawn] = {}

    def gradient(self, source: CompletionDistribution) -> bool | None:
        """Do scores of this distribution have a gradient? None: nobody knows yet, and here and now it matters."""
        learned = self.learned.get(_key(source), source.lm.learned)
        return bool(learned) if learned is not None or not torch.is_grad_enabled() else None

    def table(self, source: CompletionDistribution) -> dict[_Row, float]:
        """The rows known of a distribution, whatever its prompts."""
        for drawn, tokens, log_p in self.drawn.values():
            self.keep(drawn, tokens, log_p)
        self.drawn.clear()
        return self.known.setdefault(_key(source), {})

    def keep(self, source: CompletionDistribution, tokens: Tensor, log_p: Tensor) -> None:
        if sum(map(len, self.known.values())) > _LARGEST:
            self.known.clear()
        flat = log_p.double().expand(tokens.shape[:-1]).reshape(-1).tolist()
        self.known.setdefault(_key(source), {}).update(zip(_rows(source, tokens), flat, strict=True))


def _key(source: CompletionDistribution) -> Hashable:
    return source.lm, source.warp, source.terminal  # with its stop strings


def _memory() -> _Scores | None:
    return remembered("scores of texts", _Scores)


def remember(source: CompletionDistribution, tokens: Tensor, log_p: Tensor) -> None:
    """``source`` (expanded over the batch) gave ``tokens [*batch, T]`` the log-probability ``log_p [*batch]``."""
    scores = _memory()
    if scores is not None:
        scores.keep(source, tokens, log_p)


def leave_scores(site: str, source: CompletionDistribution, tokens: Tensor, log_p: Tensor) -> None:
    """What was drawn at a site, ``tokens [*batch, t]``, with its ``log_p [*batch]`` under the prior ``source``.

    Nothing is copied until somebody asks; what was left for the same site before and never asked for is dropped."""
    scores = _memory()
    if scores is not None:
        scores.drawn[site] = source, tokens, log_p


def recall(source: CompletionDistribution, tokens: Tensor) -> Tensor | None:
    """``source.log_prob(tokens)``, ``[*batch]``, if every row of it is known; else None."""
    scores = _memory()
    if scores is None or scores.gradient(source) is not False:
        return None
    table = scores.table(source)
    if not table:
        return None
    expanded, tokens = _together(source, tokens)
    found = [table.get(row) for row in _rows(expanded, tokens)]
    if None in found:
        return None
    return torch.tensor(found, dtype=torch.float64, device=tokens.device).reshape(tokens.shape[:-1])


def note_gradient(source: CompletionDistribution, log_p: Tensor) -> None:
    """``source`` has just scored a text: where gradients are on, it shows whether its LM is being learned.

    Nothing is kept of an LM that knows: a guide may make a new one at every step."""
    scores = _memory()
    if scores is not None and torch.is_grad_enabled() and source.lm.learned is None:
        scores.learned[_key(source)] = log_p.requires_grad


def log_prob_of(source: CompletionDistribution, tokens: Tensor) -> Tensor:
    """``source.log_prob(tokens)``, ``[*batch]``: only rows that were never scored are read by the network, each once.

    For factors, which are asked about the same texts over and over."""
    scores = _memory()
    if scores is None or (gradient := scores.gradient(source)):
        return source.log_prob(tokens)
    expanded, tokens = _together(source, tokens)
    table, rows = scores.table(source), _rows(expanded, tokens)
    new: dict[_Row, int] = {}
    for at, row in enumerate(rows):
        if gradient is None or row not in table:
            new.setdefault(row, at)
    if new:
        first = torch.tensor(list(new.values()))
        flat = tokens.reshape(-1, tokens.shape[-1])
        found = expanded.reshaped((len(rows),)).with_index(expanded.index.reshape(-1)[first])
        log_p = found.token_log_probs(flat[first.to(flat.device)]).sum(-1)
        note_gradient(source, log_p)
        if log_p.requires_grad:
            return source.log_prob(tokens)
        table.update(zip(new, log_p.double().tolist(), strict=True))
    return torch.tensor([table[row] for row in rows], dtype=torch.float64).reshape(tokens.shape[:-1])


def _together(source: CompletionDistribution, tokens: Tensor) -> tuple[CompletionDistribution, Tensor]:
    shape = torch.broadcast_shapes(tokens.shape[:-1], source.batch_shape)
    return source.expand(shape), tokens.expand(*shape, tokens.shape[-1])


def _rows(source: CompletionDistribution, tokens: Tensor) -> list[_Row]:
    """``(prompt, ids)`` of every element; what follows the end is no part of it."""
    shape, width = tokens.shape[:-1], tokens.shape[-1]
    flat = tokens.reshape(-1, width)
    lengths = (~source.ended_before(flat)).sum(-1).tolist()
    # A row is cut at its end only if what follows is padding; anything else there has probability zero.
    padded = (source.ended_before(flat) <= (flat == source.pad_id)).all(-1).tolist()
    ids = [tuple(row[:n]) if ok else tuple(row) for row, n, ok in zip(flat.tolist(), lengths, padded, strict=True)]
    return list(zip(source.prompt_rows(shape), ids, strict=True))
