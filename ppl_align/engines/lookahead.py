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

Any psi that is positive where success is possible leaves E[Zhat] = Z; the pool only decides how much Zhat varies. But a
psi that is far too small somewhere makes Zhat heavy-tailed, which looks like a bias until the rare draw comes. Two
precautions cost next to nothing: no state is thought much worse than the start, and one token in ten is drawn from
the prior, as far as the constraint allows.
(Twisted SMC: Guarniero, Johansen & Lee 2017, arXiv:1511.06286; Zhao et al. 2024, arXiv:2404.17546.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_align.constraints.automata import AutomatonReader
from ppl_align.constraints.base import Constraint
from ppl_align.engines.base import isolated
from ppl_align.engines.moves import observe
from ppl_align.errors import InputError
from ppl_align.lm.base import LM, Ids
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.restriction import Restriction
from ppl_align.lm.warp import log_normalise
from ppl_align.program.constrain import compiled
from ppl_align.seeds import mix

FLOOR = 1e-9  # the least that a success which is possible may seem worth: zero would rule it out
RELATIVE_FLOOR = 0.05  # the same, as a share of what it is worth at the start
DEFENSIVE = 0.1  # share of the tokens drawn from the confined prior
TINY = 1e-37  # float32: what a mass is divided by where it is 0
SHARE = 0.05  # of a state's success: what a move must contribute for its last token to be looked at


@dataclass(eq=False)
class LookAhead:
    """psi of one automaton: ``success`` [T + 1, S] psi_l(s); ``by_token``, for moves s -> s' that matter: how much more
    likely than usual they are after each last token, P(s -> s' | v) - P(s -> s') [V]."""

    reader: AutomatonReader
    success: Tensor
    by_token: Mapping[tuple[int, int], Tensor] = field(default_factory=dict)
    _table: tuple[int, Tensor] = field(default_factory=lambda: (-1, torch.zeros(0)))

    def checked(self, source: CompletionDistribution) -> LookAhead:
        """Itself; raises ``InputError`` unless it reaches as far as the completion."""
        needed = (source.max_new_tokens + 1, self.reader.automaton.num_states)
        if self.success.shape[0] < needed[0] or self.success.shape[1:] != needed[1:]:
            raise InputError(
                f"this LookAhead has success of shape {list(self.success.shape)}, but the completion needs "
                f"{list(needed)} (tokens left, states)"
            )
        return self

    def table(self, left: int) -> Tensor:
        """log psi_l(s, v), ``[S, V]`` nats; -inf exactly where no success is possible."""
        if self._table[0] != left:
            psi = self.success[left][:, None].expand(-1, self.reader.automaton.vocab_size).clone()
            if left > 0:
                later = self.success[left - 1]
                for (state, target), surplus in self.by_token.items():
                    psi[state] += surplus * later[target]
            possible = self.reader.distance <= left
            floor = max(FLOOR, RELATIVE_FLOOR * float(self.success[left, self.reader.automaton.start]))
            self._table = (left, torch.where(possible[:, None], psi.clamp(floor, 1.0), 0.0).log())
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
        return values.float()[where]


def look_ahead(
    lm: LM, constraint: Constraint, prompt: Any = "", max_new_tokens: int = 32, *, num_pool: int = 64, seed: int = 0
) -> LookAhead:
    """Learn psi once, to be used by many runs: ``SMC(twist=look_ahead(lm, Contains("word"), prompt, 24))``.

    Arguments as of ``completion``. Raises ``InputError`` for a constraint that cannot look ahead."""
    reader = compiled(constraint, lm)
    if not isinstance(reader, AutomatonReader):
        raise InputError(f"{constraint!r} cannot look ahead: only Contains, EndsWith and AcceptedBy can")
    with isolated(mix(seed, "lookahead")):
        return learn(lm.completion(prompt, max_new_tokens), reader, num_pool)


def learn(source: CompletionDistribution, reader: AutomatonReader, num_pool: int) -> LookAhead:
    """psi from ``num_pool`` draws; spends at most ``num_pool * T`` LM tokens."""
    moves = observe(source, reader, num_pool)
    accepting = reader.automaton.accepting.double()
    psi = [accepting]
    for _ in range(source.max_new_tokens):
        psi.append(moves.mean[:, :-1] @ psi[-1] + moves.mean[:, -1] * accepting)
    features, by_token = source.lm.token_features, {}
    gain = moves.mean[:, :-1] * psi[-1]
    for state, target in ((gain > SHARE * psi[-1][:, None]) & (psi[-1] > 2 * psi[-1][:, None])).nonzero().tolist():
        after = None if features is None else moves.after(state, target, features)
        if after is not None:
            by_token[state, target] = after - moves.mean[state, target]
    return LookAhead(reader, torch.stack(psi), by_token)


class LookingAhead(Restriction):
    """A restriction whose draws lean towards success; ``looks``: for the readers that can look ahead."""

    def __init__(self, base: Restriction, looks: Sequence[LookAhead]) -> None:
        super().__init__(base.readers, base.max_new_tokens, base.eos_id, base.stop_ids)
        self.looks = tuple(looks)

    def support(self, log_probs: Tensor, prefixes: Sequence[Ids], allowed: Tensor) -> Tensor:
        """(1 - d) p0 psi / A + d p0 1[allowed] / B, each normalised; a dead end is drawn from like any other prefix."""
        left = self.max_new_tokens - len(prefixes[0]) - 1
        psi = self.looks[0].then(prefixes, left)
        for look in self.looks[1:]:
            psi = psi + look.then(prefixes, left)
        psi = psi.to(log_probs).exp().mul_(allowed.to(log_probs.device))
        safe = log_probs.exp().mul_(allowed.to(log_probs.device))
        total, room = (safe * psi).sum(-1, keepdim=True), safe.sum(-1, keepdim=True)
        leaning = torch.where(total > 0, 1 - DEFENSIVE, 0.0) / total.clamp_min(TINY)
        rest = torch.where(total > 0, DEFENSIVE, 1.0) / room.clamp_min(TINY)
        log_q = (psi.mul_(leaning).add_(rest)).log_().add_(log_probs).masked_fill_(~allowed.to(psi.device), -torch.inf)
        return log_normalise(torch.where(room > 0, log_q, log_probs))

    def log_success(self, prefixes: Sequence[Ids]) -> Tensor:
        """log psi of running prefixes of one length, ``[m]`` nats."""
        left = self.max_new_tokens - len(prefixes[0])
        return torch.stack([look.now(prefixes, left) for look in self.looks]).sum(0)
