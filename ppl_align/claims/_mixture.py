"""Familiar texts and strange ones, and a reward model that was trained on the familiar: an example with exact answers.

    kind       prior   gold reward   score of the reward model, given gold
    familiar    .9     N( 0, 1)      N(gold, .5^2)
    strange     .1     N(-2, 1)      N(gold,  3^2)

Nothing about a text matters but its kind and its score, so a text is one token: the score on a fine grid. Sums of
Gaussians over such a grid agree with their integrals to rounding (the trapezoid rule converges geometrically).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pyro
import pyro.distributions as dist
import torch
from scipy.optimize import brentq
from torch import Tensor

from ppl_align import LM, CallableLM, completion, reward
from ppl_align.claims._toys import spot
from ppl_align.testing.oracle import Oracle

SHARE = torch.tensor([0.9, 0.1], dtype=torch.float64)
MEAN = torch.tensor([0.0, -2.0], dtype=torch.float64)
SCORES = torch.arange(-400, 600, dtype=torch.float64) / 10


@dataclass(frozen=True)
class Judge:
    """A reward model: ``scored(kind, score)`` adds its error, ``gold_mean`` is what can be known of gold from that."""

    strange: float = 3.0
    familiar: float = 0.5

    @property
    def error(self) -> Tensor:
        """Standard deviation of score given gold, by kind, [2]."""
        return torch.tensor([self.familiar, self.strange], dtype=torch.float64)

    def gold_mean(self, kind: Tensor, score: Tensor) -> Tensor:
        """E[gold | kind, score]: the score, shrunk towards the mean of its kind."""
        return MEAN[kind] + (score - MEAN[kind]) / (1 + self.error[kind] ** 2)

    def gold_sd(self, kind: Tensor) -> Tensor:
        """The standard deviation of gold given kind and score."""
        return self.error[kind] / (1 + self.error[kind] ** 2).sqrt()


JUDGE = Judge()
Reading = Callable[[Tensor, Tensor], Tensor]
"""``(kind [...], score [...]) -> r [...]``: what is made of the judge's score."""
Potential = Callable[[float], Tensor]
"""``1 / beta -> log w [S]``"""


def raw(kind: Tensor, score: Tensor) -> Tensor:
    """The score as it is."""
    return score


@cache
def writer(judge: Judge) -> LM:
    """Prompted with a kind (0 or 1), writes a text: the index of its score."""

    def logits(prompt: Tensor) -> Tensor:
        kind = prompt[:, -1:]
        return -((SCORES - MEAN[kind]) ** 2) / (2 * (1 + judge.error[kind] ** 2))

    return CallableLM(len(SCORES), logits, name="writer")


def write(judge: Judge) -> tuple[Tensor, Tensor]:
    """A text of either kind; returns its kind and its score."""
    kind = pyro.sample("kind", dist.Categorical(SHARE))
    text = completion("text", writer(judge), kind[..., None], max_new_tokens=1)
    return kind, SCORES[text.tokens[..., 0]]


def answer(beta: float, reading: Reading = raw, judge: Judge = JUDGE) -> None:
    """A text, tilted towards what the reward model likes."""
    kind, score = write(judge)
    reward("proxy", lambda score: reading(kind, score), score, beta=beta)


def graded(beta: float, reading: Reading = raw, judge: Judge = JUDGE) -> None:
    """The same without a grid, for engines that draw, and with the gold reward as a site."""
    kind = pyro.sample("kind", dist.Categorical(SHARE))
    gold = pyro.sample("gold", dist.Normal(MEAN[kind], 1.0))
    score = pyro.sample("score", dist.Normal(gold, judge.error[kind]))
    reward("proxy", lambda score: reading(kind, score), score, beta=beta)


class Support:
    """Every text: ``kind``, ``score``, ``gold`` = E[gold | kind, score] and ``log_prior``, [S]."""

    def __init__(self, judge: Judge = JUDGE) -> None:
        oracle = Oracle(answer, 1.0, raw, judge)
        self.kind, self.score, self.log_prior = oracle.values["kind"], oracle.rewards["proxy"], oracle.log_prior
        self.gold = judge.gold_mean(self.kind, self.score)

    def tilted(self, potential: Tensor) -> Tensor:
        """log q [S], q ∝ p0 exp(potential)."""
        return (self.log_prior + potential).log_softmax(0)

    def seen(self, potential: Tensor) -> tuple[float, float]:
        """KL(q||p0) in nats and E_q[gold]."""
        return spot(self.tilted(potential), self.log_prior, self.gold)

    def at_kl(self, potential: Potential, kl: float, high: float = 20.0) -> float:
        """The 1 / beta whose policy is ``kl`` nats from the prior, below ``high``; the KL has to grow with it."""
        return float(brentq(lambda k: self.seen(potential(k))[0] - kl, 0.0, high, xtol=1e-14))


def closed_form(scale: float, slope: Tensor, variance: Tensor, bonus: Tensor | float = 0.0) -> tuple[float, float]:
    """KL(q||p0) and E_q[gold] of q ∝ p0 exp(scale r + bonus), without a grid.

    Within a kind r is Gaussian with the kind's mean and ``variance`` [2], and gold rises by ``slope`` [2] for each unit
    of ``scale``. Then q is again a mixture: the Gaussians are shifted, at a KL of scale^2 variance / 2, and the kinds
    reweighed by their moment generating functions."""
    log_share = (SHARE.log() + scale * MEAN + scale**2 * variance / 2 + bonus).log_softmax(0)
    share, shift, gold = log_share.exp(), scale**2 * variance / 2, MEAN + scale * slope.double()
    return float((share * (log_share - SHARE.log() + shift)).sum()), float((share * gold).sum())
