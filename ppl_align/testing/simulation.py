"""Exact posterior draws by simulating the joint: first the latents, then the observation that they would give.

(latent, data) ~ p(latent) p(data | latent) makes the latent an exact draw of p(latent | data), for that data. It is
the only exact posterior draw that a real language model gives away for free: write the middle and the ending of a
story, then ask for the middle given the ending.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from ppl_align.core.errors import InputError
from ppl_align.core.seeds import isolated, mix
from ppl_align.lm.completions import sequence_lengths
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.particles.particles import Particles
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.of_particles import of_particles
from ppl_align.program import Program
from ppl_align.runner.runner import Runner


@dataclass(frozen=True)
class Simulation:
    """``arguments``: the model's keyword arguments, the simulated data among them. ``draw``: a posterior of shape
    [1, 1], exact for ``model(*args, **arguments)``; its log-weight log p(data | draw) satisfies E[1/w] = 1/Z."""

    arguments: Mapping[str, Any]
    draw: Posterior


def simulate(
    model: Callable[..., Any],
    *args: Any,
    observed: Mapping[str, str] | None = None,
    num_simulations: int = 1,
    seed: int = 0,
    **kwargs: Any,
) -> list[Simulation]:
    """Draw latents and data jointly, ``num_simulations`` times.

    ``observed``  observed site -> the model's argument that holds its data (default: the argument of that name). The
                  values that are passed say how long an observed completion is; what they say is replaced. Data of a
                  completion is passed as token ids, so that nothing is tokenised twice.

    Raises ``InputError`` for a program with rewards or factors (nothing can be simulated from a reward: use
    ``Rejection``), without observed sites, or whose data is no argument.
    """
    with isolated(mix(seed, "simulate")), torch.no_grad():
        notice = _Notice()
        drawn = Runner(Program(notice(poutine.uncondition(model)), args, kwargs)).finish(Particles(num_simulations))
    if not notice.observed:
        raise InputError("simulate() needs a program with observed sites: nothing was observed")
    arguments = _arguments(model, observed or {}, notice.observed)
    found = []
    for i in range(num_simulations):
        data = {arguments[site]: _datum(drawn.sources.get(site), drawn.values[site][i]) for site in notice.observed}
        given = {**_bound(model, args, kwargs), **data}
        latents = {name: value[i : i + 1] for name, value in drawn.values.items() if name not in notice.observed}
        with isolated(0):
            again = Program(model, (), given).run(Particles(1, latents), draw=False, score=tuple(latents))
        posterior = of_particles(again, again.log_potential[None], Kind.EXACT_DRAWS, log_proposal=None, seed=seed)
        posterior = replace(posterior, engine="simulate", model=getattr(model, "__name__", type(model).__name__))
        found.append(Simulation(given, posterior))
    return found


class _Notice(Messenger):
    """Around a model whose observed sites are drawn instead; notes which they were."""

    def __init__(self) -> None:
        super().__init__()
        self.observed: list[str] = []

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("was_observed"):
            return
        if isinstance(msg["fn"], pyro.distributions.Unit):
            raise InputError(
                f"simulate() cannot draw from {msg['name']!r}: a reward or factor is no distribution; "
                f"use Rejection for exact draws"
            )
        if msg["name"] not in self.observed:
            self.observed.append(msg["name"])


def _arguments(model: Callable[..., Any], given: Mapping[str, str], sites: list[str]) -> dict[str, str]:
    parameters = inspect.signature(model).parameters
    named = {site: given.get(site, site) for site in sites}
    for site, argument in named.items():
        if argument not in parameters:
            raise InputError(
                f"the data of {site!r} is no argument of the model: say which one holds it, "
                f"observed={{{site!r}: ...}} (arguments: {', '.join(parameters) or 'none'})"
            )
    return named


def _bound(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by keyword, defaults included."""
    bound = inspect.signature(model).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _datum(source: CompletionDistribution | None, value: torch.Tensor) -> Any:
    """What the model's argument gets: ids up to and including the terminal token, or the value itself."""
    if source is None:
        return value.squeeze() if value.numel() == 1 else value
    length = int(sequence_lengths(value.reshape(-1), source.terminal))
    return value.reshape(-1)[:length].tolist()


__all__ = ["Simulation", "simulate"]
