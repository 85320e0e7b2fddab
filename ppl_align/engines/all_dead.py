"""What to say when every particle has weight zero: which factor killed them all, and what to try."""

from __future__ import annotations

from ppl_align.core.errors import AllDeadError
from ppl_align.particles.particles import Particles


def all_dead(where: str, particles: Particles, hint: str = "") -> AllDeadError:
    """The error for a population without weight, ``where`` in the program; ``hint``: what else may be the cause."""
    killers = [name for name, value in particles.factors.items() if bool(value.isneginf().all())]
    blame = f" ({killers[0]!r} is -inf for each of them)" if killers else ""
    return AllDeadError(
        f"every particle has weight zero {where}{blame}: no draw satisfies the program. Try more particles, more room "
        f"(max_new_tokens) if it can be met at all, a softer reward than -inf, or a proposal= that knows what is wanted"
        f"{hint}"
    )
