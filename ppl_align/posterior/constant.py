"""A reward that has the same value on every draw: what it is for may not have been drawn at all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_align.posterior.once import once
from ppl_align.posterior.result import Posterior

SAME = 1e-4  # relative: one text scored in two batches of a float32 network
_ROUNDING = 1e-9  # nats


@once
def constant_reward(run: Posterior, reward: str) -> float | None:
    """The value that a reward has on every draw of positive weight; None where it has several."""
    values = run.rewards[reward].double()[run.weights > 0]
    first = values[:1]
    return float(first) if len(values) and bool(same(values, first).all()) else None


def never_met(run: Posterior, reward: str) -> float | None:
    """The only value that has been seen of a reward. None where there were several: one that has turned draws down
    (-inf) has been met, and one that applies to no draw (NaN) is a factor of 1 by the user's own word."""
    value = constant_reward(run, reward)
    turned_down = bool((run.rewards[reward] == -math.inf).any())
    return None if value is None or math.isnan(value) or turned_down else value


@once
def unmet(run: Posterior) -> list[str]:
    """The rewards whose other values, were there any, could be preferred to the only one that was drawn: log Z rests on
    what nobody has seen. Not those that are at their declared best, nor those that weigh nothing."""
    return [
        name
        for name in run.rewards
        if never_met(run, name) is not None
        and bool(torch.as_tensor(run.scales[name]).any())
        and not _at_its_best(run, name)
    ]


def met_by_moves_only(run: Posterior) -> bool:
    """Of particles that were moved after they had been weighed: do they all weigh the same, whatever their rewards are?

    Then nothing was resampled by a reward that moves have met since; how often they would meet it is not told."""
    if run.log_proposal is not None or run.kind.is_ordered or not run.kind.has_evidence or run.steered or run.exact:
        return False
    if run.draws_are_exact or not bool(same(run.log_weight, run.log_weight.reshape(-1)[0]).all()):
        return False
    felt = (name for name in run.rewards if bool(torch.as_tensor(run.scales[name]).any()))
    return any(constant_reward(run, name) is None for name in felt)


def _at_its_best(run: Posterior, reward: str) -> bool:
    most = run.log_upper.get(reward)
    return most is not None and bool((run.factors[reward] >= torch.as_tensor(most) - _ROUNDING).all())


def same(values: Tensor, value: Tensor) -> Tensor:
    """Equal but for rounding; NaN is itself."""
    return torch.isclose(values, value, rtol=SAME, atol=SAME * SAME, equal_nan=True)
