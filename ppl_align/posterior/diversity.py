"""How many different completions a run delivers, beside how many the posterior itself has.

All of this counts completions and nothing else: other latents would make numbers that stand side by side differ.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ppl_align.posterior import evidence
from ppl_align.posterior.lineage import ancestors_by_replicate
from ppl_align.posterior.prior import log_likelihood
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.table import draw_indices, flat_tokens, identity, systematic

NUM_DRAWS = 100
"""Equal-weight draws that every run is judged by: diversity grows with their number, so it must be the same for all."""


def distinct_completions(posterior: Posterior) -> float | None:
    """Completions (distinct by ids) of positive weight, per replicate and averaged; None for a program without any."""
    if not posterior.completions:
        return None
    ids = identity(posterior, latents=False).reshape(tuple(posterior.log_weight.shape))
    alive = posterior.log_weight.isfinite().numpy()
    return float(np.mean([len(np.unique(row[keep])) for row, keep in zip(ids, alive, strict=True)]))


def unique_ancestors(posterior: Posterior) -> float | None:
    """First particles with living descendants, per replicate and averaged; N where nothing resamples.

    None if exact, and where weights do not estimate Z."""
    if posterior.exact or not posterior.kind.has_evidence:
        return None
    counts = ancestors_by_replicate(posterior)
    return float(posterior.log_weight.shape[1] if counts is None else np.mean(counts))


def entropy_of_draws(posterior: Posterior, n: int = NUM_DRAWS, seed: int = 0) -> float | None:
    """Entropy [nats] of the completions of ``n`` equal-weight draws, distinct by ids: at most log n.

    None for a program without completions. Draws are by completion, systematic: each is there n p times, up to one."""
    if not posterior.completions:
        return None
    shares = np.bincount(identity(posterior, latents=False), posterior.weights.reshape(-1).numpy())
    return _entropy(np.bincount(systematic(shares, n, np.random.default_rng(seed))) / n)


def posterior_entropy(posterior: Posterior) -> float | None:
    """Entropy [nats] of the completions under p*, as this run estimates it; other latents do not count.

    None for a decision, and without completions. A run that sampled other latents beside them (:func:`is_bounded`)
    knows the larger of two lower bounds (a Markov chain the first alone): the entropy of what it drew, and

        log Z - E_p*[log-likelihood + log p0(completions | what came before)]

    which is short of it by what conditioning tells of the latents: sum over them of E_p*[-log p0(z | before)], less
    their entropy given the completions. Without such latents this is an estimate of the entropy itself."""
    if posterior.target == "decision" or not posterior.completions:
        return None
    drawn = identity(posterior, latents=False)
    counted = _entropy(np.bincount(drawn, posterior.weights.reshape(-1).numpy()))
    if posterior.exact or not posterior.kind.has_evidence:
        return counted
    w = posterior.weights
    parts = (part.double() for name, part in posterior.log_prior.items() if name in posterior.completions)
    written = sum(parts, log_likelihood(posterior))
    by_probability = evidence.log_evidence(posterior) - float((w * torch.where(w > 0, written, 0.0)).sum())
    return max(by_probability, counted if is_bounded(posterior) else 0.0)


def is_bounded(posterior: Posterior) -> bool:
    """Is :func:`posterior_entropy` of this run a lower bound? Then it does not know p* of a completion by itself."""
    return not posterior.exact and (bool(posterior.latents) or not posterior.kind.has_evidence)


def attainable_entropy(posterior: Posterior, n: int = NUM_DRAWS) -> float | None:
    """The most that :func:`entropy_of_draws` can be expected to show: min(H, log n) (it is biased low)."""
    entropy = posterior_entropy(posterior)
    return None if entropy is None else min(entropy, math.log(n))


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum()) + 0.0  # + 0.0: no "-0.0" when all draws agree


def distinct_ngrams(posterior: Posterior, order: int = 2, n: int = NUM_DRAWS, seed: int = 0) -> float | None:
    """distinct-n of equal-weight draws: different token n-grams / all n-grams, within completions (arXiv:1510.03055).

    None where no completion is long enough."""
    index = draw_indices(posterior, n, seed)
    grams: list[tuple[int, ...]] = []
    for name, site in posterior.completions.items():
        if site.lengths.numel() != posterior.log_weight.numel():
            continue  # a plate inside the model: its rows are several texts laid end to end
        rows = flat_tokens(posterior, name)[index].tolist()
        lengths = site.lengths.reshape(-1)[index].tolist()
        grams += [
            tuple(row[i : i + order])
            for row, length in zip(rows, lengths, strict=True)
            for i in range(length - order + 1)
        ]
    return len(set(grams)) / len(grams) if grams else None
