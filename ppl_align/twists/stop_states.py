"""A constraint's automaton that also follows the strings which end a text: where one is met, nothing more comes.

Its states are pairs (of the constraint, of the stop strings). Looking ahead has to know the second: after " a" the text
may be over with " b", and what was still to come never will.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_align.constraints.automata import AutomatonMatcher
from ppl_align.lm.base import Ids
from ppl_align.lm.spelling import Machine
from ppl_align.lm.stopping import StopText
from ppl_align.tokens.automaton import Automaton


class StoppingMatcher(AutomatonMatcher):
    """``ends`` [S, V] bool: tokens that complete a stop string; they lead to a state that is never left, and that
    accepts where the constraint is met. ``inside``: the constraint's own matcher."""

    def __init__(self, inside: AutomatonMatcher, text: StopText) -> None:
        automaton, self.ends = _paired(inside.automaton, text)
        super().__init__(automaton, inside.eos_ids)
        self.inside, self.text = inside, text


def with_stop_strings(matcher: AutomatonMatcher, stop_ids: Sequence[int]) -> AutomatonMatcher:
    """The matcher itself where no string ends a text."""
    text = getattr(stop_ids, "text", None)
    return matcher if text is None else StoppingMatcher(matcher, text)


def stop_strings_of(matcher: AutomatonMatcher) -> StopText | None:
    """Those that a reader follows."""
    return matcher.text if isinstance(matcher, StoppingMatcher) else None


def ending_tokens(matcher: AutomatonMatcher, stop_ids: Ids) -> Tensor:
    """Tokens that end a text in each state, EOS apart, ``[S, V]`` bool."""
    automaton = matcher.automaton
    ends = torch.zeros(automaton.num_states, automaton.vocab_size, dtype=torch.bool)
    if isinstance(matcher, StoppingMatcher):
        ends |= matcher.ends
    ends[:, list(stop_ids)] = True
    return ends


def settled(automaton: Automaton) -> Tensor:
    """Accepting states that nothing leads out of, ``[S]`` bool."""
    home = torch.arange(automaton.num_states)
    return automaton.accepting & (automaton.transitions == home[:, None]).all(-1)


def _paired(automaton: Automaton, text: StopText) -> tuple[Automaton, Tensor]:
    """Pairs that a text can reach, and ``ends``. What has succeeded for good no longer looks at the strings."""
    moves, stops = automaton.transitions, torch.from_numpy(text.moves)
    count, size = len(stops), automaton.vocab_size
    home, succeeded = torch.arange(automaton.num_states), settled(automaton)
    to = moves[:, None, :] * count + stops[None]  # [S, K, V]
    to = torch.where(succeeded[moves][:, None, :], moves[:, None, :] * count + text.start, to)
    ends = (stops == text.end)[None].expand(len(moves), -1, -1) & ~succeeded[:, None, None]
    ends = ends.clone()
    ends[:, text.end] = False
    over = home[:, None] * count + text.end
    to = torch.where(ends, moves[:, None, :] * count + text.end, to)
    to[:, text.end] = over
    to, ends = to.reshape(-1, size), ends.reshape(-1, size)
    start = automaton.start * count + text.start
    accepting = automaton.accepting.repeat_interleave(count)
    machine = Machine(to.numpy(), start, accepting.numpy(), ends.numpy()).reachable()
    found = Automaton(torch.from_numpy(machine.moves), machine.start, torch.from_numpy(machine.accepting))
    return found, torch.from_numpy(machine.counts)
