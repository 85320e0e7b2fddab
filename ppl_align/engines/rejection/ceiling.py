"""The largest value of factors whose bound is another one for each particle: a weight that is drawn.

Rejection sampling needs one number B for all draws. Where a bound is ``weight * upper / beta`` with a weight that the
program draws, B is its largest value over the latents: those that can be listed are listed, of one that lies in an
interval both ends are tried, and what the bound does not depend on may be anything. Whoever relies on B compares it
with the bound of every draw, so that a weight with its largest value between two ends is an error and not a bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_align.core.errors import InputError, first_line
from ppl_align.particles.particles import Particles, Site
from ppl_align.particles.per_particle import PerParticle, for_each
from ppl_align.program.compiled import Program
from ppl_align.program.sketch import survey

MOST = 4096
"""Assignments that are looked at."""
FREE = 16
"""Draws of the latents that cannot be listed: does the bound depend on them?"""
ROUNDING = 1e-4  # nats


def drawn_bounds(particles: Particles) -> dict[str, Tensor]:
    """The bounds that differ from particle to particle, [P] nats."""
    return {name: bound for name, bound in particles.log_upper.items() if isinstance(bound, Tensor)}


def is_known(bound: PerParticle | None) -> bool:
    """Is there a largest value at all, for every particle?"""
    return bound is not None and not bool(torch.as_tensor(bound).isposinf().any())


def ceiling(program: Program, names: Sequence[str]) -> float:
    """sup of the sum of the bounds of these factors, nats. Raises ``InputError`` where it is infinite or not known."""
    try:
        held, listed, free = _assign(program)
    except Exception as error:
        raise InputError(
            f"{_what(names)}: Rejection needs the largest value of weight / beta, and looking for it among the values "
            f"of the latents failed: {first_line(error)}"
        ) from error
    total = torch.stack([for_each(held.log_upper[name], held.size) for name in names]).sum(0)
    if not bool(total.isfinite().all()):
        raise InputError(f"{_what(names)}: {_UNBOUNDED}")
    which = _groups(held, listed)
    high = torch.full((int(which.max()) + 1,), -math.inf, dtype=torch.float64).scatter_reduce(0, which, total, "amax")
    low = torch.full_like(high, math.inf).scatter_reduce(0, which, total, "amin")
    if bool((high - low > ROUNDING).any()):  # it depends on a latent that cannot be listed
        if bool((total <= 0).all()):
            return 0.0
        raise InputError(f"{_what(names)}: {_UNBOUNDED} (it depends on {', '.join(map(repr, free))})")
    return float(total.max())


_UNBOUNDED = (
    "its weight (or 1 / beta) is drawn and has no largest value that is known, which Rejection needs: draw it from a "
    "distribution with finitely many values or from an interval, give a reward of at most 0 (upper=0), or use another "
    "engine"
)


def _what(names: Sequence[str]) -> str:
    return f"reward{'s'[: len(names) > 1]} {', '.join(map(repr, names))}"


def _assign(program: Program) -> tuple[Particles, list[str], list[str]]:
    """All that can be listed, with what the program says of the bounds there; the sites that were, and the others."""
    listed: list[str] = []
    free: list[str] = []
    held = survey(program, Particles(1))
    while (site := held.pending) is not None:
        found = None if site.environment else _list(site, held.size)
        (listed if found is not None else free).append(site.name)
        if found is None:
            held = survey(program, held.repeat(FREE if len(free) == 1 else 1))
            value = held.site.fn.sample()
        else:
            parent, value = found
            held = held.take(parent)
        held = survey(program, held.replace(values={**held.values, site.name: value.detach()}))
    return held, listed, free


def _groups(held: Particles, listed: Sequence[str]) -> Tensor:
    """Which assignments agree in all that is listed, [M]."""
    if not listed:
        return torch.zeros(held.size, dtype=torch.long)
    rows = [held.values[name].reshape(held.size, -1).double().cpu() for name in listed]
    return torch.unique(torch.cat(rows, 1), dim=0, return_inverse=True)[1]


def _list(site: Site, size: int) -> tuple[Tensor, Tensor] | None:
    """Every value of a latent for every assignment, ``(parent [M'], value [M', ...])``; None: it cannot be listed."""
    fn = site.fn
    shape = fn.shape()
    support = _support(fn, shape)  # [S, M, K]
    if support is None or size * len(support) ** support.shape[2] > MOST:
        return None
    rows = torch.arange(size)
    combined = torch.cartesian_prod(*[torch.arange(len(support))] * support.shape[2]).reshape(-1, support.shape[2])
    parent = rows.repeat_interleave(len(combined))
    chosen = combined.repeat(size, 1).to(support.device)
    element = torch.arange(support.shape[2], device=support.device)
    value = support[chosen, parent.to(support.device)[:, None], element].reshape(len(parent), *shape[1:])
    if not getattr(fn, "has_enumerate_support", False):
        return parent, value
    possible = fn.log_prob(value.reshape(size, len(combined), *shape[1:]).transpose(0, 1)).isfinite()
    kept = possible.transpose(0, 1).reshape(len(parent), -1).all(-1).cpu()
    return parent[kept], value[kept.to(value.device)]


def _support(fn: Any, shape: torch.Size) -> Tensor | None:
    """The values of every element of a latent, [S, M, K]: all of a discrete one, both ends of an interval."""
    if getattr(fn, "has_enumerate_support", False):
        try:
            values = fn.enumerate_support(expand=True)
        except NotImplementedError:
            return None
        return values.reshape(len(values), shape[0], -1) if not fn.event_shape else None
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    low, high = (getattr(support, side, None) for side in ("lower_bound", "upper_bound"))
    if low is None or high is None or getattr(support, "is_discrete", False):
        return None
    ends = [torch.as_tensor(end, dtype=torch.get_default_dtype()).expand(shape) for end in (low, high)]
    return torch.stack(ends).reshape(2, shape[0], -1)


__all__ = ["ceiling", "drawn_bounds", "is_known"]
