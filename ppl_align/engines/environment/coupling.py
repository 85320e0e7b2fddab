"""A turn of an agent that conditions, without the bias of a finite number of tries: coupled chains.

To say what p*(. | h) would say, an agent can draw K continuations of its history h from the prior and choose among them
by likelihood. That is a draw from some q_K, nearer to the prior, and no number of histories mends it. A chain does:
choose anew among the present continuation and K - 1 fresh ones, again and again (i-SIR: Tjelmeland 2004; Andrieu, Lee &
Vihola 2018). Its law converges to p*(. | h), and two chains that see the same fresh continuations soon choose the same
one, after which they are one chain. With Y a step behind X, both begun by q_K, and tau the time at which they meet,

    h(X_1) + sum over 1 < t < tau of h(X_t) - h(Y_{t-1})

has the mean E_p*[h] exactly (Glynn & Rhee 2014; Jacob, O'Leary & Atchadé 2020, arXiv:1708.03625): the sum telescopes.
It is most often h(X_1) alone. An action is thus worth a sum of actions with signs, and as all that follows is linear in
their law, turns can be strung together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_align.particles.particles import Particles
from ppl_align.particles.resampling import draw_by
from ppl_align.runner.runner import Runner

MAX_ROUNDS = 20  # of K - 1 tries, after which two chains that have not met are given up


@dataclass
class Signed:
    """Histories [P] that stand for the law of each of M: with ``sign`` +-1 [P] for that of ``owner`` [P].

    ``lost`` [M]: the chains did not meet, or found nothing that is allowed."""

    histories: Particles
    sign: Tensor
    owner: Tensor
    lost: Tensor


@dataclass
class _State:
    """Where a chain is: one turn further than its histories, with the log-weight [M] of the continuation it saw."""

    turn: Particles
    score: Tensor

    def take(self, index: Tensor) -> _State:
        return _State(self.turn.take(index), self.score[index])


def condition(runner: Runner, histories: Particles, tries: int) -> Signed:
    """The agent's turn after each history, chosen by p*(. | history): unbiased, with ``tries`` K >= 2 at a time."""
    size = histories.size
    first = _continued(runner, histories, tries)
    score = first.score.reshape(size, tries)
    hopeless = score.amax(-1, keepdim=True).isneginf()  # any choice is as good: the chain goes on from there
    choice = draw_by(torch.where(hopeless, 0.0, score))
    x = first.take(torch.arange(size) * tries + choice)
    y = first.take(torch.arange(size) * tries)  # with the fresh ones of the first round: K that X has not chosen among
    x, y, met = _step(runner, histories, x, y, tries, shared=choice == 0)
    kept, signs, owners = [x], [torch.ones(size)], [torch.arange(size)]
    lost = x.score.isneginf()
    apart = (~met).nonzero()[:, 0]
    x, y = x.take(apart), y.take(apart)
    for _ in range(MAX_ROUNDS):
        if not len(apart):
            break
        x, y, met = _step(runner, histories.take(apart), x, y, tries)
        still = (~met).nonzero()[:, 0]
        apart, x, y = apart[still], x.take(still), y.take(still)
        lost[apart[x.score.isneginf() | y.score.isneginf()]] = True
        kept += [x, y]
        signs += [torch.ones(len(apart)), -torch.ones(len(apart))]
        owners += [apart, apart]
    lost[apart] = True
    together = Particles.concat([state.turn for state in kept])
    return Signed(together, torch.cat(signs).double(), torch.cat(owners), lost)


def _continued(runner: Runner, histories: Particles, copies: int) -> _State:
    """``copies`` continuations of each history, drawn from the prior to the end of the program; the turn is kept."""
    before = histories.repeat(copies)
    turn = runner.turn(before)
    return _State(turn, ended_weight(runner, turn) - before.log_ratio)


def ended_weight(runner: Runner, particles: Particles) -> Tensor:
    """psi + log p0/q of particles that are played to their end, [P] nats."""
    ended, _ = runner.turns(particles)
    return ended.log_potential + ended.log_ratio


def _step(
    runner: Runner, histories: Particles, x: _State, y: _State, tries: int, shared: Tensor | None = None
) -> tuple[_State, _State, Tensor]:
    """Both chains choose among K - 1 fresh continuations and what they have: where they are now, and whether as one.

    ``shared`` [M]: they have the same one (never, unless given)."""
    size = histories.size
    fresh = _continued(runner, histories, tries - 1)
    seen = fresh.score.reshape(size, tries - 1)
    never = torch.full((size, 1), -torch.inf, dtype=torch.float64)
    same = torch.zeros(size, 1, dtype=torch.bool) if shared is None else shared[:, None]
    own = torch.where(same, y.score[:, None], never), torch.where(same, never, y.score[:, None])
    p = _law(torch.cat([x.score[:, None], never, seen], 1), 0)
    q = _law(torch.cat([*own, seen], 1), torch.where(same[:, 0], 0, 1))
    i, j = couple(p, q)
    pool = _State(Particles.concat([x.turn, y.turn, fresh.turn]), torch.cat([x.score, y.score, fresh.score]))

    def place(choice: Tensor) -> Tensor:
        row = torch.arange(size)
        later = 2 * size + row * (tries - 1) + (choice - 2).clamp_min(0)
        return torch.where(choice < 2, choice * size + row, later)

    return pool.take(place(i)), pool.take(place(j)), i == j


def _law(score: Tensor, stay: Tensor | int) -> Tensor:
    """Probabilities ∝ exp(score), [M, K]; where nothing is allowed a chain stays at ``stay``."""
    hopeless = score.amax(-1).isneginf()
    where = torch.as_tensor(stay).expand(len(score))
    only = torch.nn.functional.one_hot(where, score.shape[1]).double()
    return torch.where(hopeless[:, None], only, torch.softmax(torch.where(hopeless[:, None], 0.0, score), -1))


def couple(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Draws from two laws [M, K], equal as often as can be: with probability sum min(p, q) (Lindvall 2002)."""
    i = torch.multinomial(p, 1)[:, 0]
    row = torch.arange(len(p))
    agree = torch.rand(len(p), dtype=torch.float64) * p[row, i] <= q[row, i]
    rest = (q - p).clamp_min(0.0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, q)
    return i, torch.where(agree, i, torch.multinomial(rest, 1)[:, 0])
