"""Decoding and scoring as a plan says: with the cache, with one for each length of prompt, or without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.lm import cached, meeting, recompute
from ppl_align.lm.base import Decoder, Ids, WithLogits, alike
from ppl_align.lm.plan import BY_LENGTH, Plan
from ppl_align.lm.sharing import shared_length

if TYPE_CHECKING:
    from ppl_align.lm.causal import CausalLM


def start(lm: CausalLM, plan: Plan, prompts: Sequence[Ids]) -> Decoder:
    """A decoder whose row i stands after ``prompts[i]``; runs that take turns start together."""
    _refuse_training(lm)
    return meeting.start(lm, lambda rows: _started(lm, plan, rows), prompts)


@torch.no_grad()
def _started(lm: CausalLM, plan: Plan, prompts: Sequence[Ids]) -> Decoder:
    if plan.anew(max(map(len, prompts))):
        return recompute.RecomputeDecoder(lm, prompts)
    decoder: Decoder
    if plan.kind == BY_LENGTH:
        decoder = cached.ByLengthDecoder(lm, prompts)
    else:
        decoder = cached.CausalDecoder.after(lm, prompts, shared=shared_length(lm, plan, prompts))
    return decoder if plan.limit is None else UpTo(lm, plan, decoder, prompts)


class UpTo(WithLogits):
    """With a cache as far as it is right; once a row is longer, all rows are read from their beginnings."""

    def __init__(self, lm: CausalLM, plan: Plan, decoder: Decoder, rows: Sequence[Ids]) -> None:
        self.lm, self.plan, self.decoder, self.rows = lm, plan, decoder, rows
        self.logits, self.hidden = decoder.logits, decoder.hidden

    @torch.no_grad()
    def extend(self, parents: Tensor, tokens: Tensor) -> Decoder:
        rows = recompute.continued(self.rows, parents, tokens)
        if self.plan.anew(max(map(len, rows))):
            return recompute.RecomputeDecoder(self.lm, rows, new=len(rows))
        return UpTo(self.lm, self.plan, self.decoder.extend(parents, tokens), rows)


def read_texts(lm: CausalLM, plan: Plan, prompts: Sequence[Ids], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and hidden states that predict each of ``tokens [B, T]``: ``([B, T, V], [B, T, d])``."""
    _refuse_training(lm)
    with torch.set_grad_enabled(torch.is_grad_enabled() and lm.learned):
        return _read(lm, plan, [tuple(prompt) for prompt in prompts], tokens)


def _read(lm: CausalLM, plan: Plan, prompts: Sequence[Ids], tokens: Tensor) -> tuple[Tensor, Tensor]:
    if plan.anew(max(map(len, prompts)) + tokens.shape[1] - 1):
        return recompute.read_texts(lm, prompts, tokens, plan.whole)
    if plan.kind != BY_LENGTH:
        return cached.read_texts(lm, prompts, tokens, padded=True, shared=shared_length(lm, plan, list(set(prompts))))
    groups = list(alike(map(len, prompts)).values())
    found = [cached.read_texts(lm, [prompts[i] for i in rows], tokens[rows], padded=False) for rows in groups]
    back = torch.tensor([i for rows in groups for i in rows]).argsort().to(tokens.device)
    return torch.cat([logits for logits, _ in found])[back], torch.cat([hidden for _, hidden in found])[back]


def _refuse_training(lm: CausalLM) -> None:
    if lm.model.training:
        raise InputError(
            f"{lm.name} is in training mode, where dropout makes every score another: call lm.model.eval() first"
        )
