"""``power`` and ``expert``: priors raised to a power and multiplied, over whole texts.

    power(name, x, alpha)            p0(x)^alpha                     the prior of x, sharpened or flattened
    expert(name, lm, x, weight)      p0(x) p_lm(x | prompt)^weight   a product of experts (Hinton 2002)

Both are *global*: the power is that of the probability of the whole text, and only the posterior as a whole is
normalised. Temperature (``completion(..., temperature=1 / alpha)``) and ``Product`` are the local kin, normalised anew
for every token. They differ by what they foresee: p0^alpha prefers a beginning that has few, probable continuations,
temperature prefers probable tokens, wherever they lead (Karan & Du 2025, arXiv:2510.14901).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppl_align.core.errors import InputError, RunError
from ppl_align.lm.base import LM
from ppl_align.lm.completions import Completion
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.ensemble import begun, require_same_vocabulary
from ppl_align.lm.fingerprint import note_use
from ppl_align.lm.prompts import resolve_prompt
from ppl_align.lm.score_cache import log_prob_of
from ppl_align.program.notes import Notes, factor
from ppl_align.program.scale import Scale, check_fit, fixed, numbers
from ppl_align.program.sketch import sketching
from ppl_align.rewards.bounds import Bounds

FINITE = "be a finite number"


def power(name: str, completion: Completion, alpha: Scale) -> Tensor:
    """Raise the prior of a completion to the power ``alpha``: multiply the target by p0(x)^(alpha - 1).

    p0 is the prior as declared: given its prompt, temperature, top-k and top-p included, EOS included.
    ``alpha`` > 1 prefers probable texts, < 1 improbable ones; 0 is uniform over the support.

    It is a reward of log p0(x) nats, weighed ``alpha - 1``. Engines know log p0 of what they draw, so it costs nothing.
    For ``alpha >= 1`` it is at most 1, which ``Rejection`` needs. Unfinished text counts as a prefix: p0(x_<=t)^alpha.
    ``alpha`` may be drawn, with one value for each particle, as the ``weight`` of :func:`ppl_align.reward` may.
    Returns log p0(x), ``[...]`` nats. Raises ``InputError`` for a negative ``alpha``, or one that fits no batch.
    """
    what = f"power {name!r}: alpha"
    source = _source(f"power {name!r}", completion)
    alpha = numbers(what, numbers(what, alpha, FINITE), "not be negative", lambda given: given >= 0)
    check_fit(what, alpha, completion.shape)
    log_p = _scored(source, completion)
    impossible = log_p.isneginf()  # p0^alpha is zero there too, whatever alpha
    log_factor = torch.where(impossible, -torch.inf, (alpha - 1) * log_p.masked_fill(impossible, 0.0))
    return _tell(name, completion, log_p, log_factor, alpha - 1)


def expert(name: str, lm: LM, completion: Completion, weight: Scale = 1.0, prompt: Any = None) -> Tensor:
    """Multiply the target by p_lm(x | prompt)^weight: what another LM thinks of a completion, EOS included.

    ``lm``      over the vocabulary of the LM that writes the completion; the same one under another prompt will do
    ``weight``  a vote for (> 0) or against (< 0) what ``lm`` finds probable; it may be drawn, with one value for each
                particle, as that of :func:`ppl_align.reward` may
    ``prompt``  what ``lm`` reads first, as for ``completion``; None: the completion's own prompt

    It is a reward of log p_lm nats. ``lm`` reads every text once (counted as scored tokens); SMC with twist="prefix"
    asks it about every prefix, so refresh rarely (``every="sentence"``) or not at all. For ``weight >= 0`` it is at
    most 1, which ``Rejection`` needs. Returns log p_lm(x | prompt), ``[...]`` nats.
    Raises ``InputError`` for another vocabulary, ``RunError`` for a negative weight on a text of probability zero.
    """
    who = f"expert {name!r}"
    source, weight = _source(who, completion), numbers(f"{who}: weight", weight, FINITE)
    check_fit(f"{who}: weight", weight, completion.shape)
    if not isinstance(lm, LM):
        raise InputError(f"{who}: the second argument is an LM, got {type(lm).__name__}")
    require_same_vocabulary(source.lm, lm, who)
    note_use(lm)
    if prompt is None:
        prompts, index = tuple(begun(lm, source.prompts)), source.index
    else:
        prompts, index = resolve_prompt(lm, prompt)
    _fits(who, index.shape, completion.shape)
    log_p = _scored(
        CompletionDistribution(lm, prompts, index, source.max_new_tokens, stop_ids=source.stop_ids), completion
    )
    each = torch.as_tensor(weight, dtype=torch.float64)
    if bool((log_p.isneginf() & (each < 0)).any()):
        raise RunError(f"{who}: {lm.name} gives a text probability zero, and its negative weight makes that infinite")
    silent = log_p.isneginf() & (each == 0)  # 0 * -inf
    return _tell(name, completion, log_p, weight * torch.where(silent, 0.0, log_p), weight)


def _scored(source: CompletionDistribution, completion: Completion) -> Tensor:
    """log p [...], float64 on the CPU; at most 0, whatever float32 made of it."""
    if sketching():
        return torch.zeros(completion.shape, dtype=torch.float64)
    return log_prob_of(source, completion.tokens).to("cpu", torch.float64).clamp_max(0.0)


def _tell(name: str, completion: Completion, log_p: Tensor, log_factor: Tensor, scale: Scale) -> Tensor:
    """A reward in nats, with its notes for the engines."""
    told = fixed(scale)
    notes = Notes(reward=log_p.detach(), scale=told, log_upper=Bounds(upper=0.0).log_upper(told))
    factor(name, log_factor, completion.tokens, notes)
    return log_p


def _source(who: str, completion: Any) -> CompletionDistribution:
    if not isinstance(completion, Completion) or completion.source is None:
        raise InputError(f"{who} reads what completion(...) returned, got {type(completion).__name__}")
    return completion.source


def _fits(who: str, prompts: torch.Size, texts: torch.Size) -> None:
    try:
        fits = torch.broadcast_shapes(prompts, texts) == texts
    except RuntimeError:
        fits = False
    if not fits:
        raise InputError(f"{who}: its prompts have batch shape {list(prompts)}, the texts {list(texts)}")
