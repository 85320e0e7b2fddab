"""Suffix Metropolis-Hastings: cut a text, draw its rest anew, accept by the weights.

With the cut chosen with probability c(x), new values drawn from q, and W = log p0 + psi - log q of whole programs::

    rate = min(1, exp(W(x') - W(x)) c(x') / c(x))

What is before the cut is the same in x and x', so its q cancels, and that of what comes after is the law it was drawn
from. Where texts end at different lengths c(x') / c(x) is not 1 (:mod:`ppl_align.kernels.cuts`).

(QUEST, Faria et al. 2024, arXiv:2406.00049; QAlign, Faria & Smith 2025, arXiv:2504.03790; for powers of the prior Karan
& Du 2025, arXiv:2510.14901.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.validation import at_least, one_of
from ppl_align.kernels.cuts import NAMED, Cuts
from ppl_align.kernels.kernel import Kernel, Move, PrefixMove, accept, runner_of, twists_of
from ppl_align.kernels.known import Known, Watching
from ppl_align.kernels.place import Place, cut_weights, texts_of
from ppl_align.particles.particles import Particles
from ppl_align.runner.runner import Runner


@dataclass(frozen=True)
class SuffixMH(Kernel):
    """One step goes through the sites of a program, the last one first, and draws it and all after it anew from a cut.

    ``cuts``      where: "uniform" over the tokens, at a "word" or "sentence", at "entropy" jumps, or
                  :class:`~ppl_align.kernels.Cuts` of your own. Latents that are no completions are drawn as wholes
    ``proposal``  what new tokens are drawn from: None (as the engine draws: from the prior, unless it was told),
                  another LM, a guide, or a function ``Rows -> log_q [rows, V]`` such as ``at_temperature(0.5)``
    ``twist``     what they lean to: "lookahead", or a twist that proposes tokens

    In a plate one text at a time is cut. The world answers anew to what is new; what it answered before is kept.
    """

    cuts: str | Cuts = "uniform"
    proposal: Any = None
    twist: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.cuts, str):
            one_of("cuts", self.cuts, list(NAMED))
        twists_of(self.twist)

    def bind(self, runner: Runner, others: bool = False) -> SuffixMover:
        return SuffixMover(self, runner, others)

    def on_prefix(self, length: int) -> list[PrefixMove]:
        return [PrefixMove(self.places, window, lambda place: place.rest) for window in self.windows(length)]

    @property
    def places(self) -> Cuts:
        """The law of the cut."""
        return NAMED[self.cuts]() if isinstance(self.cuts, str) else self.cuts

    def windows(self, length: int) -> Iterator[tuple[int, int]]:
        """The places of a text of ``length`` tokens at most that are cut one after the other, [first, end)."""
        yield 0, length


@dataclass(frozen=True)
class BlockSuffixMH(SuffixMH):
    """Suffix moves that visit a text block by block: one cut in each block of ``size`` tokens, the last block first.

    Of a long text most uniform cuts are rejected, for they change too much at once; here late cuts, which change
    little, are as frequent as early ones. Texts without a token in a block skip it."""

    size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, size=self.size)

    def windows(self, length: int) -> Iterator[tuple[int, int]]:
        for first in reversed(range(0, length, self.size)):
            yield first, min(first + self.size, length)


class SuffixMover:
    """:class:`SuffixMH` at work."""

    def __init__(self, config: SuffixMH, runner: Runner, others: bool) -> None:
        self.config = config
        self.cuts = config.places
        self.runner = runner_of(config, runner)
        self.watching = Watching(self.cuts.reads_entropy)
        self.known = Known(self.runner, others or not config.follows_engine, self.watching)

    def step(self, particles: Particles, exponent: Tensor | float = 1.0) -> tuple[Particles, list[Move]]:
        moves = []
        for site in reversed(list(particles.values)):
            source = particles.sources.get(site)
            cut_at_tokens = source is not None and site not in particles.environment
            for window in self.config.windows(source.max_new_tokens) if cut_at_tokens and source else [(0, 1)]:
                particles, move = self._move(particles, site, window if cut_at_tokens else None, exponent)
                moves.append(move)
        return particles, moves

    def _move(
        self, particles: Particles, site: str, window: tuple[int, int] | None, exponent: Tensor | float
    ) -> tuple[Particles, Move]:
        """Draw anew from ``site`` on, from a cut within the window; None: as a whole."""
        size = particles.size
        state = self.known.of(particles)
        place = Place.whole(size) if window is None else Place.drawn(self._weights(state, site, window))
        cut = torch.where(place.possible, place.token, -1)
        accepted, rate = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.float64)
        where = place.possible.nonzero()[:, 0]
        if not len(where):
            return state, Move(site, cut, accepted, rate)
        old, place = state.take(where), place.take(where)
        new = self.runner.redraw(old, site, place.kept(old, site), self.watching).particles
        if self.known.remembers:
            self.known.learn(new, old)
        correction = torch.zeros(len(where), dtype=torch.float64)
        if window is not None:
            correction = place.log_chosen(self._weights(new, site, window)) - place.log_chosen()
        e = exponent[where] if isinstance(exponent, Tensor) else exponent
        yes, rate[where] = accept(old.log_weight, new.log_weight, correction, e)
        accepted[where] = yes
        chosen = torch.arange(size)
        chosen[where[yes]] = size + yes.nonzero()[:, 0]
        return Particles.concat([state, new]).take(chosen), Move(site, cut, accepted, rate)

    def _weights(self, particles: Particles, site: str, window: tuple[int, int]) -> Tensor:
        return cut_weights(self.cuts, texts_of(particles, site), window, self.known.entropy_of(particles, site))


__all__ = ["BlockSuffixMH", "SuffixMH"]
