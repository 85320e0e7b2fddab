"""Room for plates: within an engine a value has a dimension for each plate of the program, as written for its own.

An engine runs a program whose plates are nested n deep on P particles, and there the value of every site begins with
[P, 1 or size, ...], n dimensions after the first. A user wrote no plate around the site, or one, and expects what plain
Pyro would give: the dimensions from the leftmost plate of that site on, and none outside of plates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ppl_align.particles.particles import Plates

PARTICLES = "ppl_align_particles"
"""The name of the plate under which engines run a program."""


def plates_of(msg: Any) -> Plates:
    """The plates that a site of a program stands in, apart from the one of the particles."""
    named = {f.dim: f.name for f in msg["cond_indep_stack"] if f.dim is not None and f.name != PARTICLES}
    return tuple(named.get(dim) for dim in range(min(named, default=0), 0))


def as_written(value: Tensor, plates: Plates, nesting: int) -> Tensor:
    """[P, n dimensions, ...] -> [P, dimensions of the site's own plates, ...]."""
    extra = nesting - len(plates)
    if extra <= 0 or any(size != 1 for size in value.shape[1 : 1 + extra]):
        return value
    return value.reshape(value.shape[0], *value.shape[1 + extra :])


def with_room(value: Tensor, dims: int) -> Tensor:
    """The reverse: a value [P, ...] with as many dimensions as its site has among the particles."""
    missing = dims - value.dim()
    return value.reshape(value.shape[0], *(1,) * missing, *value.shape[1:]) if missing > 0 else value


def all_with_room(values: Mapping[str, Tensor], plates: Mapping[str, Plates], nesting: int) -> dict[str, Tensor]:
    """Values as they were written, for a program whose plates are nested ``nesting`` deep."""
    return {name: with_room(v, v.dim() + nesting - len(plates.get(name, ()))) for name, v in values.items()}
