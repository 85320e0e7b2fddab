"""A completion that is a piece of a longer text: it was cut off, or ended with a stop token, but never with EOS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_align.constraints.base import Constraint
from ppl_align.lm.base import LM, Ids
from ppl_align.lm.matcher import Matcher
from ppl_align.lm.stopping import StopIds, sequence_ends
from ppl_align.lm.transfer import CPU, Resident


@dataclass(frozen=True)
class Unfinished(Constraint):
    """Exactly ``max_new_tokens`` tokens, or fewer where the last is one of ``stop_ids`` (or completes one of its
    strings); no EOS.

    The two must be those of the completion that it is put on, which :func:`ppl_align.goes_on` sees to."""

    max_new_tokens: int
    stop_ids: tuple[int, ...] = ()

    def compile(self, lm: LM) -> Matcher:
        return _Unfinished(self, lm.vocab_size, lm.eos_ids)


class _Unfinished(Matcher):
    def __init__(self, constraint: Unfinished, vocab_size: int, eos_ids: Ids) -> None:
        self.width, self.stop_ids = constraint.max_new_tokens, StopIds(constraint.stop_ids)
        mask = torch.ones(vocab_size, dtype=torch.bool)
        mask[list(eos_ids)] = False
        self.mask = Resident(mask)

    def allowed(self, prefixes: Sequence[Ids], left: int, device: torch.device = CPU) -> Tensor:
        return self.mask.on(device).repeat(len(prefixes), 1)  # not a view: it is written to

    def accepts(self, prefixes: Sequence[Ids]) -> Tensor:
        return torch.tensor([len(ids) == self.width or self._stopped(ids) for ids in prefixes])

    def _stopped(self, ids: Ids) -> bool:
        return bool(ids) and bool(sequence_ends(torch.tensor(ids), self.stop_ids)[-1])

    def viable(self, prefixes: Sequence[Ids], left: int) -> Tensor:
        return torch.ones(len(prefixes), dtype=torch.bool)
