"""The reward that asks whether an automaton accepts a completion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.lm.completions import sequence_lengths
from ppl_align.tokens.automaton import Automaton
from ppl_align.tokens.ids import as_ids, checked_tokens, freeze


@dataclass(frozen=True, eq=False, repr=False)
class Accepts:
    """r = 0 if the automaton accepts the tokens of a sequence, terminal token included, else ``reject``.

    ``reject``    reward units, at most 0; ``-inf`` makes it a hard constraint
    ``terminal``  the ids that end a sequence: EOS and the stop tokens of the completion
    ``upper``     the largest value that r can have

    Compared and hashed by identity. Raises ``InputError`` for a ``reject`` above 0.

    >>> r = Accepts(Automaton.contains([1], vocab_size=3), reject=-2.0, terminal=(2,))
    >>> r, r(torch.tensor([[0, 1], [0, 2]])).tolist()
    (Accepts(Automaton(2 states, V=3), reject=-2.0, terminal=(2,)), [0.0, -2.0])
    """

    automaton: Automaton
    reject: float = -math.inf
    terminal: tuple[int, ...] = ()

    upper: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not self.reject <= 0:
            raise InputError(f"Accepts: reject must be at most 0 (-inf: a hard constraint), got {self.reject}")
        freeze(self, reject=float(self.reject), terminal=as_ids(self.terminal))

    def __call__(self, tokens: Tensor) -> Tensor:
        """``[..., t] -> [...]`` float64, reward units."""
        tokens = checked_tokens(self, tokens, self.automaton.vocab_size)
        accepted = self.automaton.accepting[self.automaton.run(tokens, sequence_lengths(tokens, self.terminal))]
        return torch.where(accepted, 0.0, self.reject).double()

    def __repr__(self) -> str:
        return f"Accepts({self.automaton}, reject={self.reject}, terminal={self.terminal})"
