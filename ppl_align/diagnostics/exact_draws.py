"""What independent draws of the posterior itself reveal of other runs: the only view of what a run never visited.

``Rejection`` makes such draws. They are held against the runs of other engines in two ways.

*Unseen*: how many of them have a larger likelihood than anything the run has visited. Some always have. Beyond the
largest of M draws lies a share V of their law with M V ~ Exp(1), and a share of the posterior of V w_max / ((1 - k) Z):
about M V W / (1 - k), where W is the largest normalised weight and k the tail index of the weights. With k <= 1/2 (a
finite variance) the number of n exact draws beyond it is at most Poisson(2 n W Exp(1)), a geometric law::

    P(at least c) <= (1 + 1 / (2 n W))^-c

A run that leaves more unseen than that does not have the tail that its weights claim: it has missed a mode.

*Retained*: with one exact draw x* among its particles, importance sampling overestimates (Grosse, Ghahramani & Adams
2015, arXiv:1511.02543): E[log Zhat] <= log Z <= E[log Zhat_c], Zhat_c = (w(x*) + sum_{i=2..N} w(x_i)) / N.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ppl_align.core.estimate import of_draws
from ppl_align.posterior.estimates import Estimate
from ppl_align.posterior.prior import drew_from_prior, log_likelihood
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.run_summary import summary_of

SURPRISING = 1e-3  # an honest run is blamed for one in a thousand sets of exact draws
FEWEST = 3  # exact draws: what holds less of the posterior than two of them changes no conclusion
ROUNDING = 1e-3  # nats: the same text scored in another batch of a float32 network


def source(runs: Mapping[str, Posterior]) -> str | None:
    """The run with the most exact draws; None where there is none (an enumeration needs no draws)."""
    names = [name for name, run in runs.items() if run.draws_are_exact and not run.exact]
    return max(names, key=lambda name: runs[name].log_weight.numel(), default=None)


@dataclass(frozen=True)
class Unseen:
    """``count`` of ``total`` exact draws weigh more than anything a run visited; ``chance`` that so many do."""

    count: int
    total: int
    chance: float

    @property
    def share(self) -> float:
        """Estimates the posterior mass of what is heavier than anything visited."""
        return self.count / self.total

    @property
    def significant(self) -> bool:
        """More than a run with such weights leaves unseen by chance."""
        return self.count >= FEWEST and self.chance < SURPRISING


def unseen(run: Posterior, exact: Posterior) -> Unseen:
    """How much of the posterior, seen through exact draws of another run, is out of reach for ``run``."""
    heaviest = float(log_likelihood(run).max())
    own = log_likelihood(exact).reshape(-1)
    count, total = int((own > heaviest + ROUNDING).sum()), len(own)
    told = summary_of(run)  # W of the module's docstring; states of a chain stand for fewer draws than they are
    largest = 1 / told.effective_draws if run.kind.is_ordered else float(told.ancestral_weights.max())
    chance = (1 + 1 / (2 * total * largest)) ** -count
    return Unseen(count, total, chance)


def unreached(exact: Posterior, confidence: float = 0.95) -> float:
    """The mass that a region can have at most, with this confidence, if no exact draw lies in it."""
    return 1 - (1 - confidence) ** (1 / exact.log_weight.numel())


@dataclass(frozen=True)
class EvidenceBounds:
    """``lower <= log Z <= upper`` in expectation, nats, each a mean over replicates with its standard error."""

    lower: Estimate
    upper: Estimate


def evidence_bounds(run: Posterior, exact: Posterior) -> EvidenceBounds | None:
    """Two-sided bounds from a run of importance sampling from the prior (None for others) and exact draws.

    Replicate r leaves out its first particle and retains an exact draw instead. Every exact draw serves one
    replicate: where there are several for each, log Zhat_c is averaged over them; where there are too few, the other
    replicates have no upper bound."""
    if run.draws_are_exact or not drew_from_prior(run):
        return None
    particles = run.log_weight.shape[1]
    retained = log_likelihood(exact).reshape(-1)
    count = min(len(run.log_weight), len(retained))
    retained = retained[: len(retained) // count * count].reshape(count, -1)
    rest = torch.logsumexp(run.log_weight[:count, 1:], -1, keepdim=True)
    upper = (torch.logaddexp(retained, rest) - math.log(particles)).mean(-1)
    return EvidenceBounds(of_draws(run.log_evidence), of_draws(upper))
