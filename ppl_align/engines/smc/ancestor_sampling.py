"""Ancestor sampling: a retained trajectory is given a new beginning, out of all that are there.

With x_i the beginnings of N particles, w_i their weights, gamma_t what a beginning is worth (log p0 + psi) and y the
rest of the retained values, the beginning of the retained particle becomes x_i with probability in proportion to

    w_i  gamma_T(x_i, y) / gamma_t(x_i)

which is a Gibbs step on its ancestor. Without it all particles go back to the retained one after a few resamplings, and
early tokens never change. (Lindsten, Jordan & Schön 2014, arXiv:1401.0604. The others have to be drawn independently of
it: multinomial resampling.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.lm.completions import sequence_lengths
from ppl_align.particles.particles import Particles
from ppl_align.particles.resampling import draw_by
from ppl_align.program.compiled import Program
from ppl_align.runner.decode import Decode

if TYPE_CHECKING:
    from ppl_align.engines.smc.twisted import State


class AncestorSampling:
    """``retained``: values by site [R, ...] of ``program``."""

    def __init__(self, program: Program, retained: Mapping[str, Tensor]) -> None:
        self.program, self.retained = program, retained

    def draw(self, particles: Particles, decode: Decode | None, state: State, log_weight: Tensor) -> Tensor:
        """The ancestor of each retained particle, [R]; ``log_weight`` [R, N]: of all particles so far."""
        each = log_weight.shape[-1]
        values, fits = self._spliced(particles, decode, each)
        fits = fits & log_weight.reshape(-1).isfinite()
        where = fits.nonzero()[:, 0]
        some = Particles(len(where), {name: value[where.to(value.device)] for name, value in values.items()})
        whole = self.program.run(some, draw=False, score=tuple(values))  # the network reads every text at once
        so_far = state.psi + particles.total_log_prior
        if decode is not None:
            so_far = so_far + decode.log_prior
        log_gamma = torch.full((len(fits),), -torch.inf, dtype=torch.float64)
        psi = whole.log_potential
        log_gamma[where] = torch.where(psi.isneginf(), psi, psi + whole.total_log_prior - so_far[where])
        return draw_by(log_weight + log_gamma.reshape(-1, each))

    def _spliced(self, particles: Particles, decode: Decode | None, each: int) -> tuple[dict[str, Tensor], Tensor]:
        """The values of whole programs [R * N, ...], and whether a beginning and the rest fit together."""
        rest = {name: value.repeat_interleave(each, 0) for name, value in self.retained.items()}
        values = {**rest, **particles.values}
        if decode is None:
            return values, torch.ones(particles.size, dtype=torch.bool)
        site, t = decode.site, decode.t
        begun = decode.prefix(site.fn.max_new_tokens)
        whole = rest[site.name].to(begun.device).reshape(begun.shape)
        values[site.name] = torch.where(torch.arange(begun.shape[-1], device=begun.device) < t, begun, whole)
        running = sequence_lengths(whole, site.fn.terminal).reshape(particles.size, -1).cpu() > t
        fits = (running == torch.from_numpy(decode.running_texts)).all(-1)
        return values, fits


__all__ = ["AncestorSampling"]
