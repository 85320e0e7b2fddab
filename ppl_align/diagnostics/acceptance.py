"""What became of the moves of Markov chains, by where they cut: which parts of a text are hard to change."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ppl_align.core.errors import InputError
from ppl_align.posterior.chains import after_warmup, num_warmup_moves
from ppl_align.posterior.result import Posterior


def acceptance_by_cut(posterior: Posterior) -> pd.DataFrame:
    """One row for each site and position of the cut (its first token that was drawn anew), after the warm-up.

    Indexed by ``site`` (in the order of moves) and ``cut``: ``moves``, all chains together, those ``accepted``, and the
    ``rate``. A latent that is no completion is drawn as a whole, at cut 0. Raises ``InputError`` for a run that has
    recorded no cuts: they are those of ``MCMC``."""
    accepted, cut = after_warmup(posterior, "accepted"), after_warmup(posterior, "cut")
    if accepted is None or cut is None:
        raise InputError(
            f"acceptance_by_cut() takes a run of MCMC, whose moves cut texts: this one, by {posterior.engine!r}, has "
            "recorded none"
        )
    sites = posterior.history["move_site"][num_warmup_moves(posterior) :]
    moves = pd.DataFrame(
        {
            "site": np.repeat(np.asarray(sites, dtype=object), cut.shape[1]),
            "cut": cut.reshape(-1).numpy(),
            "accepted": accepted.reshape(-1).numpy().astype(int),
        }
    )
    moves = moves[moves["cut"] >= 0]  # -1: there was nothing to move
    order = {site: i for i, site in enumerate(dict.fromkeys(sites))}
    by_cut = moves.groupby(["site", "cut"])["accepted"]
    counted = {"moves": by_cut.size(), "accepted": by_cut.sum(), "rate": by_cut.mean()}
    return pd.DataFrame(counted).sort_index(key=lambda level: level.map(order) if level.name == "site" else level)


__all__ = ["acceptance_by_cut"]
