"""What dynamic programming needs to know about a Pyro program, read by running it; everything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_align.core.errors import ModelError
from ppl_align.core.seeds import isolated
from ppl_align.lm import MarkovLM
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.particles.particles import Particles
from ppl_align.program import Program
from ppl_align.program.notes import notes_of
from ppl_align.program.plates import PARTICLES
from ppl_align.program.record import Record
from ppl_align.rewards.accepts import Accepts
from ppl_align.rewards.tokens import LastToken, TokenSum

TokenReward = TokenSum | LastToken | Accepts
_ROWS = 7  # arbitrary token sequences that the program is run on to see its sites


class ChainProgram(NamedTuple):
    """One completion ``site`` over a Markov chain, and by name ``(function, weight / beta)`` of each reward."""

    program: Program
    site: str
    source: CompletionDistribution
    rewards: dict[str, tuple[TokenReward, float]]


def read(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChainProgram:
    """Run the program on a few arbitrary sequences and note its sites. Raises ``ModelError`` for what is no chain."""
    with isolated(0):
        program = Program(model, args, kwargs)
        pending = program.run(Particles(_ROWS), draw=False).pending
        if pending is None:
            raise ModelError("ChainOracle needs a program with one completion, this one has none")
        if not pending.is_completion:
            raise _refuse(pending.name, "is a latent: only one completion may be random")
        source = _checked_source(pending.name, pending.fn)
        tokens = torch.randint(source.lm.vocab_size, (_ROWS, source.max_new_tokens))
        tokens = torch.where(source.ended_before(tokens), source.pad_id, tokens)
    return ChainProgram(program, pending.name, source, run_on(program, pending.name, source, tokens))


def run_on(
    program: Program, site: str, source: CompletionDistribution, tokens: Tensor
) -> dict[str, tuple[TokenReward, float]]:
    """The rewards of the program, after checking that they say of ``tokens [P, T]`` what their functions say."""
    with isolated(0), Record() as record:
        pending = program.run(Particles(len(tokens), {site: tokens}), draw=False).pending
    if pending is not None:
        what = "is a second completion" if pending.is_completion else "is a latent"
        raise _refuse(pending.name, f"{what}: only one completion may be random")
    rewards = {}
    for name, msg in record.nodes.items():
        if not msg["is_observed"]:
            continue
        notes = notes_of(msg)
        fn, scale = notes.fn, notes.scale
        if fn is None or scale is None:
            kind = "an observed site or a factor" if notes.reward is None else "a reward"
            raise _refuse(name, f"is {kind}: only rewards of tokens are answered exactly")
        if not isinstance(fn, TokenReward):
            known = "TokenSum, LastToken or Accepts"
            raise _refuse(name, f"asks {getattr(fn, '__name__', type(fn).__name__)}: give reward() one of {known}")
        plates = [frame for frame in msg["cond_indep_stack"] if frame.name != PARTICLES]
        if isinstance(msg["scale"], Tensor) or msg["scale"] != 1 or msg["mask"] is not None or plates:
            raise _refuse(name, "is inside a plate, poutine.scale or mask: write it outside")
        _check_reward(name, fn, source)
        if not torch.equal(torch.as_tensor(notes.reward), fn(tokens)):
            raise _refuse(name, f"does not read the tokens of {site!r} as they are: give reward() x.tokens")
        rewards[name] = (fn, _one_scale(name, scale))
    return rewards


def _checked_source(name: str, source: CompletionDistribution) -> CompletionDistribution:
    """The distribution of one completion, without a batch."""
    lm = source.lm
    if type(lm) is not MarkovLM:
        raise _refuse(name, f"is written by {lm.name}, a {type(lm).__name__}: only a MarkovLM can be summed exactly")
    if source.terminal.text is not None:
        raise _refuse(name, "ends at a string that several tokens may spell: give stop= token ids")
    used = source.index.unique().tolist()
    if len(source.batch_shape) != 1 or len(used) != 1:
        raise _refuse(name, "is a batch of completions (a plate or several prompts): give it one prompt")
    if lm.log_table.dim() == 3 and source.max_new_tokens > len(lm.log_table):
        raise _refuse(name, f"asks for more tokens than {lm.name} has positions ({len(lm.log_table)})")
    return source.with_index(torch.tensor(used[0]))


def _check_reward(name: str, fn: TokenReward, source: CompletionDistribution) -> None:
    vocab = fn.automaton.vocab_size if isinstance(fn, Accepts) else fn.values.shape[-1]
    if vocab != source.lm.vocab_size:
        raise _refuse(name, f"is over {vocab} tokens, {source.lm.name} has {source.lm.vocab_size}")
    if fn.terminal != source.terminal:
        raise _refuse(name, f"has terminal={fn.terminal}, the completion ends at {source.terminal}: make them equal")


def _one_scale(name: str, scale: float | Tensor) -> float:
    """weight / beta, where it is the same for all texts."""
    values = torch.as_tensor(scale, dtype=torch.float64).reshape(-1)
    if bool((values != values[0]).any()):
        raise _refuse(name, "has a weight or beta that differs from text to text: give it a number")
    return float(values[0])


def _refuse(name: str, why: str) -> ModelError:
    return ModelError(f"ChainOracle: site {name!r} {why}")
