"""Looking ahead: how likely is an unfinished text to meet its constraint in the tokens that are left?

A word that the prior writes once in a thousand texts is met by one particle in a thousand, and until the last token no
prefix is worse than another: a constraint on its own says nothing on the way. What it needs is the probability of
still succeeding, psi_l(s), in state s of its automaton with l tokens left. It proposes the tokens and weighs the
prefixes:

    q(v | x_<t) ∝ p0(v | x_<t) psi_{l-1}(state after v),      l = tokens left, v included
    psi_0(s) = 1[s accepts],   psi_l(s) = sum_s' P(s -> s') psi_{l-1}(s') + P(s -> EOS) 1[s accepts]

P(s -> s') is the mean of the LM's own next-token mass over prefixes in state s. It is seen on every prefix of a small
pool, although the word itself may not occur in it once: the masses are known, not only the draws. So that states
within the word are seen as well, the pool follows the word more often than the LM would, and is weighed for it:

    q_pool = (1 - e) p0 + e p0(. | a step nearer),      e = 1/T at the start of the word, 1/2 inside it

Any psi that is positive where success is possible leaves E[Zhat] = Z; the pool only decides how much it varies.
(Twisted SMC: Guarniero, Johansen & Lee 2017, arXiv:1511.06286; Zhao et al. 2024, arXiv:2404.17546.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_align.constraints.automata import AutomatonReader
from ppl_align.errors import InputError
from ppl_align.lm.base import Ids
from ppl_align.lm.decoding import Population
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.restriction import Restriction

FLOOR = 1e-9  # the least that a success which is possible may seem worth: zero would rule it out
INSIDE = 0.5


@dataclass(frozen=True, eq=False)
class LookAhead:
    """``log_success``  [T + 1, S]: log psi_l(s), nats; -inf exactly where no success is possible."""

    log_success: Tensor

    def now(self, reader: AutomatonReader, prefixes: Sequence[Ids], left: int) -> Tensor:
        """log psi of prefixes with ``left`` tokens to come, ``[m]``."""
        return self.log_success[left, reader.states(prefixes)]

    def then(self, reader: AutomatonReader, prefixes: Sequence[Ids], left: int) -> Tensor:
        """log psi after each next token, when ``left`` more may follow, ``[m, V]``; EOS ends the text as it is."""
        states = reader.states(prefixes)
        values = self.log_success[left, reader.automaton.transitions[states]]
        if reader.eos_id is not None:
            values[:, reader.eos_id] = torch.where(reader.automaton.accepting[states], 0.0, -torch.inf).double()
        return values


class LookingAhead(Restriction):
    """A restriction whose draws lean towards success; ``looks``: for each reader that can look ahead."""

    def __init__(self, base: Restriction, looks: Mapping[AutomatonReader, LookAhead]) -> None:
        super().__init__(base.readers, base.max_new_tokens, base.eos_id, base.stop_ids)
        self.looks = dict(looks)

    def support(self, log_probs: Tensor, prefixes: Sequence[Ids], allowed: Tensor) -> Tensor:
        left = self.max_new_tokens - len(prefixes[0]) - 1
        tilt = sum(look.then(reader, prefixes, left) for reader, look in self.looks.items())
        return self.confine(log_probs + torch.as_tensor(tilt).to(log_probs), allowed & torch.as_tensor(tilt).isfinite())

    def log_success(self, prefixes: Sequence[Ids]) -> Tensor:
        """log psi of running prefixes of one length, ``[m]`` nats."""
        left = self.max_new_tokens - len(prefixes[0])
        total = torch.zeros(len(prefixes), dtype=torch.float64)
        for reader, look in self.looks.items():
            total = total + look.now(reader, prefixes, left)
        return total


def learn(source: CompletionDistribution, reader: AutomatonReader, num_pool: int) -> LookAhead:
    """The probability of success by state and tokens left, from ``num_pool`` draws of the prior.

    Spends at most ``num_pool * T`` LM tokens; a draw that has succeeded for good is not continued."""
    if num_pool < 1:
        raise InputError(f"num_pool must be at least 1, got {num_pool}")
    return LookAhead(_success(_transitions(source, reader, num_pool), reader, source.max_new_tokens))


def _transitions(source: CompletionDistribution, reader: AutomatonReader, num_pool: int) -> Tensor:
    """Mean mass from state to state, the last column to EOS, [S, S + 1]; rows of states never seen are 0."""
    moves, size = reader.automaton.transitions, reader.automaton.num_states
    columns = moves.clone()
    if reader.eos_id is not None:
        columns[:, reader.eos_id] = size
    settled = reader.automaton.accepting & (moves == torch.arange(size)[:, None]).all(-1)
    flat = source.index.reshape(-1)
    spread = torch.linspace(0, len(flat) - 1, num_pool).round().long()
    explore = _Explore(reader, source)
    population = Population(source.with_index(flat[spread.to(flat.device)]).within(explore))
    total = torch.zeros(size, size + 1, dtype=torch.float64)
    while not population.done:
        running = torch.from_numpy(np.flatnonzero(population.alive))
        log_p = source.warp(population.decoder.log_probs).cpu()
        states = reader.states(population.row_prefixes())
        mass = torch.zeros(len(states), size + 1).index_put_(
            (torch.arange(len(states))[:, None].expand_as(log_p), columns[states]), log_p.exp().float(), accumulate=True
        )
        weight = (population.log_p - population.log_q).cpu()[running].exp()
        per_row = torch.zeros(len(states), dtype=torch.float64)
        per_row.index_add_(0, torch.from_numpy(population.row)[running], weight)
        total.index_add_(0, states, per_row[:, None] * mass.double())
        population.step()
        after = reader.states([tuple(row) for row in population.written[:, : population.t].tolist()])
        population.alive &= ~settled[after].numpy()
        population.advance()
    return total / total.sum(-1, keepdim=True).clamp_min(1e-300)


def _success(transitions: Tensor, reader: AutomatonReader, length: int) -> Tensor:
    """log psi, [T + 1, S], by going backwards from the end."""
    accepting = reader.automaton.accepting.double()
    seen = transitions.sum(-1) > 0
    transitions = torch.where(seen[:, None], transitions, transitions[reader.automaton.start])
    psi = [accepting]
    for _ in range(length):
        psi.append(transitions[:, :-1] @ psi[-1] + transitions[:, -1] * accepting)
    possible = reader.distance <= torch.arange(length + 1)[:, None]
    return torch.where(possible, torch.stack(psi).clamp(FLOOR, 1.0), 0.0).log()


class _Explore(Restriction):
    """Forbids nothing; steps nearer to success are drawn more often than the prior would."""

    def __init__(self, reader: AutomatonReader, source: CompletionDistribution) -> None:
        super().__init__([reader], source.max_new_tokens, source.lm.eos_id, source.stop_ids)
        self.reader = reader
        distance = reader.distance
        self.nearer = distance[reader.automaton.transitions] < distance[:, None]
        if reader.eos_id is not None:
            self.nearer[:, reader.eos_id] = False
        outside = distance >= distance[reader.automaton.start]
        self.share = torch.where(outside, min(INSIDE, 1 / source.max_new_tokens), INSIDE)

    def allowed(self, prefixes: Sequence[Ids]) -> Tensor:
        return torch.ones(len(prefixes), self.reader.automaton.vocab_size, dtype=torch.bool)

    def support(self, log_probs: Tensor, prefixes: Sequence[Ids], allowed: Tensor) -> Tensor:
        states = self.reader.states(prefixes)
        nearer, share = self.nearer[states].to(log_probs.device), self.share[states][:, None].to(log_probs)
        log_step = log_probs.masked_fill(~nearer, -torch.inf).logsumexp(-1, keepdim=True)
        gain = torch.where(nearer, ((1 - share) + share * (-log_step).exp().clamp_max(1e12)).log(), (1 - share).log())
        return torch.where(log_step > -25, log_probs + gain, log_probs)
