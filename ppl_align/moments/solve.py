"""The multipliers of an exponential tilt: lambda such that the tilted mean of every feature is its target.

With ``g = phi - mu`` and weights W_i of a pool that stands for the base measure p, lambda minimises the convex dual

    F(lambda) = log sum_i W_i exp(lambda . g_i) - log sum_i W_i          (an estimate of log E_p[exp(lambda . g)])

Its gradient is the tilted mean of g and its Hessian their covariance there, so Newton's method needs nothing else. The
minimum is attained if and only if 0 lies in the relative interior of the convex hull of the pool's g_i; its value is
-KL(p_lambda||p). (Csiszar 1975, doi:10.1214/aop/1176996454; Khalifa et al. 2021, arXiv:2012.11635.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linprog
from torch import Tensor

from ppl_align.core.errors import InputError

SINGULAR = 1e-9  # relative to the largest singular value: features that are tied to each other up to rounding
RESOLVED = 1e-13  # of a tilted mean of g, in units of the largest |g|: rounding
_STEPS = 200


def solve(g: Tensor, log_weight: Tensor) -> Tensor:
    """lambda [K] from ``g [n, K]`` and ``log_weight [n]`` (nats, -inf: not in the pool): damped Newton.

    Raises ``InputError`` where the targets are so far out that floating-point numbers cannot tell."""
    scale = g.abs().amax(0)
    g = g / scale
    weights = torch.zeros(g.shape[1], dtype=torch.float64)
    for _ in range(_STEPS):
        p = torch.softmax(log_weight + g @ weights, 0)
        mean = p @ g
        if float(mean.abs().max()) < RESOLVED:
            return weights / scale
        covariance = (g * p[:, None]).T @ g - torch.outer(mean, mean)
        step, info = torch.linalg.solve_ex(covariance, mean)
        decrement = float(mean @ step)
        if int(info) != 0 or not decrement > 0:
            break
        weights = weights - _damping(g, log_weight, weights, step, decrement) * step
    mean = torch.softmax(log_weight + g @ weights, 0) @ g
    if float(mean.abs().max()) < 1e3 * RESOLVED:  # as near as the sums of a large pool allow
        return weights / scale
    raise InputError(
        "moment constraint: the targets lie at the very edge of what the pool shows: draw a larger one (num_pool=), or "
        "ask for less"
    )


def _damping(g: Tensor, log_weight: Tensor, weights: Tensor, step: Tensor, decrement: float) -> float:
    """1 near the solution, where Newton converges quadratically; before it, the first halving that goes down."""
    if decrement < 1e-6:
        return 1.0

    def dual(size: float) -> float:
        return float(torch.logsumexp(log_weight + g @ (weights - size * step), 0))

    start, size = dual(0.0), 1.0
    while dual(size) > start - 0.25 * size * decrement and size > 1e-9:
        size /= 2
    return size


def check(names: Sequence[str], phi: Tensor, targets: Tensor) -> None:
    """Can the targets be met on a pool of features ``phi [n, K]`` (of positive weight; NaN: does not apply)?

    Raises ``InputError``: what is in the way, and what to do."""
    for k, name in enumerate(names):
        _one(name, phi[:, k], float(targets[k]))
    if len(names) > 1:
        g = torch.unique((phi - targets).nan_to_num(0.0), dim=0)
        _not_tied(names, g)
        _together(names, g, targets, len(phi))


def _one(name: str, phi: Tensor, target: float) -> None:
    applies = phi[~phi.isnan()]
    head = f"moment constraint: E[{name}] = {target:g} cannot be met: "
    pool = f"{len(phi):,} draws of the pool"
    if not len(applies):
        raise InputError(f"{head}{name!r} applies to none of the {pool}; draw a larger pool (num_pool=)")
    low, high = float(applies.min()), float(applies.max())
    if low == high == target:
        raise InputError(f"moment constraint: {name!r} is {low:g} in all {pool}: there is nothing to fit, leave it out")
    if low < high and target in (low, high):
        raise InputError(
            f"{head}no draw of the pool goes {'above' if target == high else 'below'}, so lambda would be infinite. To "
            "ask it of every text, condition on it: constrain(...), or a reward of -inf; else ask for less, or draw a "
            "larger pool (num_pool=)"
        )
    if not low < target < high:
        seen = f"it is {low:g} in all {pool}" if low == high else f"it goes from {low:g} to {high:g} in the {pool}"
        raise InputError(
            f"{head}{seen}; draw a larger one (num_pool=), or bring one from an engine that finds such texts, "
            "fit(pool=posterior)"
        )


def _not_tied(names: Sequence[str], g: Tensor) -> None:
    """No combination of the features is the same for every draw."""
    with_constant = torch.cat([g / g.abs().amax(0), torch.ones(len(g), 1, dtype=g.dtype)], 1)
    _, singular, directions = torch.linalg.svd(with_constant, full_matrices=True)
    if len(singular) == with_constant.shape[1] and float(singular[-1]) > SINGULAR * float(singular[0]):
        return
    tied = [name for name, part in zip(names, directions[-1], strict=False) if abs(float(part)) > SINGULAR**0.5]
    raise InputError(
        f"moment constraint: {' and '.join(map(repr, tied))} say the same of every draw of the pool (a combination of "
        "them is constant), so that their lambdas cannot be told apart: leave one of them out"
    )


def _together(names: Sequence[str], g: Tensor, targets: Tensor, size: int) -> None:
    """Is there a mean of g that is 0 and to which every draw contributes? A linear program: the least share, t, is
    maximal subject to  sum_i (t + s_i) g_i = 0,  sum_i (t + s_i) = 1,  s >= 0."""
    g = g / g.abs().amax(0)
    count, rows = len(g), torch.cat([g, torch.ones(len(g), 1, dtype=g.dtype)], 1)
    equations = torch.cat([rows.sum(0, keepdim=True), rows]).T  # t, then s_1 .. s_n
    cost = [-1.0] + [0.0] * count
    found = linprog(cost, A_eq=equations.numpy(), b_eq=[0.0] * len(names) + [1.0], method="highs")
    if not found.success or found.x[0] <= SINGULAR / count:
        wanted = ", ".join(f"E[{name}] = {target:g}" for name, target in zip(names, targets.tolist(), strict=True))
        raise InputError(
            f"moment constraint: {wanted} cannot all be met by weighting the {size:,} draws of the pool; ask for less, "
            "draw a larger one (num_pool=), or bring one from an engine that finds such texts, fit(pool=posterior)"
        )
