"""Where along the text the reward acts: KL(p*||p0), token by token.

By the chain rule KL(p*||p0) = sum over t of E_p*[log p*(x_t|x_<t) / p0(x_t|x_<t)]. The increments telescope over the
soft value V(x_<=t) = log E_p0[w | x_<=t], so that what the posterior has paid up to a cut t is

    C_t = E_p*[V(x_<=t)] - log Z,      C_0 = 0,      C_T = KL(p*||p0)

V of a prefix takes fresh continuations. From K of them, drawn from the prior, log mean(w) is too low on average
(Jensen); with the draw's own ending among them, which comes from p*, it is too high on average (the argument of
conditional SMC and bidirectional Monte Carlo, arXiv:1511.02543). Both are reported: C_t lies between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_align.inspection.pool import BATCH, Pool
from ppl_align.inspection.weighted import Weighted
from ppl_align.particles.schemes import comb, invert
from ppl_align.particles.weights import log_mean_exp
from ppl_align.posterior.estimates import Estimate
from ppl_align.runner.runner import Runner

CUTS = 5
"""Places inside the text where prefixes are continued anew, all completions of the program together."""


@dataclass(frozen=True)
class Cut:
    """``tokens`` of the completion ``site`` are written (None: the latent ``site`` is drawn), and everything before it.

    ``lower``, ``upper``: nats of KL(p*||p0) paid so far, from below and from above (equal where nothing is random)"""

    site: str
    tokens: int | None
    lower: Estimate
    upper: Estimate

    @property
    def middle(self) -> float:
        return (self.lower.value + self.upper.value) / 2


@dataclass(frozen=True)
class Profile:
    """``cuts`` in the order of the text; the last is the end, where C_T is KL(p*||p0) by the pool.

    ``enough``: the pool's draws stand for the posterior; otherwise all of it is as uncertain as KL itself."""

    cuts: tuple[Cut, ...]
    num_prefixes: int
    num_continuations: int
    enough: bool

    @property
    def halfway(self) -> Cut | None:
        """Where half of the KL has been paid."""
        total = self.cuts[-1].middle if self.cuts else 0.0
        return next((cut for cut in self.cuts if cut.middle >= total / 2), None) if total > 0 else None


def profile(
    pool: Pool, num_prefixes: int, num_continuations: int, progress: Callable[[int, int, str], None]
) -> Profile | None:
    """C_t at a few cuts, from ``num_prefixes`` draws of p* (out of the pool) with ``num_continuations`` each.

    None where nothing can be said: no completion, or all draws rejected."""
    w = pool.weighted(pool.psi)
    if not pool.completions or not w.alive:
        return None
    chosen = representatives(pool.log_weight, num_prefixes)
    places, cuts = places_of(pool), []
    for i, (site, tokens) in enumerate(places):
        below, above = _soft_values(pool, chosen, site, tokens, num_continuations)
        cuts.append(Cut(site, tokens, _paid(below, w), _paid(above, w)))
        progress(i + 1, len(places), "cuts of the text")
    last = list(pool.particles.values)[-1]
    length = pool.completions[last].max_new_tokens if last in pool.completions else None
    cuts.append(Cut(last, length, w.kl, w.kl))
    return Profile(tuple(cuts), num_prefixes, num_continuations, w.enough)


def places_of(pool: Pool) -> list[tuple[str, int]]:
    """Cuts as (site, tokens written): before each completion unless it is the first thing drawn, inside of it, and
    after the last one, where something else is drawn after it."""
    inside = max(1, CUTS // len(pool.completions))
    places = []
    for name, fn in pool.completions.items():
        if name != next(iter(pool.particles.values)):
            places.append((name, 0))
        length = fn.max_new_tokens
        steps = {round(length * (k + 1) / (inside + 1)) for k in range(inside)}
        places += [(name, t) for t in sorted(steps) if 0 < t < length]
    if name != list(pool.particles.values)[-1]:
        places.append((name, length))
    return places


def representatives(log_weight: Tensor, count: int) -> Tensor:
    """``count`` draws of the pool that stand for p*: systematic resampling in the order of the weights, [count].

    Each has the right probability; taken in order, few and many nats are represented in proportion."""
    order = log_weight.argsort()
    weights = torch.softmax(log_weight[order], 0)
    return order[invert(weights[None], comb(count, torch.rand((), dtype=torch.float64))[None])[0]]


def _soft_values(pool: Pool, chosen: Tensor, site: str, tokens: int, count: int) -> tuple[Tensor, Tensor]:
    """log of the mean weight of continuations for each chosen draw, [J] nats: without and with its own ending."""
    runner = Runner(pool.program, constraints=pool.known)
    rows = chosen.repeat_interleave(count)
    parts = [runner.redraw(pool.particles.take(part), site, tokens) for part in rows.split(BATCH)]
    fresh = torch.cat([new.particles.log_potential + new.log_prior - new.log_proposal for new in parts])
    fresh = fresh.reshape(len(chosen), count)
    # The draw's own ending is weighed like those: by p0 / q of what is not given.
    ratio = torch.cat([new.particles.log_ratio - new.log_prior + new.log_proposal for new in parts])
    own = pool.log_weight[chosen] - ratio.reshape(len(chosen), count)[:, 0]
    return log_mean_exp(fresh), log_mean_exp(torch.cat([own[:, None], fresh], 1))


def _paid(value: Tensor, w: Weighted) -> Estimate:
    """C_t = mean V - log Z: the spread of the draws, and what the pool does not know (where that can be told)."""
    found = float(value.mean()) - w.log_evidence.value
    if not math.isfinite(found):  # no continuation of some prefix is possible: all that is known is C_t >= 0
        return Estimate(0.0, math.nan)
    # The draws are a systematic sample, in the order of their weights: neighbours differ by what is left to chance.
    spread = math.sqrt(float(value.diff().square().mean()) / 2 / len(value))
    return Estimate(found, math.hypot(spread, w.kl.standard_error) if w.enough else spread)
