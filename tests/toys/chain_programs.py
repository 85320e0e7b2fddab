"""Programs that dynamic programming answers, and programs that it must refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ppl_align import CallableLM, MarkovLM, completion, reward
from ppl_align.rewards import Accepts, Automaton, LastToken, TokenSum
from toys.lms import chain

steep = partial(chain, scale=1.3, initial=1.0)
EOS, FIXED = steep(3, 0, eos_id=2), steep(4, 1)
PLACED, PLACED_EOS = steep(3, 2, positions=5), steep(4, 3, eos_id=3, positions=4)
NAMED = steep(4, 4, eos_id=3, tokens=["a", "b", "ab", "$"])
EVEN = Automaton(torch.tensor([[1] * 4, [0] * 4]), 0, torch.tensor([True, False]))  # padding would be counted too
THREE, FOUR = torch.tensor([0.3, 0.9, -0.7]), torch.tensor([0.4, -1.1, 0.8, 0.2])
SIX_BY_FOUR = torch.randn(6, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def eos() -> None:
    x = completion("x", EOS, [], max_new_tokens=5)
    reward("sum", TokenSum(THREE, 2), x.tokens, beta=0.7)


def fixed_length() -> None:
    x = completion("x", FIXED, [0, 2], max_new_tokens=4)
    reward("sum", TokenSum(SIX_BY_FOUR), x.tokens, beta=0.6)
    reward("last", LastToken(FOUR), x.tokens, weight=-1.4)


def stop_token() -> None:
    x = completion("x", FIXED, [3], max_new_tokens=4, stop=[1, 2])
    reward("sum", TokenSum(FOUR, (1, 2)), x.tokens, beta=0.5)
    reward("last", LastToken(FOUR, (2, 1)), x.tokens, beta=0.8)


def stop_and_eos() -> None:
    x = completion("x", steep(4, 6, eos_id=3), [], max_new_tokens=4, stop=0)
    reward("last", LastToken(FOUR, (0, 3)), x.tokens, beta=0.4)
    reward("has", Accepts(Automaton.contains([1, 0], 4), reject=-1.2, terminal=(0, 3)), x.tokens, beta=0.9)
    reward("even", Accepts(EVEN, reject=-0.7, terminal=(0, 3)), x.tokens)


def placed() -> None:
    x = completion("x", PLACED, [], max_new_tokens=5)
    reward("sum", TokenSum(THREE), x.tokens, beta=0.4)


def placed_after_a_prompt() -> None:
    x = completion("x", PLACED_EOS, [1, 0], max_new_tokens=4)
    reward("sum", TokenSum(SIX_BY_FOUR, (3,)), x.tokens, beta=0.9)
    reward("has", Accepts(Automaton.contains([1, 1], 4), reject=-1.7, terminal=(3,)), x.tokens, beta=0.8)


def warped() -> None:
    x = completion("x", PLACED_EOS, [2], max_new_tokens=4, temperature=0.6, top_k=2)
    reward("sum", TokenSum(FOUR, 3), x.tokens, beta=0.3)


def nucleus() -> None:
    x = completion("x", FIXED, [], max_new_tokens=4, top_p=0.7)
    reward("sum", TokenSum(FOUR), x.tokens, beta=0.3)


def everything() -> None:
    x = completion("x", NAMED, "ab", max_new_tokens=5)
    reward("sum", TokenSum(FOUR, 3), x.tokens, beta=1.3, weight=0.7)
    reward("last", LastToken(FOUR, 3), x.tokens, beta=0.6)
    reward("no bb", Accepts(Automaton.regex("(a|ba)*b?", NAMED), reject=-2.5, terminal=(3,)), x.tokens, beta=2.0)
    reward("aab", Accepts(Automaton.contains_text("aab", NAMED), terminal=(3,)), x.tokens)
    reward("off", Accepts(Automaton.contains([0], 4), terminal=(3,)), x.tokens, weight=0.0)


def hard_pattern() -> None:
    x = completion("x", NAMED, [0], max_new_tokens=4)
    reward("match", Accepts(Automaton.regex("a+b(ab)?", NAMED), terminal=(3,)), x.tokens)


def forbidden_tokens() -> None:
    x = completion("x", FIXED, [0], max_new_tokens=4)
    reward("sum", TokenSum(torch.tensor([0.2, -math.inf, 0.5, 0.0])), x.tokens, beta=0.7)


def thousands_of_nats() -> None:
    """Weights that a shifted matrix product cannot hold: where the chain may go, all of them underflow."""
    logits = torch.tensor([[0.0, -1.0, -torch.inf], [0.5, 0.0, -torch.inf], [-torch.inf, -900.0, 0.0]]).double()
    x = completion("x", MarkovLM(logits, torch.tensor([0.0, -1.0, -2.0]).double()), [], max_new_tokens=4)
    reward("sum", TokenSum(torch.tensor([-1000.0, -1003.0, 700.0])), x.tokens)
    reward("last", LastToken(torch.tensor([0.5, 4000.0, 0.0])), x.tokens)


PROGRAMS: list[Callable[[], Any]] = [
    eos,
    fixed_length,
    stop_token,
    stop_and_eos,
    placed,
    placed_after_a_prompt,
    warped,
    nucleus,
    everything,
    hard_pattern,
    forbidden_tokens,
    thousands_of_nats,
]


# -- to be refused --------------------------------------------------------------------------------


def another_lm() -> None:
    completion("x", CallableLM(3, lambda prefix: torch.zeros(len(prefix), 3)), [0], max_new_tokens=2)


class OtherMarkov(MarkovLM):
    """Might say anything."""


def a_subclass() -> None:
    completion("x", OtherMarkov(torch.zeros(3, 3)), [0], max_new_tokens=2)


def a_text_reward() -> None:
    x = completion("x", EOS, [0], max_new_tokens=2)
    reward("ones", lambda texts: [text.count("1") for text in texts], x)


def another_function_of_tokens() -> None:
    x = completion("x", EOS, [0], max_new_tokens=2)
    reward("ones", lambda tokens: (tokens == 1).sum(-1), x.tokens)


def observed() -> None:
    completion("x", EOS, [0], max_new_tokens=2)
    completion("y", EOS, [0], obs=[1])


def a_factor() -> None:
    x = completion("x", EOS, [0], max_new_tokens=2)
    pyro.factor("tilt", 0.3 * (x.tokens == 1).sum(-1))


def two_completions() -> None:
    completion("x", EOS, [0], max_new_tokens=2)
    completion("y", EOS, [0], max_new_tokens=2)


def latent_before() -> None:
    pyro.sample("z", dist.Bernoulli(0.4))
    completion("x", EOS, [0], max_new_tokens=2)


def latent_after() -> None:
    completion("x", EOS, [0], max_new_tokens=2)
    pyro.sample("z", dist.Bernoulli(0.4))


def changed_tokens() -> None:
    x = completion("x", EOS, [0], max_new_tokens=3)
    reward("sum", TokenSum(THREE, 2), x.tokens[..., :2])


def rarely_changed_tokens() -> None:
    """On arbitrary sequences it looks right; on draws of the answer it does not."""
    x = completion("x", steep(40, 0), [0], max_new_tokens=6)
    contains = Accepts(Automaton.contains([1, 2, 3, 4, 5], 40))
    reward("has", contains, torch.where(contains(x.tokens).isneginf()[..., None], x.tokens, 0))


def other_terminal() -> None:
    x = completion("x", EOS, [0], max_new_tokens=3)
    reward("sum", TokenSum(THREE), x.tokens)


def other_vocabulary() -> None:
    x = completion("x", EOS, [0], max_new_tokens=3)
    reward("last", LastToken(FOUR, 2), x.tokens)


def in_a_plate() -> None:
    with pyro.plate("pair", 2):
        completion("x", EOS, [[0], [1]], max_new_tokens=2)


def several_prompts() -> None:
    completion("x", EOS, [[0], [1]], max_new_tokens=2)


def scaled() -> None:
    x = completion("x", EOS, [0], max_new_tokens=3)
    with pyro.poutine.scale(scale=0.5):
        reward("sum", TokenSum(THREE, 2), x.tokens)


def too_long() -> None:
    completion("x", PLACED, [0], max_new_tokens=6)


def infinite() -> None:
    x = completion("x", EOS, [0], max_new_tokens=3)
    reward("sum", LastToken(torch.tensor([0.0, -math.inf, 0.0]), 2), x.tokens, weight=-1.0)


REFUSED: dict[Callable[[], Any], str] = {
    another_lm: "'x'",
    a_subclass: "'x'",
    a_text_reward: "'ones'",
    another_function_of_tokens: "'ones'",
    observed: "'y'",
    a_factor: "'tilt'",
    two_completions: "'y'",
    latent_before: "'z'",
    latent_after: "'z'",
    changed_tokens: "'sum'",
    rarely_changed_tokens: "'has'",
    other_terminal: "'sum'",
    other_vocabulary: "'last'",
    in_a_plate: "'x'",
    several_prompts: "'x'",
    scaled: "'sum'",
    too_long: "'x'",
    infinite: "'sum'",
}
