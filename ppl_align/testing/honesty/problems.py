"""Random targets of known truth: Markov priors, graded and rare rewards, at any distance from the prior.

Truth comes from recursions of its own in numpy, which share no code with the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ppl_align.lm.toys import MarkovLM
from ppl_align.program import completion, reward
from ppl_align.rewards.tokens import TokenSum

Kind = Literal["graded", "rare"]
KINDS: tuple[Kind, ...] = ("graded", "rare")
NEAREST, FARTHEST = 0.05, 20.0  # nats
SHORTEST, LONGEST = 6, 40  # tokens
_BISECTIONS = 60


@dataclass(frozen=True)
class Problem:
    """A Pyro program and the truth about it: ``log_z``, E[r] = ``mean``, E_p0[r] = ``prior_mean``, ``kl`` = KL(p*||p0).

    ``share``: effective draws to a draw of the prior, Z^2 / E_p0[w^2]."""

    kind: Kind
    seed: int
    model: Callable[[], None]
    log_z: float
    mean: float
    prior_mean: float
    kl: float
    share: float
    bounded: bool


@dataclass
class _Chain:
    """A random Markov prior, and what else both kinds of reward need: ``step [V, V]``, ``eos``, ``length``."""

    seed: int
    rng: np.random.Generator
    lm: MarkovLM
    step: np.ndarray
    eos: int | None
    length: int
    bounded: bool
    short: bool

    def bounds(self, lower: float, upper: float) -> dict[str, Any]:
        """Declared by a third of the rewards, and where an engine cannot do without."""
        return {"upper": upper, "lower": lower} if self.bounded or self.short else {}


def problem(kind: Kind, seed: int, kl: float, *, longest: int = LONGEST, short: bool = False) -> Problem:
    """A random one whose posterior lies ``kl`` nats from the prior. ``longest``: tokens at most, six at least.

    ``short``: six tokens and a reward that few of them decide, for an engine that accepts or rejects."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    vocab, length = int(rng.integers(5, 21)), int(rng.integers(SHORTEST, longest + 1))
    table = 1.5 * rng.standard_normal((vocab, vocab))
    eos = 0 if rng.random() < 1 / 3 else None
    if eos is not None:
        table[:, eos] -= 1.5
    step = np.exp(table)
    step /= step.sum(1, keepdims=True)
    bounded = bool(rng.random() < 1 / 3)
    lm = MarkovLM(torch.tensor(table), eos_id=eos)
    chain = _Chain(seed, rng, lm, step, eos, SHORTEST if short else length, bounded, short)
    return _graded(chain, kl) if kind == "graded" else _rare(chain, kl)


def _graded(chain: _Chain, kl: float) -> Problem:
    """r = sum of values of tokens, normal or 0/1; short: of the first few tokens."""
    rng, vocab, length = chain.rng, len(chain.step), chain.length
    normal = chain.short or rng.random() < 0.5
    values = rng.standard_normal(vocab) if normal else (rng.random(vocab) < 0.3).astype(float)
    values[int(rng.integers(1, vocab))] += 0.5  # never a constant
    worth = np.tile(values, (length, 1))
    if chain.short:
        worth[np.abs(np.arange(length) - 2) > 1] = 0.0

    def facts(scale: float) -> tuple[float, float]:
        return _tilted(chain.step, worth, scale, chain.eos)

    scale = _bisect(lambda s: s * facts(s)[1] - facts(s)[0], kl, 1e-4, 200.0)
    (log_z, mean), (double, _), (_, before) = facts(scale), facts(2 * scale), facts(0.0)
    fn = TokenSum(torch.tensor(worth), terminal=() if chain.eos is None else (chain.eos,))
    upper, lower = np.maximum(worth.max(1), 0).sum(), np.minimum(worth.min(1), 0).sum()
    bounds = chain.bounds(float(lower), float(upper))

    def graded() -> None:
        x = completion("x", chain.lm, [1], max_new_tokens=length)
        reward("r", fn, x.tokens, beta=1 / scale, **bounds)

    share = math.exp(min(2 * log_z - double, 0.0))
    return Problem("graded", chain.seed, graded, log_z, mean, before, scale * mean - log_z, share, bool(bounds))


def _rare(chain: _Chain, kl: float) -> Problem:
    """r = 1 for texts that begin in one way, else 0. The beginning has the prior probability p."""
    rng, length, eos = chain.rng, chain.length, chain.eos
    low, high = (kl + 0.3, kl + 3) if kl > 1.5 else (math.log(5), math.log(1000))
    if chain.short:
        high = min(high, kl + 1.5 if kl > 1.5 else math.log(100))
    wanted = rng.uniform(low, high)
    path: list[int] = []
    log_p, state = 0.0, 1
    while log_p > -low and len(path) < length:
        steps = log_p + np.log(chain.step[state])
        steps[[] if eos is None else [eos]] = -np.inf
        last = not path or steps.min(where=np.isfinite(steps), initial=0.0) < -low
        state = int(np.argmin(np.abs(steps + wanted))) if last else int(rng.choice(np.argsort(-steps)[:3]))
        log_p = float(steps[state])
        path.append(state)
    p = math.exp(log_p)

    def facts(scale: float) -> tuple[float, float]:
        log_z = float(np.logaddexp(math.log1p(-p), log_p + scale))
        return log_z, math.exp(log_p + scale - log_z)

    scale = _bisect(lambda s: s * facts(s)[1] - facts(s)[0], min(kl, -log_p - 0.05), 1e-4, 200.0)
    log_z, mean = facts(scale)
    begins = torch.tensor(path)
    bounds = chain.bounds(0.0, 1.0)

    def hit(tokens: torch.Tensor) -> torch.Tensor:
        if tokens.shape[-1] < len(begins):
            return torch.zeros(tokens.shape[:-1], dtype=torch.float64)
        return (tokens[..., : len(begins)] == begins).all(-1).double()

    def rare() -> None:
        x = completion("x", chain.lm, [1], max_new_tokens=length)
        reward("r", hit, x.tokens, beta=1 / scale, **bounds)

    share = math.exp(2 * log_z - facts(2 * scale)[0])
    return Problem("rare", chain.seed, rare, log_z, mean, p, scale * mean - log_z, share, bool(bounds))


def _tilted(chain: np.ndarray, worth: np.ndarray, scale: float, eos: int | None) -> tuple[float, float]:
    """``(log E_p0[exp(scale r)], its derivative = E[r])`` from the prompt's last token, 1."""
    here, moved = np.zeros(len(chain)), np.zeros(len(chain))
    here[1] = 1.0
    done, done_moved, log_total = 0.0, 0.0, 0.0
    for values in worth:
        step = chain * np.exp(scale * values)
        here, moved = here @ step, moved @ step + (here @ step) * values
        if eos is not None:
            done, done_moved = done + here[eos], done_moved + moved[eos]
            here[eos] = moved[eos] = 0.0
        total = here.sum() + done
        here, moved, done, done_moved = here / total, moved / total, done / total, done_moved / total
        log_total += math.log(total)
    return log_total, float(moved.sum() + done_moved)


def _bisect(f: Callable[[float], float], goal: float, low: float, high: float) -> float:
    """Where a growing function reaches ``goal``."""
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if f(middle) < goal else (low, middle)
    return math.sqrt(low * high)
