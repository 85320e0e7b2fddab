"""A few draws of every run are executed again: is the program a function of its latents, and of each particle alone?

Undeclared randomness: a program that, executed again on the same values, says something else.

Engines execute a program many times over. What they hold fixed are its latents, so whatever else is random (a draw from
``random``, NumPy or torch that is no site, the clock, a counter) makes every execution another program, and the result
is the posterior of none of them. So a few of the particles that a run returns are executed again, and everything that
the program says of them must be what it was: sites, prompts, factors, observations, rewards, bounds, constraints.

They are executed without the others, so what the program said of them in the run must not have hung on those either:
``x - x.mean()`` over the particles is another factor for each number of particles, and has no posterior.

Rewards and the world answer from the run's memory: a reward that answers one text in two ways is asked once a text.

Particles that hang on each other: a program that says something else of a draw when it is among others.

Engines weigh every particle by what the program says of it, whoever else is there. ``x - x.mean()`` over the particles,
a rank, ``len(x)`` make the target another one for each number of particles and for each batch, without a word. So what
was said of a few particles in the run is compared with what is said of them alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.cost import measure
from ppl_align.core.errors import ModelError
from ppl_align.core.seeds import generators
from ppl_align.lm.base import LM
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.particles.particles import Particles
from ppl_align.posterior import Posterior
from ppl_align.program.compiled import Program
from ppl_align.program.notes import notes_of
from ppl_align.program.record import Record
from ppl_align.program.subsamples import whole_plates

PARTICLES = 4
"""So many of a run's particles are executed again."""
TIMES, FREE, SUSPECT = 2, 6, 16
"""Executions that are compared: where they cost forwards or questions, where they cost nothing, and where the program
was seen to draw from a global generator. A fair coin that is tossed in a program is missed 1 time in 2^(n - 1)."""
_ROUNDING = 1e-4
"""Relative, of numbers that two executions of the same batch should agree in."""
REMEDY = (
    "a program is a function of its latents: draw with pyro.sample or environment(..., rng), and keep clocks, counters "
    "and random numbers out of it"
)


def refuse_undeclared(model: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], posterior: Posterior) -> None:
    """Raise ``ModelError`` with the first difference between executions on the same values, if there is one."""
    chosen = _some(posterior)
    few = Particles.of_draws(posterior.particles, chosen)
    if not few.values or not few.size:
        return
    program = Program(model, args, kwargs)
    ordinary = list(posterior.latents)
    before, most, done, state = None, TIMES, 0, generators()
    while done < most:
        with measure() as cost, whole_plates():
            now, alone, nodes = _said(program, few, ordinary)
        if before is not None:
            refuse_difference(before, now)
        left = generators()
        most = SUSPECT if left != state else most
        free = not (cost.lm_forwards or cost.reward_calls or cost.environment_calls)
        if free and most != SUSPECT:
            most = FREE
        before, done, state = now, done + 1, left
    if not any(map(_is_the_programs_own, nodes.values())):  # else none of them could hang on the others
        return
    refuse_company(nodes, alone, posterior, chosen)
    if cost.lm_forwards or cost.environment_calls:
        return
    said = sum((value.abs() for value in alone.factors.values()), torch.zeros(len(chosen)))
    for one in chosen if free else chosen[said.argmax()][None]:
        twice = one.expand(2)  # beside its own copy nothing is left of a mean, an order, a rank
        with whole_plates():
            _, pair, nodes = _said(program, Particles.of_draws(posterior.particles, twice), ordinary)
        refuse_company(nodes, pair, posterior, twice)


def _some(posterior: Posterior) -> Tensor:
    """The flat indices of a few particles of positive weight, [P]."""
    alive = posterior.log_weight.reshape(-1).isfinite().nonzero()[:, 0]
    return alive[torch.linspace(0, len(alive) - 1, min(PARTICLES, len(alive))).long()] if len(alive) else alive


Said = list[tuple[str, dict[str, Any]]]
"""Every site in order, with what it says by the name of the thing."""


def _said(program: Program, particles: Particles, score: list[str]) -> tuple[Said, Particles, dict[str, Any]]:
    with Record() as record:
        run = program.run(particles, draw=False, score=score)
    pending = run.pending
    said = [(name, dict(_of_site(node))) for name, node in record.nodes.items()]
    said += [(name, {"answers": answers}) for name, answers in run.answers.items() if name not in record.nodes]
    return (said if pending is None else [*said, (pending.name, {})]), run, record.nodes


def _of_site(node: Any) -> Iterator[tuple[str, Any]]:
    """What a site says, gravest first."""
    fn, notes = node["fn"], notes_of(node)
    yield "kind", type(fn).__name__
    if isinstance(fn, CompletionDistribution):
        yield "prompt", [fn.prompts[i] for i in fn.index.reshape(-1).tolist()]
        yield "language model", fn.lm
        yield "settings", (fn.max_new_tokens, fn.warp)
    if node["is_observed"] and type(fn).__name__ != "Unit":
        yield "observed value", node["value"]
    if notes.matcher is not None:
        yield "constraint", [repr(getattr(part, "constraint", part)) for part in notes.matcher.parts]
    for what, key in (("reward", "reward"), ("weight / beta", "scale"), ("bound", "log_upper"), ("target", "target")):
        if getattr(notes, key) is not None:
            yield what, getattr(notes, key)
    if not isinstance(fn, CompletionDistribution):  # prompt, settings and value say it, and scores cost forwards
        yield "log-factor" if node["is_observed"] else "prior", fn.log_prob(node["value"])
    yield "scale", node["scale"]


def refuse_difference(before: Said, now: Said) -> None:
    """Raise ``ModelError`` where two executions differ, naming the first site and thing."""
    for one, other in zip_longest(before, now):
        if one is None or other is None or one[0] != other[0]:
            where = (one or other)[0]
            raise ModelError(
                f"undeclared randomness: executed again with the same values, the program has other sites (the first "
                f"is {where!r}): {REMEDY}"
            )
        for what in dict.fromkeys((*one[1], *other[1])):
            if not _same(one[1].get(what), other[1].get(what)):
                raise ModelError(
                    f"undeclared randomness: executed again with the same values, site {one[0]!r} has another {what}"
                    f"{_shown(what, one[1].get(what), other[1].get(what))}: {REMEDY}"
                )


def _same(one: Any, other: Any) -> bool:
    """Equal, rounding aside; two language models are the same if their fingerprints are."""
    if isinstance(one, LM) and isinstance(other, LM):
        return one is other or one.fingerprint == other.fingerprint
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape:
            return False
        if not one.is_floating_point():
            return torch.equal(one, other)
        return torch.allclose(one.double(), other.double(), rtol=_ROUNDING, atol=1e-6, equal_nan=True)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return _same(torch.as_tensor(one), torch.as_tensor(other)) if one is not None and other is not None else False
    return bool(one == other)


def _shown(what: str, one: Any, other: Any) -> str:
    """Both numbers, where there are numbers to show."""
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape and one.numel():
        differs = (one != other).reshape(-1).nonzero()[:1, 0]
        if len(differs):
            at = int(differs[0])
            one, other = one.reshape(-1)[at].item(), other.reshape(-1)[at].item()
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return f", {one:.6g} and then {other:.6g}"
    return ""


# -- particles that hang on each other ---------------------------------------------------------------------------------

_APART = 0.05
"""Relative, and nats: a network asked in half precision by the program rounds by some hundredths as its batch grows."""
ALONE = (
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
            f"of it among {len(alone)}: {ALONE}"
        )
