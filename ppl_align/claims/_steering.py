"""Values of prefixes by recursion, and decoders that are steered by them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppl_align import LM
from ppl_align.lm.decoding import Rows
from ppl_align.lm.warp import log_normalise

Ids = tuple[int, ...]
Score = Callable[[Ids], float]
"""What a text or a prefix is worth, given as ids."""


def backward(lm: LM, prompt: Ids, length: int, last: Score, soft: bool, prefix: Ids = ()) -> dict[Ids, float]:
    """The values of all prefixes by the Bellman equation, soft (log-sum-exp) or of means.

    ``last`` values whole texts: the recursion runs from the ends of the texts to their beginning."""
    if len(prefix) == length or prefix[-1:] == (lm.eos_id,):
        return {prefix: last(prefix)}
    log_p = lm.start([prompt + prefix]).log_probs[0]
    values: dict[Ids, float] = {}
    for v in range(lm.vocab_size):
        values |= backward(lm, prompt, length, last, soft, (*prefix, v))
    following = torch.tensor([values[*prefix, v] for v in range(lm.vocab_size)], dtype=torch.float64)
    here = torch.logsumexp(log_p + following, 0) if soft else (log_p.exp() * following).sum()
    return values | {prefix: float(here)}


def steered(score: Score, normalise: bool = True) -> Callable[[Rows], Tensor]:
    """A decoder, as engines take them: q(v | prefix) ∝ p0(v | prefix) exp score(prefix v).

    ``normalise=False`` divides by ``exp score(prefix)`` instead, which is the same for soft values only."""

    def proposal(rows: Rows) -> Tensor:
        prefixes = [tuple(prefix) for prefix in rows.prefixes.tolist()]
        scores = [[score((*prefix, v)) for v in range(rows.log_probs.shape[1])] for prefix in prefixes]
        tilted = rows.log_probs + torch.tensor(scores, dtype=torch.float64)
        if normalise:
            return log_normalise(tilted)
        return tilted - torch.tensor([[score(prefix)] for prefix in prefixes], dtype=torch.float64)

    return proposal


def divided(f: Score, beta: float) -> Score:
    """Reward units to nats."""
    return lambda ids: f(ids) / beta
