"""A program run on given latents with empty texts, nothing asked and nothing scored: how large may its factors get?"""

from __future__ import annotations

from typing import Any

import torch

from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.particles.particles import Particles
from ppl_align.program.compiled import Program
from ppl_align.program.execute import Execute
from ppl_align.program.notes import notes_of
from ppl_align.program.sketch import STAND_INS, looking


def survey(program: Program, particles: Particles) -> Particles:
    """What the rewards of a program with these latents say of ``log_upper`` and ``scales``; their values are not known.

    Stops (``pending``) at the first latent without a value that is no completion."""
    try:
        with looking(STAND_INS[0]):
            return _run(program, particles)
    except (TypeError, ValueError):  # as where the program computes with an answer of the world
        with looking(STAND_INS[1]):
            return _run(program, particles)


def _run(program: Program, particles: Particles) -> Particles:
    return program.execute(lambda nesting: _Survey(particles, nesting, False, None, ()), particles.size).particles


class _Survey(Execute):
    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if not msg["is_observed"] and isinstance(fn, CompletionDistribution):
            self.values = dict(self.values)
            self.values[msg["name"]] = torch.full(fn.shape(), fn.pad_id, dtype=torch.long, device=fn.lm.device)
        super()._pyro_sample(msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        if notes_of(msg).scale is not None:
            super()._pyro_post_sample(msg)
