"""Infilling Metropolis-Hastings: draw a few tokens anew, and keep what comes before and after them.

With W = log p0 + psi - log q of whole programs, tokens a .. b - 1 drawn from q given what is before them, and r(x) what
q gives to all the rest of the program after them (the later tokens, the later sites)::

    rate = min(1, exp(e (W(x') - W(x))) r(x') / r(x) c(x') / c(x))

where c(x) is how likely the place was to be chosen. A suffix move pays for all that it draws anew with the acceptance;
here a text changes by a word, and what pays is that its rest must go on from that as well as it did before.

(Word replacement of CGMH, Miao et al. 2019, arXiv:1811.10996, with words from the prior and any engine's target.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_align.core.validation import at_least
from ppl_align.kernels.kernel import Move, PrefixMove, accept
from ppl_align.kernels.place import Place, texts_of
from ppl_align.kernels.suffix import SuffixMH, SuffixMover
from ppl_align.particles.particles import Particles
from ppl_align.runner.runner import Runner


@dataclass(frozen=True)
class InfillMH(SuffixMH):
    """One step draws up to ``size`` tokens of each completion anew, from a cut on; how many is uniform.

    It changes no length, and no latent that is no completion: put it in a :class:`~ppl_align.kernels.Cycle` with a
    kernel that does. Completions to which the world answers later are left as they are.
    ``cuts``, ``proposal``, ``twist``: as of :class:`~ppl_align.kernels.SuffixMH`.
    """

    size: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, size=self.size)

    def bind(self, runner: Runner, others: bool = False) -> InfillMover:
        return InfillMover(self, runner, others)

    def on_prefix(self, length: int) -> list[PrefixMove]:
        return [PrefixMove(self.places, (0, length), self.window)]

    def window(self, place: Place) -> Tensor:
        """The tokens that are drawn anew, bool [P, K, T]."""
        return place.window(torch.randint(1, self.size + 1, place.token.shape))


class InfillMover(SuffixMover):
    """:class:`InfillMH` at work."""

    config: InfillMH

    def step(self, particles: Particles, exponent: Tensor | float = 1.0) -> tuple[Particles, list[Move]]:
        moves = []
        for site in reversed(list(particles.values)):
            if site in particles.environment:
                break
            if site in particles.sources:
                particles, move = self._infilled(particles, site, exponent)
                moves.append(move)
        return particles, moves

    def _infilled(self, particles: Particles, site: str, exponent: Tensor | float) -> tuple[Particles, Move]:
        state = self.known.of(particles)
        window = (0, particles.sources[site].max_new_tokens)
        place = Place.drawn(self._weights(state, site, window))
        which = self.config.window(place)
        new = self.runner.infill(state, site, which, self.watching)
        if self.known.remembers:
            self.known.learn(new, state)
        kept = _log_q_of_rest(new, site, which)
        correction = kept - _log_q_of_rest(state, site, which)
        correction = correction + place.log_chosen(self._weights(new, site, window)) - place.log_chosen()
        possible = place.possible & _same_length(state, new, site) & kept.isfinite()
        log_weight = torch.where(possible, new.log_weight, -torch.inf)
        accepted, rate = accept(state.log_weight, log_weight, correction, exponent)
        return new.where(accepted, state), Move(site, torch.where(place.possible, place.token, -1), accepted, rate)


def _log_q_of_rest(particles: Particles, site: str, which: Tensor) -> Tensor:
    """log q of all but the tokens ``which`` [P, K, T], [P] nats."""
    own = particles.token_log_proposal[site]
    return particles.total_log_proposal - torch.where(which, own, 0.0).sum((-1, -2))


def _same_length(old: Particles, new: Particles, site: str) -> Tensor:
    """Have the texts as many tokens as they had? bool [P]."""
    before, after = (texts_of(particles, site).lengths.reshape(particles.size, -1) for particles in (old, new))
    return (before == after).all(-1).cpu()


__all__ = ["InfillMH"]
