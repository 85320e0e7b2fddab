"""Exact answers at real sizes: a Markov prior with rewards of tokens, by dynamic programming.

Enumeration ends at a few hundred thousand sequences. Where the prior is a :class:`~ppl_align.MarkovLM` and the rewards
are sums over tokens, facts about the last token or membership in a regular language, the same quantities follow from
a recursion over (position, automaton state, previous token), for thousands of tokens and hundreds of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ppl_align.core import seeds
from ppl_align.core.errors import AllDeadError, InputError, ModelError
from ppl_align.core.validation import at_least
from ppl_align.lm.completions import sequence_lengths
from ppl_align.lm.decoding import Population, Rows
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.rewards.accepts import Accepts
from ppl_align.rewards.tokens import LastToken, TokenSum
from ppl_align.testing.chain_program import ChainProgram, read, run_on
from ppl_align.testing.recursion import NEVER, LogMatrix, Marginals, TiltedChain
from ppl_align.tokens.automaton import Automaton
from ppl_align.twists.twist import Prefixes

_CHECKED = 32  # posterior draws on which the program itself is asked again


class ChainOracle:
    """Exact answers about ``model(*args, **kwargs)``, the same Pyro program that the engines run.

    The program may hold one completion of a ``MarkovLM`` (any prompt, length, stop tokens, temperature, top-k, top-p;
    tables for every position or for each) and any number of rewards ``reward(name, fn, x.tokens, beta, weight)``
    whose ``fn`` is a ``TokenSum``, ``LastToken`` or ``Accepts``. It is run to find that out, and once more on draws
    of the answer, on which it must agree.

    ``log_evidence``  log Z, nats     ``kl``  KL(p* || p0), nats     ``site``, ``source``  the completion

    One step costs a product of an [S, V] with a [V, V] matrix, S the states of the automata together. Everything is
    float64 arithmetic on the table of the LM as it is: give ``MarkovLM`` logits in float64. Raises
    ``ModelError`` for any other program, ``AllDeadError`` if it accepts nothing that the prior can write.

    >>> from ppl_align import MarkovLM, completion, reward
    >>> lm = MarkovLM(torch.zeros(2, 2, dtype=torch.float64))
    >>> def model():
    ...     x = completion("x", lm, [0], max_new_tokens=200)
    ...     reward("ones", TokenSum(torch.tensor([0.0, 1.0])), x.tokens)
    >>> oracle = ChainOracle(model)  # 200 independent tosses: Z = ((1 + e) / 2) ** 200
    >>> round(oracle.log_evidence, 6), round(oracle.mean("ones"), 6), oracle.prior_mean("ones")
    (124.022901, 146.211716, 100.0)
    """

    def __init__(self, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        known = read(model, args, kwargs)
        self.site, self.source = known.site, known.source
        self._rewards = known.rewards
        accepts = [fn for fn, _ in known.rewards.values() if isinstance(fn, Accepts)]
        self._machine = _Product(accepts, known.source.lm.vocab_size)
        self._chain = _build(known, self._machine)
        self.log_evidence: float = self._chain.log_evidence
        if self.log_evidence == NEVER:
            raise AllDeadError(f"the rewards reject everything that {known.source.lm.name} can write: Z = 0")
        run_on(known.program, known.site, known.source, self.sample(_CHECKED))

    # -- expectations -------------------------------------------------------------------------------------------

    @cached_property
    def kl(self) -> float:
        """KL(p* || p0) = E_p*[log w] - log Z, nats."""
        means = {name: self.mean(name) for name, (_, scale) in self._rewards.items() if scale != 0}
        return sum(self._rewards[name][1] * r for name, r in means.items()) - self.log_evidence

    def mean(self, reward: str) -> float:
        """E_p*[r], reward units."""
        return self._mean(reward, self._chain.marginals)

    def prior_mean(self, reward: str) -> float:
        """E_p0[r], reward units; -inf if the prior can be rejected."""
        return self._mean(reward, self._prior.marginals)

    @cached_property
    def _prior(self) -> TiltedChain:
        return self._chain.untilted()

    def _mean(self, name: str, found: Marginals) -> float:
        if name not in self._rewards:
            raise InputError(f"no reward is called {name!r}; there are {', '.join(self._rewards) or 'none'}")
        fn = self._rewards[name][0]
        if isinstance(fn, TokenSum):
            mass, values = found.tokens, fn.table(self._chain.length)
        elif isinstance(fn, LastToken):
            mass, values = found.last, fn.values
        else:
            mass, values = found.state, self._machine.reward(fn)
        return float(torch.where(mass > 0, mass * values, 0.0).sum())

    # -- prefixes -----------------------------------------------------------------------------------------------

    def soft_value(self, prefix: Sequence[int]) -> float:
        """V(x_<=t) = log E_p0[w | x_<=t] in nats; log Z for the empty prefix, log w for a whole completion."""
        return float(self.soft_values(torch.tensor([list(prefix)], dtype=torch.long).reshape(1, -1)))

    def soft_values(self, tokens: Tensor) -> Tensor:
        """V of each row: ``[m, t] -> [m]`` float64, nats. A row may have ended (terminal token, then padding).

        What the prior gives the prefix itself does not matter, only what may follow."""
        tokens = tokens.long().cpu()
        width = tokens.shape[-1]
        if width > self._chain.length:
            raise InputError(f"a prefix of {width} tokens, the completion has at most {self._chain.length}")
        if width == 0:
            return torch.full((len(tokens),), self.log_evidence, dtype=torch.float64)
        lengths = sequence_lengths(tokens, self.source.terminal)
        position = torch.arange(width)
        so_far = torch.where(position < lengths[:, None], self._chain.step[position, tokens], 0.0).sum(-1)
        last = tokens.gather(-1, lengths[:, None] - 1)[:, 0]
        return so_far + self._chain.to_go[width][self._machine.automaton.run(tokens, lengths), last]

    def twist(self, prefixes: Prefixes) -> Tensor:
        """The optimal twist, for ``SMC(twist=oracle.twist)``: log psi [m] = V of each prefix."""
        return self.soft_values(prefixes.tokens)

    def proposal(self, rows: Rows) -> Tensor:
        """The optimal proposal, log p*(v | prefix) = log p0(v | prefix) + V(prefix, v) - V(prefix): ``[rows, V]``."""
        state = self._machine.automaton.run(rows.prefixes)
        log_p = rows.log_probs.double().cpu()
        log_q = log_p + self._chain.ahead(rows.prefixes.shape[-1])[state]
        total = log_q.logsumexp(-1, keepdim=True)
        hopeless = total == NEVER  # nothing can be accepted after this prefix: go on as the prior does
        return torch.where(hopeless, log_p, log_q - torch.where(hopeless, 0.0, total)).to(rows.log_probs.device)

    # -- draws --------------------------------------------------------------------------------------------------

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Independent exact draws of p*: ids ``[n, T]``, padded like every completion."""
        at_least(1, n=n)
        source = self.source.expand(torch.Size([n]))
        return Population(source, self.proposal, seeds.generator(seed, "chain oracle")).run().tokens.cpu()

    def __repr__(self) -> str:
        vocab, states = self.source.lm.vocab_size, self._machine.size
        return f"ChainOracle({self.site!r}, V={vocab}, T={self._chain.length}, S={states}, {', '.join(self._rewards)})"


