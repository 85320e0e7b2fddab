"""A posterior as rows: distinct draws with probabilities, equal-weight draws, one paragraph."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.particles.schemes import comb, invert
from ppl_align.posterior.frames import TextFrame
from ppl_align.posterior.once import once
from ppl_align.posterior.prior import log_prior
from ppl_align.posterior.result import Posterior


def site_texts(posterior: Posterior, name: str) -> list[str]:
    """The text of one completion site for each of the R*N particles, flat; elements of a plate on their own lines."""
    texts, size = posterior.completions[name].texts(), posterior.log_weight.numel()
    each = len(texts) // size
    return texts if each == 1 else ["\n".join(texts[i * each : (i + 1) * each]) for i in range(size)]


def flat_tokens(posterior: Posterior, name: str) -> Tensor:
    """Token ids of one completion site, [R*N, T] (plates laid end to end)."""
    return posterior.completions[name].tokens.reshape(posterior.log_weight.numel(), -1)


def _latent_column(posterior: Posterior, value: Tensor) -> list[Any]:
    rows = value.reshape(posterior.log_weight.numel(), -1).tolist()
    return [row[0] if len(row) == 1 else tuple(row) for row in rows]


@once
def identity(posterior: Posterior, *, latents: bool = True) -> np.ndarray:
    """Which distinct draw each particle is, [R*N] int: equal where the ids of all completions (and the latents) are."""
    size = posterior.log_weight.numel()
    columns = [flat_tokens(posterior, name).double() for name in posterior.completions]
    if latents:
        columns += [value.reshape(size, -1).double() for value in posterior.latents.values()]
    if not columns:
        return np.zeros(size, dtype=np.int64)
    return np.unique(torch.cat(columns, 1).numpy(), axis=0, return_inverse=True)[1].reshape(-1)


def _columns(posterior: Posterior) -> TextFrame:
    """Every particle as a row, flat over [R, N]."""
    column = posterior.columns
    found: dict[str, Any] = {"log_prior": log_prior(posterior).reshape(-1).numpy()}
    found |= {column[name]: r.reshape(-1).double().numpy() for name, r in posterior.rewards.items()}
    answers = posterior.history.get("answers", {})
    for name, z in posterior.latents.items():
        found[column[name]] = answers[name] if name in answers else _latent_column(posterior, z)
    found |= {column[name]: answers[name] for name in posterior.tools}
    found |= {column[name]: site_texts(posterior, name) for name in posterior.completions}
    return TextFrame(found)


def table(posterior: Posterior, by: Literal["ids", "text"] = "ids") -> TextFrame:
    """See :meth:`ppl_align.Posterior.table`."""
    if by not in ("ids", "text"):
        raise InputError(f'table(by={by!r}): by is "ids" or "text"')
    frame = _columns(posterior)
    frame.insert(0, "probability", posterior.weights.reshape(-1).numpy())
    frame.index = pd.Index(identity(posterior))
    frame = frame[frame["probability"] > 0]
    # Particles with the same ids agree in everything but their weight.
    total = frame.groupby(level=0)["probability"].sum()
    frame = frame[~frame.index.duplicated()]
    frame["probability"] = total
    if by == "text":
        column = posterior.columns
        keys = [column[name] for name in (*posterior.latents, *posterior.tools, *posterior.completions)]
        frame = _merge_spellings(frame, keys, [column[name] for name in posterior.rewards])
    return TextFrame(frame.sort_values("probability", ascending=False, kind="stable").reset_index(drop=True))


def _merge_spellings(frame: TextFrame, keys: list[str], rewards: list[str]) -> TextFrame:
    if frame.empty:
        return frame
    group = frame.groupby(keys, sort=False, dropna=False).ngroup().to_numpy()
    order = np.argsort(group, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    probability, log_prior = frame["probability"].to_numpy(), frame["log_prior"].to_numpy()
    total = np.array([probability[same].sum() for same in groups])
    merged = frame.iloc[[same[0] for same in groups]].copy()
    merged["probability"] = total
    merged["log_prior"] = [np.logaddexp.reduce(log_prior[same]) for same in groups]
    for name in rewards:
        weighed = frame[name].to_numpy() * probability
        merged[name] = np.array([weighed[same].sum() for same in groups]) / total
    return merged


def systematic(weights: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """``n`` indices with E[count_i] = n w_i, |count_i - n w_i| < 1, in random order (Kitagawa 1996).

    The comb runs over the particles in random order: those of a table are sorted, and its teeth, as regular as they,
    could all meet particles of one kind."""
    order = generator.permutation(len(weights))
    index = invert(torch.from_numpy(weights[order])[None], comb(n, generator.random())[None])
    return generator.permutation(order[index[0].numpy()])


def draw_indices(posterior: Posterior, n: int, seed: int = 0) -> np.ndarray:
    """Particles (flat over [R, N]) of ``n`` equal-weight draws from the pooled posterior."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError(f"draws({n!r}): the number of draws must be a whole number of at least 1")
    return systematic(posterior.weights.reshape(-1).numpy(), n, np.random.default_rng(seed))


def draws(posterior: Posterior, n: int, seed: int = 0) -> TextFrame:
    """See :meth:`ppl_align.Posterior.draws`."""
    index = draw_indices(posterior, n, seed)
    frame, column = _columns(posterior), posterior.columns
    sites = (*posterior.completions, *posterior.latents, *posterior.tools, *posterior.rewards)
    order = [*(column[name] for name in sites), "log_prior"]
    return TextFrame(frame.iloc[index][order].reset_index(drop=True))
