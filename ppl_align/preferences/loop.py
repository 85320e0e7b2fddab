"""Frozen or refreshed: where the labels of a reward model are spent, round by round.

Every round tilts the *prior* by the reward as it is known then, further than the round before; the tilt is said in nats
of KL, so that arms are compared at the same distance. Then a judge compares pairs of texts, and the reward is learned
again from all comparisons so far. Three arms differ in the texts that are compared:

    frozen     none: the first reward is used to the end
    prior      draws of the prior: as many labels as the next, spent where the policy no longer is
    refreshed  draws of the current posterior: what is exploited is measured

A round starts from the prior and not from the round before: the target is p0 exp(r_new / beta). The prior is a pool of
its draws (or its whole support, with ``log_prior``), on which every posterior is a reweighting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ppl_align.core.errors import InputError
from ppl_align.core.seeds import generator
from ppl_align.core.validation import at_least, one_of
from ppl_align.preferences.features import Features, Remembered
from ppl_align.preferences.pairs import Pairs
from ppl_align.preferences.posterior import RewardPosterior

ARMS = ("frozen", "prior", "refreshed")
Judge = Callable[[Sequence[str]], Sequence[float]]
"""``judge(texts) -> gold rewards``: a text one unit above another is preferred with probability 0.73."""


@dataclass(frozen=True, eq=False)
class Round:
    """One tilt of the prior, and what it was worth.

    ``posterior``  the reward of this round     ``beta``  that puts its tilt ``kl`` nats from the prior
    ``log_weight`` of each text of the pool, normalised, [n]
    ``proxy``, ``gold``  mean reward under the tilt less that under the prior: as believed, and by the judge
    """

    posterior: RewardPosterior
    pairs: Pairs
    beta: float
    kl: float
    log_weight: Tensor
    proxy: float
    gold: float


def refresh(
    pool: Sequence[str],
    judge: Judge,
    pairs: Pairs,
    features: Features,
    *,
    arm: str = "refreshed",
    kls: Sequence[float] = (0.5, 1.0, 2.0, 3.0),
    num_labels: int = 20,
    log_prior: Tensor | None = None,
    prior_scale: float = 2.0,
    components: int | None = 32,
    seed: int = 0,
) -> list[Round]:
    """The rounds of one arm, one for each distance in ``kls``.

    ``pool``        texts: draws of the prior, one drawn twice being in it twice, or its support with ``log_prior`` [n]
    ``pairs``       what is known at the start     ``num_labels``  comparisons between a round and the next
    ``features``    and ``prior_scale``, ``components``: as in :meth:`RewardPosterior.learn`

    Raises ``InputError`` for a distance that the pool cannot show: n draws reach log n nats at most.
    """
    one_of("arm", arm, list(ARMS))
    at_least(1, num_labels=num_labels)
    base = torch.zeros(len(pool), dtype=torch.float64) if log_prior is None else log_prior.double()
    base = base.log_softmax(-1)
    gold = torch.as_tensor(list(judge(pool)), dtype=torch.float64)
    known, random = Remembered(features), generator(seed, f"labels, {arm}")
    rounds: list[Round] = []
    for kl in kls:
        if not rounds or arm != "frozen":
            learned = RewardPosterior.learn(pairs, known, prior_scale=prior_scale, components=components)
        r = learned.score(pool)[0]
        scale = _at_kl(base, r, kl)
        law = (base + scale * r).log_softmax(-1)
        gain = law.exp() - base.exp()
        proxy, worth = float((gain * r).sum()), float((gain * gold).sum())
        rounds.append(Round(learned, pairs, 1 / scale, kl, law, proxy, worth))
        if arm != "frozen":
            pairs = pairs + compare(pool, gold, law if arm == "refreshed" else base, num_labels, random)
    return rounds


def compare(pool: Sequence[str], gold: Tensor, log_weight: Tensor, n: int, random: torch.Generator) -> Pairs:
    """n comparisons of two different texts, drawn from a law over the pool, by a judge with Bradley-Terry noise.

    A text that the pool has several times has the weight of all of them."""
    first: dict[str, int] = {}
    same = torch.tensor([first.setdefault(text, i) for i, text in enumerate(pool)])
    if len(first) < 2:
        raise InputError("the pool has fewer than two different texts: there is nothing to compare")
    p = torch.zeros_like(log_weight).index_add(0, same, log_weight.exp())
    better: list[str] = []
    worse: list[str] = []
    for _ in range(n):
        a, b = torch.multinomial(p, 2, replacement=False, generator=random).tolist()
        won = torch.rand((), generator=random).log() < logsigmoid(gold[a] - gold[b])
        better.append(pool[a] if won else pool[b])
        worse.append(pool[b] if won else pool[a])
    return Pairs(better, worse)


def _at_kl(base: Tensor, r: Tensor, kl: float) -> float:
    """1 / beta at which the tilt of ``base`` by r is ``kl`` nats away from it: it grows with 1 / beta."""

    def distance(scale: float) -> float:
        law = (base + scale * r).log_softmax(-1)
        return float((law.exp() * (law - base)).sum())

    low, high = 0.0, 1.0
    while distance(high) < kl:
        low, high = high, 2 * high
        if high > 1e6:
            raise InputError(f"the pool shows at most {distance(high):.2f} nats, kl={kl:g} takes more draws")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if distance(middle) < kl else (low, middle)
    return high
