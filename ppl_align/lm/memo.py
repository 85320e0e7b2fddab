"""Scores that were already computed: a guide that drew a completion knows its prior log-probability too.

Pyro's SVI asks the model to score what the guide drew. The trunk pass that drew it gave ``log p`` as well, so the
guide leaves it here for the rest of the step; a score is found again by *value* (same LM, prompts, tokens, warp),
never by identity, so it can only save a forward and never change a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ppl_align.lm.distribution import CompletionDistribution

_Scores = list[tuple["CompletionDistribution", Tensor, Tensor]]
_open: ContextVar[_Scores | None] = ContextVar("ppl_align_scores", default=None)


@contextmanager
def remembered_scores() -> Iterator[None]:
    """Remember scores inside the block, e.g. one step of SVI."""
    token = _open.set([])
    try:
        yield
    finally:
        _open.reset(token)


def remember(source: CompletionDistribution, tokens: Tensor, log_p: Tensor) -> None:
    """``source`` (expanded over the batch) gave ``tokens [*batch, T]`` the log-probability ``log_p [*batch]``."""
    scores = _open.get()
    if scores is not None:
        scores.append((source, tokens, log_p))


def recall(source: CompletionDistribution, tokens: Tensor) -> Tensor | None:
    """The remembered ``log_p [*batch]``, or None."""
    for known, known_tokens, log_p in _open.get() or ():
        if (
            known.lm is source.lm
            and (known.warp, known.terminal) == (source.warp, source.terminal)
            and known_tokens.shape == tokens.shape
            and torch.equal(known_tokens, tokens)
            and known.prompt_rows(tokens.shape[:-1]) == source.prompt_rows(tokens.shape[:-1])
        ):
            return log_p
    return None
