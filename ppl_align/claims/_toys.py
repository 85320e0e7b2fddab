"""Language models and programs small enough to list everything they can write, with words one can read."""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from torch import Tensor

from ppl_align import CallableLM, MarkovLM, completion, reward
from ppl_align.testing.oracle import kl_divergence

WORDS = (".", " fine", " dull", " very")


def _critic() -> MarkovLM:
    """P(next | previous); the full stop ends the review, so its own row is never read."""
    start = [0.05, 0.35, 0.40, 0.20]
    after = [[1.0, 1.0, 1.0, 1.0], [0.60, 0.05, 0.15, 0.20], [0.70, 0.10, 0.05, 0.15], [0.02, 0.30, 0.50, 0.18]]
    chances = torch.tensor([start, *after], dtype=torch.float64)
    return MarkovLM(chances[1:].log(), chances[0].log(), eos_id=0, tokens=WORDS, name="critic")


def _rambler(prefix: Tensor) -> Tensor:
    """Logits that depend on every token so far: no two prefixes are alike."""
    state = (prefix.double() * torch.arange(1, prefix.shape[1] + 1, dtype=torch.float64)).sum(-1)
    return torch.stack([1.3 * torch.sin(state * (v + 1) + v) for v in range(3)], -1)


CRITIC = _critic()
"""Film reviews of a few words that end with a full stop (EOS)."""
RAMBLER = CallableLM(3, _rambler, name="rambler")
"""Three tokens, no EOS: completions have a fixed length."""
COIN = CallableLM(2, lambda prefix: torch.zeros(len(prefix), 2, dtype=torch.float64), name="coin")


def speaker(p: Tensor) -> MarkovLM:
    """A language model that says one word, word v with probability ``p[v]``."""
    return MarkovLM(torch.zeros(len(p), len(p), dtype=torch.float64), initial=p.log())


def praise(texts: list[str]) -> list[float]:
    """+1 for each "fine", -1 for each "dull"; "very" doubles what it precedes."""
    return [1.0 * (t.count("fine") + t.count("very fine")) - (t.count("dull") + t.count("very dull")) for t in texts]


def pattern(tokens: Tensor) -> Tensor:
    """A reward of ids [..., t] that is not a sum over tokens: ones pay, a two pays once it follows a zero."""
    pairs = (tokens[..., :-1] == 0) & (tokens[..., 1:] == 2)
    return 0.6 * (tokens == 1).double().sum(-1) + 1.5 * pairs.double().sum(-1) - 0.4 * (tokens == 2).double().sum(-1)


def review(beta: float = 1.0, length: int = 4) -> None:
    """A film review of at most ``length`` words, tilted towards praise; many reviews tie."""
    text = completion("text", CRITIC, "", max_new_tokens=length)
    reward("r", praise, text, beta=beta)


def ramble(beta: float = 1.0, length: int = 4) -> None:
    """So many tokens after a prompt, with a reward that looks at pairs of them and has many values."""
    x = completion("text", RAMBLER, [2], max_new_tokens=length)
    reward("r", pattern, x.tokens, beta=beta)


def matched(kl: float, r: Tensor, log_prior: Tensor) -> tuple[float, Tensor]:
    """The posterior p0 exp(r/beta)/Z with KL(p*||p0) = kl: its beta and its log p* [S]."""

    def tilted(scale: float) -> Tensor:
        return (log_prior + scale * (r - r.max())).log_softmax(0)

    scale = brentq(lambda s: float(kl_divergence(tilted(s), log_prior)) - kl, 0.0, 1e3, xtol=1e-14, rtol=1e-14)
    return 1 / scale, tilted(scale)


def spot(log_q: Tensor, log_prior: Tensor, r: Tensor) -> tuple[float, float]:
    """Where a law lies: KL(q||p0) in nats, and E_q[r]."""
    return float(kl_divergence(log_q, log_prior)), float((log_q.exp() * r).sum())


def jensen_shannon(log_q: Tensor, log_p: Tensor) -> Tensor:
    """(KL(q||m) + KL(p||m)) / 2, m = (q + p)/2, nats."""
    middle = torch.logaddexp(log_q, log_p) - math.log(2)
    return (kl_divergence(log_q, middle) + kl_divergence(log_p, middle)) / 2
