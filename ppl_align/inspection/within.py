"""Draws from within the hard constraints: what engines draw, and draws of the prior seldom are.

A pool of the prior cannot tell how much the weights of such draws vary, w = (allowed mass) exp(psi_rest). A pilot of
importance sampling can: a quarter of the draws, from within, and their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppl_align.cost import Cost
from ppl_align.engines import ImportanceSampling
from ppl_align.errors import AllDeadError
from ppl_align.runs import aside
from ppl_align.seeds import mix

SHARE = 4
"""One draw from within for so many of the prior."""


@dataclass(frozen=True)
class Within:
    """``log_weight [N]`` of draws from within the constraints, nats, and what they cost."""

    log_weight: Tensor
    cost: Cost

    @property
    def num_draws(self) -> int:
        return len(self.log_weight)


def draw_within(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], num_draws: int, seed: int
) -> Within | None:
    """A pilot of ``num_draws`` draws; None where all of them end dead."""
    engine = ImportanceSampling(num_particles=num_draws, num_replicates=1)
    try:
        with aside():
            run = engine.run(model, *args, seed=mix(seed, "within"), **kwargs)
    except AllDeadError:
        return None
    return Within(run.log_weight.reshape(-1), run.cost)
