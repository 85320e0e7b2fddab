"""Particles that hang on each other: a program that says something else of a draw when it is among others.

Engines weigh every particle by what the program says of it, whoever else is there. ``x - x.mean()`` over the particles,
a rank, ``len(x)`` make the target another one for each number of particles and for each batch, without a word. So what
was said of a few particles in the run is compared with what is said of them alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.errors import ModelError
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.particles.particles import Particles
from ppl_align.posterior import Posterior
from ppl_align.program.notes import notes_of

_APART = 0.05
"""Relative, and nats: a network asked in half precision by the program rounds by some hundredths as its batch grows."""
REMEDY = (
    "a program treats each particle by itself, and is a function of its latents: no sum(), mean(), max() or len() over "
    "the first dimension, no counters, clocks and random numbers"
)


def refuse_company(nodes: Mapping[str, Any], alone: Particles, posterior: Posterior, chosen: Tensor) -> None:
    """Raise ``ModelError`` for a site that says another thing of the particles ``chosen [P]`` (flat) than in the run.

    ``nodes``, ``alone``: of these particles alone, with the priors of ordinary latents scored."""
    for before, now in ((posterior.factors, alone.factors), (posterior.log_prior, alone.log_prior)):
        for name, value in now.items():
            if name in before and _is_the_programs_own(nodes.get(name)):
                _compare(name, before[name].double().reshape(-1)[chosen], value.double())


def hangs_on_company(nodes: Mapping[str, Any]) -> bool:
    """Is there a site that could: a factor of the program's own, or a prior of more than a language model?"""
    return any(_is_the_programs_own(node) for node in nodes.values())


def _is_the_programs_own(node: Any) -> bool:
    """Is it no score of a language model? Those round as the batch does, and are each row's own."""
    if node is None or isinstance(node["fn"], CompletionDistribution):
        return False
    notes = notes_of(node)
    return notes.reward is None or notes.fn is not None


def _compare(name: str, before: Tensor, alone: Tensor) -> None:
    apart = ~torch.isclose(alone, before, rtol=_APART, atol=_APART, equal_nan=True)
    if bool(apart.any()):
        at = int(apart.nonzero()[0, 0])
        raise ModelError(
            f"site {name!r} says {float(before[at]):.4g} nats of a draw among all others, and {float(alone[at]):.4g} "
            f"of it among {len(alone)}: {REMEDY}"
        )
