"""Small programs with exact answers, one for each thing a program may contain.

Every likelihood is asymmetric and no two tokens are alike: a symmetric toy hides sign bugs. All supports can be listed
(at most a few hundred assignments), the prior covers the posterior well, and rewards say how large they can get.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_align.lm import CallableLM, MarkovLM
from ppl_align.program import choose, completion, reward


def markov(vocab: int = 3, eos_id: int | None = 2, seed: int = 0, positions: int | None = None) -> MarkovLM:
    """A random Markov chain, with one table for all positions or one for each."""
    generator = torch.Generator().manual_seed(seed)
    shape = (vocab, vocab) if positions is None else (positions, vocab, vocab)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    initial = torch.randn(vocab, generator=generator, dtype=torch.float64)
    return MarkovLM(logits, initial, eos_id=eos_id)


def long_memory(vocab: int = 3, eos_id: int | None = None) -> CallableLM:
    """Logits that depend on the whole prefix, prompt included."""

    def fn(prefix: Tensor) -> Tensor:
        weight = torch.arange(1, prefix.shape[1] + 1, dtype=torch.float64)
        state = (prefix.double() * weight).sum(-1)
        return torch.stack([torch.sin(state * (v + 1) + v) * 1.3 for v in range(vocab)], -1)

    return CallableLM(vocab, fn, eos_id=eos_id)


EOS, FIXED, MEMORY = markov(), markov(eos_id=None, seed=1), long_memory()
LADDER = torch.tensor([0.0, 0.9, -0.7], dtype=torch.float64)
STEP = 0.9  # the largest step of the ladder: count_score of T tokens is at most T * STEP


def count_score(tokens: Tensor) -> Tensor:
    """A sum over tokens, defined on prefixes as well."""
    return LADDER[tokens].sum(-1)


def with_eos() -> None:
    """Completions of random length: EOS counts, padding does not."""
    x = completion("x", EOS, [], max_new_tokens=4)
    reward("r", lambda t: 0.8 * (t == 1).sum(-1) + 0.3 * (t == 0).sum(-1), x.tokens, beta=0.7, upper=3.2)


def fixed_length() -> None:
    """No EOS: every completion has the same length."""
    x = completion("x", FIXED, [0], max_new_tokens=4)
    reward("r", count_score, x.tokens, beta=0.6, upper=4 * STEP)


def whole_prefix() -> None:
    """An LM that remembers all of the prefix and the prompt: the network's rows must follow their particles."""
    x = completion("x", MEMORY, [1, 2], max_new_tokens=4)
    reward("r", count_score, x.tokens, beta=0.8, weight=1.3, upper=4 * STEP)


def upstream_latent() -> None:
    """A latent that the prompt depends on, tied to the completion by a raw factor."""
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
    x = completion("x", FIXED, torch.stack([z, torch.ones_like(z)], -1), max_new_tokens=3)
    reward("r", count_score, x.tokens, beta=0.7, upper=3 * STEP)
    pyro.factor("tie", 0.4 * (z == x.tokens[..., 0]).double())


def downstream_latent() -> None:
    """A latent whose prior depends on the completion: it must not be drawn on unfinished text."""
    x = completion("x", EOS, [], max_new_tokens=3)
    p = torch.sigmoid(0.9 * (x.tokens == 1).sum(-1) - 0.5)
    z = pyro.sample("z", dist.Bernoulli(p))
    pyro.factor("f", 1.1 * z - 0.2 * (x.tokens == 0).sum(-1))


def observed_ending() -> None:
    """Infilling: the likelihood is the LM's own score of what comes next, as a prefix."""
    middle = completion("middle", EOS, [0], max_new_tokens=3)
    completion("ending", EOS, ([0], middle), starts_with=[1, 0])


def observed_exactly() -> None:
    """An observed completion that ends there: its EOS is part of the likelihood."""
    x = completion("x", FIXED, [1], max_new_tokens=3)
    completion("y", EOS, ([2], x), obs=[0, 1])


