"""What Markov chains share: the states that they begin in, and the posterior that their states are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.core.validation import at_least
from ppl_align.engines.base import all_dead
from ppl_align.particles.particles import Particles
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.of_particles import of_particles
from ppl_align.posterior.selection import draws_of
from ppl_align.runner.runner import Runner

_ROUNDS = 12
"""Rounds of draws, each twice as large, for states of positive weight to begin with."""


def check_chains(num_chains: int, num_samples: int, num_warmup: int, thinning: int, init: Posterior | None) -> None:
    """Raises ``InputError`` for numbers out of range, and for an ``init`` that is no posterior."""
    at_least(1, num_chains=num_chains, num_samples=num_samples, thinning=thinning)
    at_least(0, num_warmup=num_warmup)
    if init is not None and not isinstance(init, Posterior):
        raise InputError(f"init= takes a Posterior, whose draws chains begin in, got {type(init).__name__}")


def begun(runner: Runner, init: Posterior | None, num_chains: int) -> Particles:
    """Where chains begin, all of positive weight: draws of ``init``, or of what the runner draws."""
    if init is not None:
        values = draws_of(init, num_chains)
        _check_fit(values, runner.finish(runner.start(1)).values)
        particles = runner.given(values)
        if bool(particles.log_weight.isneginf().any()):
            raise InputError("a draw of init= has weight zero in this program: it is no draw of its posterior")
        return particles
    found: list[Particles] = []
    missing, size = num_chains, num_chains
    for _ in range(_ROUNDS):
        drawn = runner.finish(runner.start(size))
        alive = drawn.log_weight.isfinite().nonzero()[:missing, 0]
        found.append(drawn.take(alive))
        missing -= len(alive)
        if not missing:
            return Particles.concat([part for part in found if part.size])
        size = min(2 * size, 64 * num_chains)
    raise all_dead("where its chains begin", drawn, runner.constraints.hint(drawn))


def _check_fit(values: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raises ``InputError`` unless draws of ``init`` are values of the program's latents."""
    if set(values) != set(own):
        have, want = (", ".join(map(repr, sorted(names))) for names in (values, own))
        raise InputError(f"init= holds {have}, and the latents of this program are {want}: it is a run of another one")
    for name, value in values.items():
        has, wants = (
            [n for n in part.shape[1:] if n > 1] for part in (value, own[name])
        )  # a plate of 1 may be left out
        if has != wants:
            raise InputError(
                f"init= holds {name!r} of shape {has}, here it is {wants}: it is a run of another program, or with "
                f"other arguments"
            )


def of_chains(states: list[Particles], history: dict[str, Any]) -> Posterior:
    """A posterior of N states of each chain, in their order; ``states``: all chains after each step that counts."""
    chains, samples = states[0].size, len(states)
    index = torch.arange(chains * samples).reshape(samples, chains).T.reshape(-1)
    log_weight = torch.zeros(chains, samples, dtype=torch.float64)
    return of_particles(
        Particles.concat(states).take(index), log_weight, Kind.CHAIN, log_proposal=None, history=history
    )


__all__ = ["begun", "check_chains", "of_chains"]
