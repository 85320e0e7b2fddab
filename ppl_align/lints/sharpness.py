"""Is a proposal the prior at another temperature? Then log q = log p0 / T + const over the vocabulary, everywhere.

That is a straight line, and hardly anything else is: tilts, look-ahead and other networks scatter around theirs. So the
fit has to be all but perfect, with one slope for all prefixes, before anything is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ppl_align.guides.tokens import forced_rows
from ppl_align.lm.base import LM
from ppl_align.lm.distribution import CompletionDistribution

POSITIONS = 3
"""Tokens of each draw that are looked at: their prefixes are forwards of an LM."""
POINTS = 4  # tokens that a line is put through, over all prefixes: two of one prefix are always on one
SCATTER = 0.01  # standard deviation about the line, in those of log q
AGREE = 0.01  # slopes of different prefixes, relative to each other


def sharpness(prior: CompletionDistribution, tokens: Tensor, inner: Any) -> float | None:
    """The slope 1/T of log q in log p0, by draws of the prior [M, T]; None where q is not p0 to some power.

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
