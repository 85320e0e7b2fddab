"""What the LM said of the prefixes of a pool, as far as a constraint cares: where the next token leads, with what mass.

A prefix says all of it at once: the row of the network has the mass of every token, drawn or not. Tokens with a share
of at least ``KEPT`` of what the constraint allows are kept one by one, the others summed by where they lead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppl_align.constraints.foreseen import Foreseen, Place
from ppl_align.lm.base import Ids
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.stopping import StopIds

KEPT = 1e-3
OTHERS = -1  # in place of a token: all that are not kept


@dataclass(frozen=True)
class Ends:
    """What ends a text. ``here``: tokens that are no part of it (EOS, special tokens); ``after``: stop tokens, which
    belong to it, and ``text`` the stop strings."""

    here: np.ndarray
    after: np.ndarray
    stop_ids: StopIds

    @classmethod
    def of(cls, source: CompletionDistribution) -> Ends:
        lm, stop_ids = source.lm, source.stop_ids
        here = {*lm.eos_ids, *(stop for stop in stop_ids if stop in lm.special_tokens)}
        after = [stop for stop in stop_ids if stop not in here]
        return cls(np.array(sorted(here), dtype=np.int64), np.array(after, dtype=np.int64), stop_ids)

    def completing(self, prefix: Ids) -> np.ndarray:
        """Tokens that end the text after this prefix, and belong to it."""
        if self.stop_ids.text is None:
            return self.after
        found = np.union1d(self.after, np.array(self.stop_ids.text.ends(prefix), dtype=np.int64))
        return np.setdiff1d(found, self.here)


class Seen:
    """Distinct prefixes, in the order in which they were met.

    Of prefix i: ``prefixes[i]``, ``places[i]``, ``here[i]`` the mass of what ends it as it is. Of its edges (one for
    each token that is kept, one for all others with the same effect), in ``edges[i]``, five columns: the token or -1,
    the state it leads to, the growth of the count, the mass, does it end the text?"""

    def __init__(self, foreseen: Foreseen, source: CompletionDistribution) -> None:
        self.foreseen, self.ends = foreseen, Ends.of(source)
        self.number: dict[tuple[Ids, Ids], int] = {}
        self.prefixes: list[Ids] = []
        self.places: list[Place] = []
        self.here: list[float] = []
        self.edges: list[tuple[np.ndarray, ...]] = []

    def __len__(self) -> int:
        return len(self.prefixes)

    def find(self, prompt: Ids | None, prefix: Ids) -> int:
        """Its number; -1 for one that was not met, and where there is no prompt to say whose it is."""
        return -1 if prompt is None else self.number.get((prompt, prefix), -1)

    def note(self, prompt: Ids, prefix: Ids, place: Place, p: np.ndarray) -> None:
        """``p`` [V] the mass of each next token, float64. What leads nowhere is left out."""
        if (prompt, prefix) in self.number or place[0] < 0:
            return
        foreseen = self.foreseen
        to, growth = foreseen.moves[place[0]][foreseen.kind], foreseen.counts[place[0]][foreseen.kind]
        live = to >= 0
        live[self.ends.here] = False
        over = np.zeros(len(p), dtype=bool)
        over[self.ends.completing(prefix)] = True
        keep = live & (p >= KEPT * p[live].sum())
        rest = live & ~keep
        step = int(foreseen.counts.max(initial=0)) + 1
        effect, which = np.unique(
            (to[rest].astype(np.int64) * step + growth[rest]) * 2 + over[rest], return_inverse=True
        )
        mass = np.bincount(which.reshape(-1), p[rest], len(effect))
        edges = (
            np.append(np.flatnonzero(keep), np.full(len(effect), OTHERS)),
            np.append(to[keep], effect // 2 // step),
            np.append(growth[keep], effect // 2 % step),
            np.append(p[keep], mass),
            np.append(over[keep], effect % 2).astype(bool),
        )
        self.number[prompt, prefix] = len(self.prefixes)
        self.prefixes.append(prefix)
        self.places.append(place)
        self.here.append(float(p[self.ends.here].sum()))
        self.edges.append(edges)
