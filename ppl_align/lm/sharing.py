"""What all prompts of a batch begin with, and whether a network can be told to read and hold it once.

A preamble, a few examples, the conversation so far: the longest common beginning, where it is long enough to pay. It is
attended to by :mod:`ppl_align.lm.shared_attention`, which is right for plain scaled dot products alone; whether those
are all that a network does, a few tokens tell, with a beginning held once and held by every row.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.core.cost import uncounted
from ppl_align.lm.agreement import RAISED, TOLERANCE, difference, rounding
from ppl_align.lm.base import Ids
from ppl_align.lm.cached import CausalDecoder
from ppl_align.lm.kv_cache import keeps_tokens, new_cache
from ppl_align.lm.plan import CACHE, Plan
from ppl_align.lm.precision import half_precision
from ppl_align.lm.shared_attention import configs_of
from ppl_align.lm.verified import settings_of
from ppl_align.lm.warp import log_normalise

if TYPE_CHECKING:
    from ppl_align.lm.causal import CausalLM

SHARED = 64
"""Tokens from which on a common beginning is held once: what it saves is more than what merging two parts costs."""
_FOUND: dict[Hashable, bool] = {}  # of networks of the same settings, as long as the process lives


def shared_length(lm: CausalLM, plan: Plan, prompts: Sequence[Ids]) -> int:
    """How many ids of the prompts, which all begin with them, are to be read and held once; 0: none.

    All of a single prompt; of several, each keeps a token of its own. None where gradients are taken."""
    length = common_length(prompts)
    if length < SHARED or plan.kind != CACHE or torch.is_grad_enabled():
        return 0
    return length if can_share(lm) else 0


def common_length(prompts: Sequence[Ids]) -> int:
    """The longest common beginning that leaves each of several prompts a token.

    >>> common_length([(1, 2, 3, 4), (1, 2, 3), (1, 2, 3, 5)]), common_length([(1, 2, 3)])
    (2, 3)
    """
    low, high = min(prompts), max(prompts)  # all others are between them
    shortest = min(map(len, prompts))
    limit = shortest if len(prompts) == 1 else shortest - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


def can_share(lm: CausalLM) -> bool:
    """Does a network say the same whether a beginning is held once or by every row?"""
    if not configs_of(lm.model) or not keeps_tokens(new_cache(lm.model.config)):
        return False
    key = settings_of(lm.model)
    if key is None:  # something is done to it that no trial may tell of
        return False
    if key not in _FOUND:
        with uncounted(), torch.no_grad():
            _FOUND[key] = _agrees(lm)
    return _FOUND[key]


_STEPS = (([1, 0, 1], [3, 1, 4]), ([2, 0], [1, 5]), ([0, 1], [9, 2]))  # parents, tokens: rows branch, swap and stay
_COMMON = 5  # tokens
_ROUNDED = 8  # times that half precision rounds; another attention is off by nats


def _agrees(lm: CausalLM) -> bool:
    """Prompts of different lengths, of one, and a single prompt."""
    if (lm.max_length or 16) < 16:
        return False
    text = tuple(torch.randint(lm.vocab_size, (9,), generator=torch.Generator().manual_seed(2)).tolist())
    for prompts in ([text[:-2], text], [text, (*text[:-1], (text[-1] + 1) % lm.vocab_size)], [text]):
        try:
            found = _say(lm, prompts, len(text) if len(prompts) == 1 else _COMMON)
        except RAISED:
            return False
        expected = _say(lm, prompts, 0)
        tolerance = max(TOLERANCE, _ROUNDED * rounding(expected) if half_precision(lm) else 0.0)
        if not difference(log_normalise(found.float()), log_normalise(expected.float())) <= tolerance:
            return False
    return True


def _say(lm: CausalLM, prompts: Sequence[Ids], shared: int) -> Tensor:
    """Logits ``[rows, V]`` after the prompts, after each step, and after two tokens that are read at once."""
    decoder = CausalDecoder.after(lm, prompts, shared=shared)
    found = [decoder.logits]
    for parents, tokens in _STEPS:
        at = torch.tensor(parents) % len(decoder.logits)
        decoder = decoder.extend(at, torch.tensor(tokens) % lm.vocab_size)
        found.append(decoder.logits)
    more = torch.arange(2 * len(decoder.logits), device=lm.device).view(-1, 2) % lm.vocab_size
    logits, _ = decoder.read(more)
    return torch.cat([*found, *logits.float().unbind(1)]).to(logits.dtype)