def two_completions() -> None:
    """A completion that continues another one, a reward after each."""
    first = completion("first", EOS, [], max_new_tokens=3)
    reward("a", lambda t: 0.7 * (t == 1).sum(-1), first.tokens, upper=2.1)
    second = completion("second", FIXED, ([0], first), max_new_tokens=2)
    reward("b", count_score, second.tokens, beta=0.9, upper=2 * STEP)


def two_rewards() -> None:
    """Two rewards of one completion, one of negative weight: it is bounded by its lower end."""
    x = completion("x", MEMORY, [0], max_new_tokens=3)
    reward("a", count_score, x.tokens, beta=1.5, upper=3 * STEP)
    reward("b", lambda t: (t[..., 0] == 2).double(), x.tokens, beta=0.5, weight=-0.6, lower=0.0)


def hard_rejection() -> None:
    """A reward of -inf for most completions, which says nothing about unfinished ones."""
    x = completion("x", FIXED, [0], max_new_tokens=3)
    reward("has a 2", lambda t: torch.where((t == 2).any(-1), 0.0, -torch.inf), x.tokens, upper=0.0)
    reward("r", count_score, x.tokens, beta=1.2, upper=3 * STEP)


def tempered() -> None:
    """A prior at another temperature than 1."""
    x = completion("x", EOS, [], max_new_tokens=3, temperature=0.7)
    reward("r", lambda t: 0.6 * (t == 1).sum(-1), x.tokens, upper=1.8)


def nucleus() -> None:
    """A prior cut by top-p, prefix by prefix."""
    x = completion("x", MEMORY, [0], max_new_tokens=3, top_p=0.8)
    reward("r", count_score, x.tokens, beta=0.8, upper=3 * STEP)


def truncated() -> None:
    """A prior cut by top-k, and a stop token where there is no EOS."""
    x = completion("x", FIXED, [2], max_new_tokens=3, top_k=2, stop=1)
    reward("r", count_score, x.tokens, beta=0.8, upper=3 * STEP)


def raw_pyro() -> None:
    """Plain Pyro statements throughout: no helper of this library, an observed Gaussian."""
    x = pyro.sample("x", EOS.completion([], 3))
    pyro.factor("f", 0.9 * (x == 1).sum(-1))
    pyro.sample("y", dist.Normal((x == 0).sum(-1).double(), 1.0), obs=torch.tensor(1.3))


def plated() -> None:
    """Two completions in a plate, tied by a factor outside of it."""
    with pyro.plate("pair", 2):
        x = completion("x", FIXED, [[0], [1]], max_new_tokens=2)
    pyro.factor("same", 0.8 * (x.tokens[..., 0, 0] == x.tokens[..., 1, 0]).double()[..., None])
    with pyro.plate("pair again", 2):
        reward("r", count_score, x.tokens, beta=0.9, upper=2 * STEP)


def text_reward() -> None:
    """A reward of texts, and a prompt in words that a latent chooses."""
    z = pyro.sample("style", dist.Categorical(torch.tensor([0.6, 0.4])))
    x = completion("x", FIXED, choose(z, ["0 1", "2"]), max_new_tokens=3)
    reward("ones", lambda texts: [0.5 * text.count("1") for text in texts], x, beta=0.6, upper=1.5)


PROGRAMS: dict[str, Callable[[], Any]] = {
    program.__name__: program
    for program in (
        with_eos,
        fixed_length,
        whole_prefix,
        upstream_latent,
        downstream_latent,
        observed_ending,
        observed_exactly,
        two_completions,
        two_rewards,
        hard_rejection,
        tempered,
        nucleus,
        truncated,
        raw_pyro,
        plated,
        text_reward,
    )
}
"""By name: what :func:`ppl_align.testing.check_engine` holds an engine to."""
