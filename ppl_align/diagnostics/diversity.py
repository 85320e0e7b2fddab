"""How many different completions a run delivers, beside how many the posterior itself has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from ppl_align.diagnostics import evidence
from ppl_align.posterior.estimates import log_likelihood, log_prior
from ppl_align.posterior.table import draw_indices, flat_tokens, identity

if TYPE_CHECKING:
    from ppl_align.posterior import Posterior

NUM_DRAWS = 100
"""Equal-weight draws that every run is judged by: diversity grows with their number, so it must be the same for all."""


def distinct_completions(posterior: Posterior) -> float:
    """Completions (distinct by ids) of positive weight, per replicate and averaged."""
    ids = identity(posterior, latents=False).reshape(tuple(posterior.log_weight.shape))
    alive = posterior.log_weight.isfinite().numpy()
    return float(np.mean([len(np.unique(row[keep])) for row, keep in zip(ids, alive, strict=True)]))


def unique_ancestors(posterior: Posterior) -> float | None:
    """First particles with living descendants, per replicate and averaged; N where nothing resamples; None if exact."""
    if posterior.exact:
        return None
    counts = evidence.ancestors_by_replicate(posterior)
    return float(posterior.log_weight.shape[1] if counts is None else np.mean(counts))


def entropy_of_draws(posterior: Posterior, n: int = NUM_DRAWS, seed: int = 0) -> float:
    """Entropy [nats] of the empirical law of ``n`` equal-weight draws, distinct by ids: at most log n."""
    counts = np.unique(identity(posterior, latents=False)[draw_indices(posterior, n, seed)], return_counts=True)[1]
    shares = counts / n
    return float(-(shares * np.log(shares)).sum()) + 0.0  # + 0.0: no "-0.0" when all draws agree


def posterior_entropy(posterior: Posterior) -> float | None:
    """H(p*) [nats] = log Z - E_p*[log p0 + log-likelihood], as this run estimates it.

    None with continuous latents, and for a decision."""
    if posterior.target == "decision" or any(z.is_floating_point() for z in posterior.latents.values()):
        return None
    w = posterior.weights
    joint = torch.where(w > 0, log_prior(posterior) + log_likelihood(posterior), 0.0)
    return max(evidence.log_evidence(posterior) - float((w * joint).sum()), 0.0)


def attainable_entropy(posterior: Posterior, n: int = NUM_DRAWS) -> float:
    """The most that :func:`entropy_of_draws` can be expected to show: min(H(p*), log n) (it is biased low)."""
    entropy = posterior_entropy(posterior)
    return math.log(n) if entropy is None else min(entropy, math.log(n))


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
