"""What all prompts of a batch begin with, and whether a network can be told to read and hold it once.

A preamble, a few examples, the conversation so far: the longest common beginning, where it is long enough to pay. It is
attended to by :mod:`ppl_align.lm.shared_attention`, which is right for plain scaled dot products alone; whether those
are all that a network does, a few tokens tell, with a beginning held once and held by every row.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ppl_align.core.cost import uncounted
from ppl_align.lm.agreement import RAISED, TOLERANCE, difference, rounding
from ppl_align.lm.base import Ids
from ppl_align.lm.cached import CausalDecoder
from ppl_align.lm.kv_cache import keeps_tokens, new_cache
from ppl_align.lm.plan import CACHE, Plan
from ppl_align.lm.precision import half_precision
from ppl_align.lm.shared_attention import configs_of
from ppl_align.lm.verified import known_to_share, settings_of, touches
from ppl_align.lm.warp import log_normalise

if TYPE_CHECKING:
    from ppl_align.lm.causal import CausalLM

SHARED = 64
"""Tokens from which on a common beginning is held once: what it saves is more than what merging two parts costs."""
_FOUND: dict[Hashable, bool] = {}  # of networks of the same settings, as long as the process lives
_TOUCHED: WeakKeyDictionary[nn.Module, tuple[list[Any], bool]] = WeakKeyDictionary()  # of others: what was done, found


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


def can_try(lm: CausalLM) -> bool:
    """Does a network attend through transformers' interface, and does its cache hold every token?"""
    return bool(configs_of(lm.model)) and keeps_tokens(new_cache(lm.model.config))


def can_share(lm: CausalLM) -> bool:
    """Does a network say the same whether a beginning is held once or by every row? Tried once for all networks of the
    same settings; of one that something was done to, once for what was done."""
    model = lm.model
    if not can_try(lm):
        return False
    known = known_to_share(model)
    if known is not None:
        return known
    key = settings_of(model)
    if key is not None:
        if key not in _FOUND:
            _FOUND[key] = agrees(lm)
        return _FOUND[key]
    done = touches(model)
    before, found = _TOUCHED.get(model, ([], False))
    if len(before) != len(done) or not all(map(is_, before, done)):
        found = agrees(lm)
        _TOUCHED[model] = done, found
    return found


_STEPS = (([1, 0, 1], [3, 1, 4]), ([2, 0], [1, 5]))  # parents and tokens: rows branch, change places and are dropped
_COMMON = 5  # tokens
_ROUNDED = 8  # times that half precision rounds; another attention is off by nats


def agrees(lm: CausalLM) -> bool:
    """What :func:`can_share` asks, tried: prompts of different lengths, and a single one. On nobody's bill."""
    if (lm.max_length or 16) < 16:
        return False
    text = tuple(torch.randint(lm.vocab_size, (9,), generator=torch.Generator().manual_seed(2)).tolist())
    with uncounted(), torch.no_grad():
        for prompts in ([text[:-2], text], [text]):
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
