"""Looking ahead: how likely is an unfinished text to meet its constraint in the tokens that are left?

A word that the prior writes once in a thousand texts is met by one particle in a thousand, and until the last token no
prefix is worse than another: a constraint on its own says nothing on the way. What it needs is the probability of
still succeeding, psi_l(s, v), in state s of its automaton, after the token v, with l tokens left. It proposes the
tokens and weighs the prefixes:

    q(v | x_<t) ∝ p0(v | x_<t) psi_l(state after v, v)

    psi_l(s, v) = sum_s' P(s -> s' | v) psi_{l-1}(s') + P(s -> a good end | v),      psi_0(s) = 1[s accepts]

where psi_l(s), without v, is the same with the mean P(s -> s'). Both are learned from a small pool of draws, in which
the word itself may not occur once: the LM's next-token *mass* that moves the automaton is seen on every prefix
(:mod:`ppl_align.twists.transition_model`).

Any psi that is positive where success is possible leaves E[Zhat] = Z; the pool only decides how much Zhat varies. But
prefixes whose psi is far too small are given up, Zhat becomes heavy-tailed, and that looks like a bias until the rare
draw comes. So prefixes are weighed with psi+, the same recursion with P+, in which what the pool did not see is not
impossible; tokens are proposed with psi itself, for which what is unseen would cost most of the gain on rare words.
No state is thought much worse than the start, and one token in ten is drawn from the prior, as far as the constraint
allows.

That is for constraints that forbid nothing on the way. In a pattern, or under a limit of words, the state of the
automaton tells too little, and draws of the prior are outside at once: :mod:`ppl_align.twists.context_lookahead`.

All replicates of a run share one psi: that they agree says nothing about the pool. If success hangs on something that
none of its draws has met, they may miss it alike. Another seed, a larger ``num_pool`` or a run without the twist tells.
(Replicates have no pools of their own: num_pool / num_replicates draws would be too few, and particles with the same
prefix share a row of the network, and what is proposed there, across replicates.)
(Twisted SMC: Guarniero, Johansen & Lee 2017, arXiv:1511.06286; Zhao et al. 2024, arXiv:2404.17546.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_align.constraints.automata import AutomatonMatcher
from ppl_align.constraints.base import Constraint
from ppl_align.core.errors import InputError
from ppl_align.core.runs import on_run_end
from ppl_align.core.seeds import isolated, mix
from ppl_align.lm.base import LM, Ids
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.matcher import Matcher
from ppl_align.lm.spelling import goes_on_from
from ppl_align.lm.transfer import CPU, Resident, upload
from ppl_align.program.constrain import compiled
from ppl_align.twists.context_lookahead import learn_contexts
from ppl_align.twists.site_lookahead import AtSite, SiteLookAhead
from ppl_align.twists.stop_states import StoppingMatcher, stop_strings_of, with_stop_strings
from ppl_align.twists.transition_model import observe, outcomes
from ppl_align.twists.twist import Scene, Sum, Twist

FLOOR = 1e-9  # the least that a success which is possible may seem worth: zero would rule it out
RELATIVE_FLOOR = 0.05  # the same, as a share of what it is worth at the start
SHARE = 0.05  # of a state's success: what a move must contribute for its last token to be looked at


@dataclass(eq=False)
class LookAhead(SiteLookAhead):
    """psi of one automaton.

    ``success``   [T + 1, S] psi_l(s): proposes tokens     ``smoothed``   [T + 1, S] psi+_l(s): weighs prefixes
    ``by_token``  for moves s -> s' that matter: how much more likely than usual they are after each last token,
                  P(s -> s' | v) - P(s -> s') [V]; s' = S is a good end
    ``stop_ids``  tokens that end the text, besides EOS

    As for the masks of a constraint, its rows over the vocabulary are made on the device, one for each state, and
    particles copy the number of their state; the psi of prefixes, a number each, is for weights and stays on the host.
    """

    matcher: AutomatonMatcher
    success: Tensor
    by_token: Mapping[tuple[int, int], Tensor] = field(default_factory=dict)
    smoothed: Tensor | None = None
    stop_ids: Ids = ()

    def __post_init__(self) -> None:
        self.weighs = self.success if self.smoothed is None else self.smoothed
        self._outcomes = Resident(outcomes(self.matcher, self.stop_ids))
        vocab_size = self.matcher.automaton.vocab_size
        self._moves = torch.tensor(list(self.by_token), dtype=torch.long).reshape(-1, 2)
        self._token_residual = Resident(torch.stack([torch.zeros(vocab_size).double(), *self.by_token.values()])[1:])
        self._after: tuple[int, Tensor] | None = None
        self._log_after: tuple[Tensor, Tensor] | None = None

    def checked(self, source: CompletionDistribution) -> LookAhead:
        """The same for a completion with its own stop tokens; raises ``InputError`` unless it reaches as far, and for
        other stop strings than those that were foreseen."""
        foreseen = stop_strings_of(self.matcher)
        if foreseen is not None and foreseen != getattr(source.stop_ids, "text", None):
            raise InputError(
                f"this LookAhead foresees that {', '.join(map(repr, foreseen.strings))} ends a text, and here it does "
                f"not: make it with the stop= of the completion"
            )
        needed = (source.max_new_tokens + 1, self.matcher.automaton.num_states)
        if self.success.shape[0] < needed[0] or self.success.shape[1:] != needed[1:]:
            raise InputError(
                f"this LookAhead has success of shape {list(self.success.shape)}, but the completion needs "
                f"{list(needed)} (tokens left, states)"
            )
        return self if self.stop_ids == source.stop_ids else replace(self, stop_ids=source.stop_ids)

    @property
    def constraint(self) -> AutomatonMatcher:
        return self.matcher.inside if isinstance(self.matcher, StoppingMatcher) else self.matcher

    def now(self, prefixes: Sequence[Ids], left: int) -> Tensor:
        """log psi+ of prefixes of at least one token with ``left`` tokens to come, ``[m]`` nats on the host."""
        states, last = self.matcher.states(prefixes), torch.tensor([prefix[-1] for prefix in prefixes])
        gain = self._gain(self.weighs, left)[states]
        psi = self.weighs[left, states] + (gain * self._token_residual.host[:, last].T).sum(-1)
        return self._bounded(psi, states, self.weighs[left], left, CPU).log()

    def then(self, prefixes: Sequence[Ids], left: int, device: torch.device = CPU) -> Tensor:
        """log psi after each next token, when ``left`` more may follow, ``[m, V]`` float32 on the device."""
        after = self.after(left, device)
        if self._log_after is None or self._log_after[0] is not after:
            self._log_after = after, after.log()  # one row for each state, of which each prefix copies one
        return self._log_after[1][upload(self.matcher.states(prefixes), device)]

    def after(self, left: int, device: torch.device = CPU) -> Tensor:
        """psi_l(state after v, v) in each state, ``[S, V]`` float32 on the device; of an end: is it a good one?"""
        if self._after is None or self._after[0] != left or self._after[1].device != device:
            running = self.table(left, device)
            good, bad = torch.ones_like(running[:1]), torch.zeros_like(running[:1])
            self._after = left, torch.cat([running, good, bad]).gather(0, self._outcomes.on(device)).float()
        return self._after[1]

    def table(self, left: int, device: torch.device = CPU) -> Tensor:
        """psi_l(s, v), ``[S, V]``; 0 exactly where no success is possible."""
        states = torch.arange(self.matcher.automaton.num_states)
        usual = upload(self.success[left], device)[:, None]
        psi = usual + upload(self._gain(self.success, left), device) @ self._token_residual.on(device)
        return self._bounded(psi, states[:, None], self.success[left], left, device)

    def _gain(self, success: Tensor, left: int) -> Tensor:
        """What the k-th move of ``by_token``, s -> s', is worth: psi_{l-1}(s') in the row of s, ``[S, K]``."""
        gain = torch.zeros(self.matcher.automaton.num_states, len(self._moves), dtype=torch.float64)
        if left > 0:
            source, target = self._moves.unbind(-1)
            gain[source, torch.arange(len(source))] = worth(success[left - 1])[target]
        return gain

    def _bounded(self, psi: Tensor, states: Tensor, usual: Tensor, left: int, device: torch.device) -> Tensor:
        """Within (0, 1] where success is possible, and then not much less than is usual [S] at the start."""
        floor = max(FLOOR, RELATIVE_FLOOR * float(usual[self.matcher.automaton.start]))
        possible = upload(self.matcher.distance[states] <= left, device)
        return torch.where(possible, psi.clamp(floor, 1.0), 0.0)


def worth(psi: Tensor) -> Tensor:
    """What each outcome is worth, ``[S + 1]``: psi of a state [S]; a good end is success."""
    return torch.cat([psi, psi.new_ones(1)])


def look_ahead(
    lm: LM,
    constraint: Constraint,
    prompt: Any = "",
    max_new_tokens: int = 32,
    *,
    num_pool: int = 64,
    seed: int = 0,
    **declared: Any,
) -> Twist:
    """Learn psi once, to be used by many runs: ``SMC(twist=look_ahead(lm, Contains("word"), prompt, 24))``.

    Arguments as of ``completion``, ``temperature``, ``top_k``, ``top_p`` and ``stop`` included. Of a conjunction each
    part looks ahead that can. Raises ``InputError`` where none can: a schema, a grammar, a pattern whose automaton is
    too large."""
    source = lm.completion(prompt, max_new_tokens, **declared)
    matcher = compiled(constraint, goes_on_from(lm, source.prompts))
    with isolated(mix(seed, "lookahead")):
        looks = [look for part in matcher.parts if (look := learned(source, part, num_pool, whole=True)) is not None]
    if not looks:
        reasons = [part.too_large for part in matcher.parts if part.too_large]
        raise InputError(f"{constraint!r} cannot look ahead: {' and '.join(reasons) or f'only {CAN} can'}")
    return looks[0] if len(looks) == 1 else Sum(looks)


CAN = "Contains, EndsWith, AcceptedBy, Regex or LengthLimit"


def learned(source: CompletionDistribution, matcher: Matcher, num_pool: int, whole: bool = False) -> Twist | None:
    """psi of what can look ahead; None of anything else. ``whole``: the pool is drawn, whether it is needed or not."""
    if isinstance(matcher, AutomatonMatcher):
        return learn(source, matcher, num_pool)
    if not matcher.can_foresee:
        return None
    if not source.lm.steps:
        raise InputError(source.lm.cannot_step("looking ahead"))
    foreseen = matcher.foreseen()
    if foreseen is None:
        return None
    found = learn_contexts(source, matcher, foreseen, num_pool, whole)
    return Sum([]) if found is None else found  # it was asked, and has nothing to add to its mask


def learn(source: CompletionDistribution, matcher: AutomatonMatcher, num_pool: int) -> LookAhead:
    """psi from ``num_pool`` draws; spends at most ``num_pool * T`` LM tokens."""
    if not source.lm.steps:
        raise InputError(source.lm.cannot_step("looking ahead"))
    matcher = with_stop_strings(matcher, source.stop_ids)
    moves = observe(source, matcher, num_pool)
    psi, smoothed = ([matcher.automaton.accepting.double()] for _ in range(2))
    for _ in range(source.max_new_tokens):
        psi.append(moves.mean @ worth(psi[-1]))
        smoothed.append(moves.smoothed @ worth(smoothed[-1]))
    features, by_token = source.lm.token_features, {}
    gain, usual = moves.mean * worth(psi[-1]), psi[-1][:, None]
    for state, target in ((gain > SHARE * usual) & (worth(psi[-1]) > 2 * usual)).nonzero().tolist():
        token_residual = None if features is None else moves.token_residual(state, target, features)
        if token_residual is not None:
            by_token[state, target] = token_residual
    return LookAhead(matcher, torch.stack(psi), by_token, torch.stack(smoothed), source.stop_ids)


def _remark(text: str) -> Callable[[], str]:
    """Said once, when the run has ended."""
    return lambda: text


class LearnedLookAhead(Twist):
    """The twist ``"lookahead"``: psi is learned by ``num_pool`` draws, for each constraint that can look ahead."""

    only_once = True

    def __init__(self, num_pool: int = 64) -> None:
        self.num_pool = num_pool

    def at(self, scene: Scene) -> Twist | None:
        matchers = [] if scene.restriction is None else scene.restriction.matchers
        source, parts = scene.site.fn, [part for matcher in matchers for part in matcher.parts]
        looks = [look for part in parts if (look := learned(source, part, self.num_pool)) is not None]
        for reason in {part.too_large for part in parts if part.too_large}:
            text = f'twist="lookahead": {reason}, its masks alone steer'
            on_run_end(("lookahead", reason), partial(_remark, text))
        at_site = [AtSite(one, source.max_new_tokens) if isinstance(one, SiteLookAhead) else one for one in looks]
        return Sum(at_site) if at_site else None
