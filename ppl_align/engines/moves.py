"""How the next token moves an automaton, seen on a pool of draws: on average, and after each last token.

Every prefix of the pool tells P(s -> s' | prefix), the LM's mass on the tokens that lead from state s to s', whether
or not one of them is drawn. So that states inside a word are seen as well, the pool follows the word more often than
the LM would, and is weighed for it:

    q_pool = (1 - e) p0 + e p0(. | a step nearer),      e = 1/T outside of the word, 1/2 inside it

How likely a word comes next depends above all on the token before it (" very", then " funny"). So log P(s -> s') is
regressed on the embedding of the last token, a ridge regression whose penalty is chosen by its exact leave-one-out
error, and then scaled so that its mean over the pool is the observed mean. Predictions are kept within what was seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_align.constraints.automata import AutomatonReader
from ppl_align.lm.base import Ids
from ppl_align.lm.decoding import Population
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.restriction import Restriction

INSIDE = 0.5
FEWEST = 32  # prefixes in a state, below which only its mean is used
PENALTIES = (1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)


@dataclass(frozen=True, eq=False)
class Moves:
    """``mean``  [S, S + 1] mean mass from state to state, the last column to EOS
    ``by_token``  for some (s, s'): (mean mass, mass after each last token [V])"""

    mean: Tensor
    by_token: dict[tuple[int, int], tuple[float, Tensor]]


def observe_moves(source: CompletionDistribution, reader: AutomatonReader, num_pool: int) -> Moves:
    """Draw the pool and look. A draw that has succeeded for good is not continued."""
    size = reader.automaton.num_states
    states, last, weights, masses = _pool(source, reader, num_pool)
    total = torch.zeros(size, size + 1, dtype=torch.float64).index_add_(0, states, weights[:, None] * masses)
    weight = torch.zeros(size, dtype=torch.float64).index_add_(0, states, weights)
    mean = total / weight.clamp_min(1e-300)[:, None]
    mean = torch.where((weight > 0)[:, None], mean, mean[reader.automaton.start])  # never seen: as at the start
    features = source.lm.token_features
    by_token = {}
    for state, target in _nearer_pairs(reader):
        here = (states == state) & (masses[:, target] > 0)
        usual = float(mean[state, target])
        if features is not None and int(here.sum()) >= FEWEST and usual > 0:
            predicted = _predict(features, last[here], masses[here, target].log(), weights[here])
            by_token[state, target] = (usual, predicted * usual / _mean(predicted[last[here]], weights[here]))
    return Moves(mean, by_token)


def _nearer_pairs(reader: AutomatonReader) -> list[tuple[int, int]]:
    """Moves by one token that bring success nearer."""
    moves, distance = reader.automaton.transitions, reader.distance
    return [
        (state, target)
        for state in range(len(distance))
        for target in moves[state].unique().tolist()
        if distance[target] < distance[state]
    ]


def _pool(
    source: CompletionDistribution, reader: AutomatonReader, num_pool: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every prefix of the pool: its state [n], last token [n], weight [n], and masses [n, S + 1]."""
    moves, size = reader.automaton.transitions, reader.automaton.num_states
    columns = moves.clone()
    if reader.eos_id is not None:
        columns[:, reader.eos_id] = size
    settled = reader.automaton.accepting & (moves == torch.arange(size)[:, None]).all(-1)
    flat = source.index.reshape(-1)
    spread = torch.linspace(0, len(flat) - 1, num_pool).round().long()
    population = Population(source.with_index(flat[spread.to(flat.device)]).within(_Explore(reader, source)))
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    while not population.done:
        running = torch.from_numpy(np.flatnonzero(population.alive))
        prefixes = population.row_prefixes()
        states = reader.states(prefixes)
        p = source.warp(population.decoder.log_probs).exp().double().cpu()
        rows = torch.arange(len(states))[:, None].expand_as(p)
        masses = torch.zeros(len(states), size + 1, dtype=torch.float64)
        masses.index_put_((rows, columns[states]), p, accumulate=True)
        ratio = (population.log_p - population.log_q).cpu()[running].exp()
        weights = torch.zeros(len(states), dtype=torch.float64)
        weights.index_add_(0, torch.from_numpy(population.row)[running], ratio)
        before = [population.prompts[i] for i in population.row_prompt]
        last = torch.tensor([(*q[-1:], *x[-1:])[-1] if q or x else 0 for q, x in zip(before, prefixes, strict=True)])
        seen.append((states, last, weights, masses))
        population.step()
        after = reader.states([tuple(row) for row in population.written[:, : population.t].tolist()])
        population.alive &= ~settled[after].numpy()
        population.advance()
    states, last, weights, masses = (torch.cat(part) for part in zip(*seen, strict=True))
    return states, last, weights, masses


class _Explore(Restriction):
    """Forbids nothing; steps nearer to success are drawn more often than the prior would."""

    def __init__(self, reader: AutomatonReader, source: CompletionDistribution) -> None:
        super().__init__([reader], source.max_new_tokens, source.lm.eos_id, source.stop_ids)
        self.reader, distance = reader, reader.distance
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
        gain = torch.where(nearer, (1 - share + share * (-log_step).exp()).log(), (1 - share).log())
        return torch.where(log_step > -25, log_probs + gain, log_probs)  # where there is a step nearer at all


def _predict(features: Tensor, last: Tensor, log_mass: Tensor, weights: Tensor) -> Tensor:
    """exp of a ridge regression of log mass on the features of the last token, for every token [V].

    Leave-one-out residuals of ridge are e_i / (1 - h_i), h the diagonal of the hat matrix; one SVD serves all
    penalties. Prefixes with the same last token are one observation: they would vouch for each other."""
    tokens, group = last.unique(return_inverse=True)
    heavy = torch.zeros(len(tokens), dtype=torch.float64).index_add_(0, group, weights)
    y = torch.zeros(len(tokens), dtype=torch.float64).index_add_(0, group, weights * log_mass) / heavy
    x = features[tokens.to(features.device)].double().cpu()
    centre, level = x.mean(0), y.mean()
    u, scale, v = torch.linalg.svd(x - centre, full_matrices=False)
    best: tuple[float, Tensor] | None = None
    for penalty in PENALTIES:
        shrink = scale**2 / (scale**2 + penalty * float((scale**2).mean()))
        fit = u @ (shrink * (u.T @ (y - level)))
        hat = (u**2 @ shrink + 1 / len(y)).clamp_max(1 - 1e-9)
        error = float((((y - level - fit) / (1 - hat)) ** 2).mean())
        if best is None or error < best[0]:
            best = error, v.T @ (shrink / scale.clamp_min(1e-12) * (u.T @ (y - level)))
    assert best is not None
    predicted = level + (features.double().cpu() - centre) @ best[1]
    return predicted.clamp(float(log_mass.min()), float(log_mass.max())).exp()


def _mean(values: Tensor, weights: Tensor) -> float:
    return float((values * weights).sum() / weights.sum())
