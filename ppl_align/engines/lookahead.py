"""Looking ahead: how likely is an unfinished text to meet its constraint in the tokens that are left?

A word that the prior writes once in a thousand texts is met by one particle in a thousand, and until the last token no
prefix is worse than another: a constraint on its own says nothing on the way. What it needs is the probability of
still succeeding, psi_l(s, v), in state s of its automaton, after the token v, with l tokens left. It proposes the
tokens and weighs the prefixes:

    q(v | x_<t) ∝ p0(v | x_<t) psi_l(state after v, v)

    psi_l(s, v) = sum_s' P(s -> s' | v) psi_{l-1}(s') + P(s -> EOS) 1[s accepts],      psi_0(s) = 1[s accepts]

where psi_l(s), without v, is the same with the mean P(s -> s'). Both are learned from a small pool of draws, in which
the word itself may not occur once: the LM's next-token *mass* that moves the automaton is seen on every prefix
(:mod:`ppl_align.engines.moves`).

Any psi that is positive where success is possible leaves E[Zhat] = Z; the pool only decides how much Zhat varies.
(Twisted SMC: Guarniero, Johansen & Lee 2017, arXiv:1511.06286; Zhao et al. 2024, arXiv:2404.17546.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppl_align.constraints.automata import AutomatonReader
from ppl_align.engines.moves import Moves, observe_moves
from ppl_align.lm.base import Ids
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.restriction import Restriction

FLOOR = 1e-9  # the least that a success which is possible may seem worth: zero would rule it out


@dataclass(eq=False)
class LookAhead:
    """psi of one automaton: ``success`` [T + 1, S] psi_l(s); ``moves`` what is known of P(s -> s' | v)."""

    reader: AutomatonReader
    success: Tensor
    moves: Moves
    _table: tuple[int, Tensor] = field(default_factory=lambda: (-1, torch.zeros(0)))

    def table(self, left: int) -> Tensor:
        """log psi_l(s, v), ``[S, V]`` nats; -inf exactly where no success is possible."""
        if self._table[0] != left:
            psi = self.success[left][:, None].expand(-1, self.reader.automaton.vocab_size).clone()
            if left > 0:
                later = self.success[left - 1]
                for (state, target), (usual, by_token) in self.moves.by_token.items():
                    psi[state] += (by_token - usual) * later[target]
            possible = self.reader.distance <= left
            self._table = (left, torch.where(possible[:, None], psi.clamp(FLOOR, 1.0), 0.0).log())
        return self._table[1]

    def now(self, prefixes: Sequence[Ids], left: int) -> Tensor:
        """log psi of prefixes of at least one token with ``left`` tokens to come, ``[m]``."""
        last = torch.tensor([prefix[-1] for prefix in prefixes])
        return self.table(left)[self.reader.states(prefixes), last]

    def then(self, prefixes: Sequence[Ids], left: int) -> Tensor:
        """log psi after each next token, when ``left`` more may follow, ``[m, V]``; EOS ends the text as it is."""
        automaton, states = self.reader.automaton, self.reader.states(prefixes)
        distinct, where = states.unique(return_inverse=True)
        values = self.table(left)[automaton.transitions[distinct], torch.arange(automaton.vocab_size)]
        if self.reader.eos_id is not None:
            values[:, self.reader.eos_id] = torch.where(automaton.accepting[distinct], 0.0, -torch.inf).double()
        return values[where]


def learn(source: CompletionDistribution, reader: AutomatonReader, num_pool: int) -> LookAhead:
    """psi from ``num_pool`` draws; spends at most ``num_pool * T`` LM tokens."""
    moves = observe_moves(source, reader, num_pool)
    accepting = reader.automaton.accepting.double()
    psi = [accepting]
    for _ in range(source.max_new_tokens):
        psi.append(moves.mean[:, :-1] @ psi[-1] + moves.mean[:, -1] * accepting)
    return LookAhead(reader, torch.stack(psi), moves)


class LookingAhead(Restriction):
    """A restriction whose draws lean towards success; ``looks``: for the readers that can look ahead."""

    def __init__(self, base: Restriction, looks: Sequence[LookAhead]) -> None:
        super().__init__(base.readers, base.max_new_tokens, base.eos_id, base.stop_ids)
        self.looks = tuple(looks)

    def support(self, log_probs: Tensor, prefixes: Sequence[Ids], allowed: Tensor) -> Tensor:
        left = self.max_new_tokens - len(prefixes[0]) - 1
        tilt = torch.stack([look.then(prefixes, left) for look in self.looks]).sum(0)
        return self.confine(log_probs + tilt.to(log_probs), allowed & tilt.isfinite())

    def log_success(self, prefixes: Sequence[Ids]) -> Tensor:
        """log psi of running prefixes of one length, ``[m]`` nats."""
        left = self.max_new_tokens - len(prefixes[0])
        return torch.stack([look.now(prefixes, left) for look in self.looks]).sum(0)
