"""What the words of this library leave at their sites for engines to read: typed, in ``infer["ppl_align"]``.

And a log-factor of a Pyro program that comes with such notes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
from pyro.distributions import Unit
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ppl_align.lm.matcher import Matcher
from ppl_align.particles.per_particle import PerParticle

KEY = "ppl_align"


@dataclass(frozen=True, eq=False)
class Notes:
    """``environment``    the world answers here
    ``reward``, ``scale``  of a reward: raw r, [...], and nats per unit      ``fn``  the function that was asked
    ``log_upper``, ``log_lower``  the largest and smallest value of its log-factor, nats; None: not known
    ``target``         the mean that it is to have, where one is asked for
    ``prefix_closed``  a rejection of a prefix is one of the whole text
    ``constrains``     of a hard constraint: the completion that it is on     ``matcher``  what reads its tokens
    """

    environment: bool = False
    reward: Tensor | None = None
    scale: PerParticle | None = None
    fn: Any = None
    log_upper: PerParticle | None = None
    log_lower: float | None = None
    target: float | None = None
    prefix_closed: bool = False
    constrains: str | None = None
    matcher: Matcher | None = None

    def infer(self, **others: Any) -> dict[str, Any]:
        """The ``infer=`` of a Pyro site with these notes."""
        return {KEY: self, **others}


NOTHING = Notes()


def notes_of(msg: Any) -> Notes:
    """What was noted at a site, by Pyro's message of it."""
    return msg["infer"].get(KEY, NOTHING)


def factor(name: str, log_factor: Tensor, depends_on: Any, notes: Notes) -> None:
    """``pyro.factor(name, log_factor)`` that remembers ``notes``.

    ``depends_on``: the tensor that the factor was computed from. A value that leaves torch (ids -> text -> float) has
    lost the trace of it, and Pyro's TraceGraph_ELBO would then drop the factor without a word: its gradient is exactly
    zero. So the trace is attached again. Run by hand, outside any inference, there is nobody to tell."""
    if not am_i_wrapped():
        return
    unit = Unit(track_provenance(log_factor, get_provenance(depends_on)))
    infer: Any = notes.infer(is_auxiliary=True)
    pyro.sample(name, unit, obs=unit.sample(), infer=infer)
