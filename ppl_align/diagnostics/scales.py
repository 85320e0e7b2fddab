"""Is a unit of each reward worth the same in two runs? Where the weight is drawn: for the draws that both have."""

from __future__ import annotations

import math

import torch

from ppl_align.lm.completions import tensor_of
from ppl_align.posterior import Posterior


def scales(run: Posterior) -> dict[str, float | str]:
    """What a unit of each reward is worth, to six digits."""
    found: dict[str, float | str] = {}
    for name, scale in sorted(run.scales.items()):
        found[name] = (
            "drawn" if name in run.drawn_scales else float(f"{float(torch.as_tensor(scale).reshape(-1)[0]):.6g}")
        )
    return found


def differing_scales(one: Posterior, two: Posterior) -> dict[str, tuple[float, float]]:
    """Rewards with a weight that is drawn, and is not the same for a draw that both runs have: the two values."""
    found = {}
    for name in set(one.drawn_scales) & set(two.drawn_scales):
        known = dict(zip(_rows(one), one.scales[name].reshape(-1).tolist(), strict=True))
        for row, scale in zip(_rows(two), two.scales[name].reshape(-1).tolist(), strict=True):
            if not math.isclose(known.get(row, scale), scale, rel_tol=1e-5, abs_tol=1e-9):
                found[f"nats per unit of {name!r} for one draw:"] = known[row], scale
                break
    return found


def _rows(run: Posterior) -> list[tuple[float, ...]]:
    """All that was drawn, one row for each particle."""
    size = run.log_weight.numel()
    parts = [tensor_of(run.particles[name]).reshape(size, -1).double() for name in sorted(run.particles)]
    return [tuple(row) for row in torch.cat(parts, 1).tolist()]
