"""Completions as a tree of prefixes: all of them, or a given list; each prefix is read once by the LM."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppl_align.lm.base import Ids
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.precision import state_precision


@torch.no_grad()
def enumerate_completions(
    source: CompletionDistribution, prompt: int, check: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """All sequences of positive probability after one prompt: ``(tokens [S, T], log_p [S])`` in nats, float64.

    ``check(count)`` is called as the tree grows and may refuse."""
    lm, length = source.lm, source.max_new_tokens
    prefixes, log_p = torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.float64)
    leaves: list[tuple[Tensor, Tensor]] = []
    found = 0
    state_precision(lm, length)
    decoder = lm.start([source.prompts[prompt]])
    for t in range(length):
        scores = source.warp(decoder.log_probs).double().cpu()
        rows, tokens = torch.nonzero(scores > -torch.inf, as_tuple=True)
        check(found + len(rows))
        prefixes = torch.cat([prefixes[rows], tokens[:, None]], 1)
        log_p = log_p[rows] + scores[rows, tokens]
        ended = source.ends_within(prefixes) if t + 1 < length else torch.ones(len(tokens), dtype=torch.bool)
        padding = torch.full((int(ended.sum()), length - t - 1), source.pad_id)
        leaves.append((torch.cat([prefixes[ended], padding], 1), log_p[ended]))
        found += int(ended.sum())
        running = ~ended
        if not bool(running.any()):
            break
        prefixes, log_p = prefixes[running], log_p[running]
        decoder = decoder.extend(rows[running], tokens[running])
    return torch.cat([tokens for tokens, _ in leaves]), torch.cat([log_p for _, log_p in leaves])


@torch.no_grad()
def score_completions(source: CompletionDistribution, prompt: int, candidates: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Given sequences after one prompt: ``(tokens [C, T], log_p [C])``; shared prefixes are read once.

    A candidate ends with a terminal token or has the full length T (:func:`as_sequence` sees to that)."""
    length = source.max_new_tokens
    tokens = torch.full((len(candidates), length), source.pad_id, dtype=torch.long)
    for row, ids in enumerate(candidates):
        tokens[row, : len(ids)] = torch.tensor(ids)
    log_p = torch.zeros(len(candidates), dtype=torch.float64)
    node = torch.zeros(len(candidates), dtype=torch.long)  # the row of the network that holds each one's prefix
    state_precision(source.lm, length)
    decoder = source.lm.start([source.prompts[prompt]])
    for t in range(max(map(len, candidates))):
        scores = source.warp(decoder.log_probs)
        here = torch.tensor([len(ids) > t for ids in candidates])
        picked = scores[node[here].to(scores.device), tokens[here, t].to(scores.device)]
        log_p[here] += picked.double().cpu()
        going_on = torch.tensor([len(ids) > t + 1 for ids in candidates])
        if not bool(going_on.any()):
            break
        pairs = torch.stack([node[going_on], tokens[going_on, t]], -1)
        distinct, row_of = torch.unique(pairs, dim=0, return_inverse=True)
        node[going_on] = row_of
        decoder = decoder.extend(distinct[:, 0], distinct[:, 1])
    return tokens, log_p


def as_sequence(source: CompletionDistribution, ids: Sequence[int]) -> Ids:
    """The whole sequence that says exactly this: EOS is appended where the limit leaves room for it.

    Empty where that is impossible: too long, or something follows a terminal token."""
    ids = tuple(ids)
    if source.lm.eos_id is not None and len(ids) < source.max_new_tokens and not _ends(source, ids):
        ids = (*ids, source.lm.eos_id)
    ended = _ends(source, ids) or len(ids) == source.max_new_tokens
    return ids if ids and ended and not _ends(source, ids[:-1]) and len(ids) <= source.max_new_tokens else ()


def _ends(source: CompletionDistribution, ids: Ids) -> bool:
    return bool(ids) and bool(source.ends_within(torch.tensor(ids)))
