"""How the next token moves an automaton, seen on a pool of draws: on average, and after each last token.

Every prefix of the pool tells P(s -> s' | prefix), the LM's mass on the tokens that lead from state s to s', whether
or not one of them is drawn. EOS and stop tokens lead nowhere: they end the text, well or badly. So that rare states are
seen as well, the pool visits them more often than the LM would, and is weighed for it:

    q_pool = (1 - e) p0 + e mean over states s' != s of p0(. | leads to s'),      e = 1/T at the start, 1/2 elsewhere

A move that the LM makes only after something that the pool did not meet (an opening word, a plan) looks impossible
there. But n prefixes cannot exclude that one in n is of that kind. ``smoothed`` is the mean with some more, c, after
which all that can come next is equally likely; n is the effective number of prefixes, (sum w)^2 / sum w^2:

    P+(s -> s') = (n P(s -> s') + c / number of s' that some token leads to) / (n + c)

How likely a word comes next depends above all on the token before it (" very", then " funny"). So log P(s -> s') is
regressed on the embedding of the last token, a ridge regression whose penalty is chosen by its exact leave-one-out
error, and then scaled so that its mean over the pool is the observed mean. Predictions are kept within what was seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_align.constraints.automata import AutomatonMatcher
from ppl_align.lm.base import Ids
from ppl_align.lm.decoding import Population, Rows
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.leaning import Leaning
from ppl_align.lm.transfer import Resident, upload
from ppl_align.particles.weights import kish
from ppl_align.twists.stop_states import ending_tokens, settled

OTHER_STATES = 0.5
FEWEST = 32  # different last tokens, below which only the mean is used
UNSEEN = 0.3  # c: prefixes that each state counts as seen on besides those of the pool
PENALTIES = (1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)


@dataclass(frozen=True, eq=False)
class TransitionModel:
    """What a pool of n prefixes says of an automaton with S states.

    ``states`` [n], ``last`` [n] the last token, ``weights`` [n] p0 / q of the prefix
    ``masses``  [n, S + 1] P(s -> s' | prefix), the last column: that the text ends well
    ``mean``    [S, S + 1] its weighted mean     ``smoothed``  [S, S + 1] the same with what may be unseen"""

    states: Tensor
    last: Tensor
    weights: Tensor
    masses: Tensor
    mean: Tensor
    smoothed: Tensor

    def token_residual(self, state: int, target: int, features: Tensor) -> Tensor | None:
        """P(s -> s' | last token) - P(s -> s') for every last token, ``[V]``; None where the pool saw too little."""
        here = self.states == state
        last, weights, masses = self.last[here], self.weights[here], self.masses[here, target]
        some = masses > 0
        if len(last[some].unique()) < FEWEST:
            return None
        predicted = _predict(features, last[some], masses[some].log(), weights[some])
        predicted *= (masses * weights).sum() / (predicted[last] * weights).sum()
        return predicted - self.mean[state, target]


def observe(source: CompletionDistribution, matcher: AutomatonMatcher, num_pool: int) -> TransitionModel:
    """Draw the pool and look. A draw that has succeeded for good is not continued."""
    size = matcher.automaton.num_states
    states, last, weights, masses = _pool(source, matcher, num_pool)
    zeros = torch.zeros(size, dtype=torch.float64)
    weight, squares = (zeros.index_add(0, states, w)[:, None] for w in (weights, weights.square()))
    total = torch.zeros(size, size + 1, dtype=torch.float64).index_add_(0, states, weights[:, None] * masses)
    possible = torch.zeros(size, size + 2, dtype=torch.float64).scatter_(1, outcomes(matcher, source.stop_ids), 1.0)
    even = (possible / possible.sum(-1, keepdim=True))[:, :-1]
    mean = torch.where(weight > 0, total / weight.clamp_min(1e-300), even)
    effective = kish(weight, squares)
    smoothed = (effective * mean + UNSEEN * even) / (effective + UNSEEN)
    over, stays = settled(matcher.automaton)[:, None], torch.eye(size, size + 1, dtype=torch.float64)
    mean, smoothed = (torch.where(over, stays, moves) for moves in (mean, smoothed))
    return TransitionModel(states, last, weights, masses, mean, smoothed)


def outcomes(matcher: AutomatonMatcher, stop_ids: Ids) -> Tensor:
    """Where each token leads from each state, ``[S, V]``: to a state, to S (a good end) or to S + 1 (a bad one)."""
    automaton, to = matcher.automaton, matcher.automaton.transitions.clone()
    well, size = automaton.accepting, automaton.num_states
    to = torch.where(ending_tokens(matcher, stop_ids), torch.where(well[to], size, size + 1), to)
    to[:, list(matcher.eos_ids)] = torch.where(well, size, size + 1)[:, None]
    return to


def _pool(
    source: CompletionDistribution, matcher: AutomatonMatcher, num_pool: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every prefix of the pool: its state [n], last token [n], weight [n], and masses [n, S + 1]."""
    size, led = matcher.automaton.num_states, Resident(outcomes(matcher, source.stop_ids))
    over = settled(matcher.automaton)
    flat = source.index.reshape(-1)
    spread = torch.linspace(0, len(flat) - 1, num_pool).round().long()
    start = source.with_index(flat[spread.to(flat.device)])
    population = Population(start, lean=_Explore(matcher, source, led))
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    while not population.done:
        running = torch.from_numpy(np.flatnonzero(population.alive))
        prefixes = population.row_prefixes()
        states = matcher.states(prefixes)
        p = source.warp(population.decoder.log_probs).double().exp()
        masses = _summed(p, led.on(p.device)[upload(states, p.device)], size + 2)[:, :-1].cpu()
        ratio = (population.log_p - population.log_q).cpu()[running].exp()
        weights = torch.zeros(len(states), dtype=torch.float64)
        weights.index_add_(0, torch.from_numpy(population.row)[running], ratio)
        before = [population.prompts[i] for i in population.row_prompt]
        last = torch.tensor([(*q[-1:], *x[-1:])[-1] if q or x else 0 for q, x in zip(before, prefixes, strict=True)])
        seen.append((states, last, weights, masses))
        population.step()
        after = matcher.states([tuple(row) for row in population.written[:, : population.t].tolist()])
        population.alive &= ~over[after].numpy()
        population.advance()
    states, last, weights, masses = (torch.cat(part) for part in zip(*seen, strict=True))
    return states, last, weights, masses


def _summed(p: Tensor, columns: Tensor, size: int) -> Tensor:
    """The mass of the tokens [m, V] that lead to each column [m, V] of ``size``, ``[m, size]``."""
    rows = torch.arange(len(p), device=p.device)[:, None].expand_as(p)
    masses = torch.zeros(len(p), size, dtype=p.dtype, device=p.device)
    return masses.index_put_((rows, columns), p, accumulate=True)  # its order, unlike scatter_add's, is always the same


class _Explore:
    """Forbids nothing; steps into other states are drawn more often than the prior would. ``led``: :func:`outcomes`."""

    def __init__(self, matcher: AutomatonMatcher, source: CompletionDistribution, led: Resident) -> None:
        self.matcher, self.max_new_tokens, self.led = matcher, source.max_new_tokens, led

    proposes = True
    by_ids = True

    def leaning(self, rows: Rows) -> Leaning:
        automaton, device = self.matcher.automaton, rows.log_probs.device
        assert rows.ids is not None
        states = upload(self.matcher.states(rows.ids), device)
        to = self.led.on(device)[states]
        mass = _summed(rows.log_probs.double().exp(), to, automaton.num_states + 2)
        there = (mass > 1e-12).scatter(1, states[:, None], False)
        there[:, automaton.num_states :] = False  # an end shows nothing more
        share = torch.where(states == automaton.start, min(OTHER_STATES, 1 / self.max_new_tokens), OTHER_STATES)
        share = torch.where(there.any(-1), share, 0.0).double()[:, None]
        gain = torch.where(there, share / (there.sum(-1, keepdim=True).clamp_min(1) * mass.clamp_min(1e-12)), 0.0)
        return Leaning(log_psi=(1 - share + gain.gather(1, to)).log())


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