def _build(known: ChainProgram, machine: _Product) -> TiltedChain:
    """The chain with its potentials, log w = sum of scale * r."""
    source, length, vocab = known.source, known.source.max_new_tokens, known.source.lm.vocab_size
    step = torch.zeros(length, vocab, dtype=torch.float64)
    final = torch.zeros(machine.size, vocab, dtype=torch.float64)
    for name, (fn, scale) in known.rewards.items():
        if scale == 0:
            continue  # as in reward(): not even a rejection counts
        if isinstance(fn, TokenSum):
            added = scale * fn.table(length)
            step = step + added
        else:
            added = scale * (fn.values if isinstance(fn, LastToken) else machine.reward(fn)[:, None])
            final = final + added
        if bool((added == torch.inf).any()):
            raise ModelError(f"ChainOracle: site {name!r} has a negative weight and rejects: its factor would be +inf")
    terminal = torch.zeros(vocab, dtype=torch.bool)
    terminal[list(source.terminal)] = True
    return TiltedChain(*_prior(source), machine.automaton.transitions, machine.automaton.start, terminal, step, final)


def _prior(source: CompletionDistribution) -> tuple[Tensor, list[LogMatrix]]:
    """``(L_0 [V], [L_1, .., L_{T-1}])`` with the warp of the completion, as the LM itself would say it."""
    lm: Any = source.lm
    prompt, length = source.prompts[int(source.index)], source.max_new_tokens
    table = lm.log_table.cpu()
    row = lm.log_initial.cpu() if not prompt else (table if table.dim() == 2 else table[0])[prompt[-1]]
    first = source.warp(row[None]).double()[0]
    if table.dim() == 2:
        return first, [LogMatrix(source.warp(table).double())] * (length - 1)
    return first, [LogMatrix(source.warp(table[t]).double()) for t in range(1, length)]


class _Product:
    """Several automata read as one: states are those tuples of their states that can be reached."""

    def __init__(self, rewards: list[Accepts], vocab: int) -> None:
        self.rewards = rewards
        anything = Automaton(torch.zeros(1, vocab, dtype=torch.long), 0, torch.tensor([True]))
        machines = [fn.automaton for fn in rewards] or [anything]
        start = tuple(machine.start for machine in machines)
        number, self.states, rows = {start: 0}, [start], []
        for state in self.states:  # the list grows on the way
            targets = torch.stack([m.transitions[s] for m, s in zip(machines, state, strict=True)], -1)
            distinct, which = targets.unique(dim=0, return_inverse=True)
            found = [tuple(target) for target in distinct.tolist()]
            for target in found:
                if target not in number:
                    number[target] = len(number)
                    self.states.append(target)
            rows.append(torch.tensor([number[target] for target in found])[which])
        self.automaton = Automaton(torch.stack(rows), 0, torch.ones(len(rows), dtype=torch.bool))

    @property
    def size(self) -> int:
        return len(self.states)

    def reward(self, fn: Accepts) -> Tensor:
        """r of ending in each state, [S]."""
        at = self.rewards.index(fn)
        accepted = fn.automaton.accepting[torch.tensor([state[at] for state in self.states])]
        return torch.where(accepted, 0.0, fn.reject).double()
