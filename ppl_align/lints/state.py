"""A reward with a state: asked about the same texts it answers otherwise. Then exp(r / beta) is not a likelihood.

Asked three more times: as before, in reverse order, and about half of the batch. What functions that stand for the
world answered is remembered: if they are not to be trusted, that is another finding."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ppl_align.lints.finding import Finding
from ppl_align.lints.prior_sample import PriorSample
from ppl_align.particles.particles import Particles

REMEDY = "a likelihood is a function of its text alone: leave out counters, random numbers and batch statistics"


def stateful(sample: PriorSample) -> Iterator[Finding]:
    """Rewards first; then any other factor that changes with the same values."""
    size = sample.num_draws
    backwards, half = torch.arange(size - 1, -1, -1), torch.arange(size // 2)
    again: list[tuple[str, Tensor, Particles]] = [
        ("gave other values when asked again", torch.arange(size), sample.ask()),
        ("depends on the order of the batch", backwards, sample.ask(rows=backwards)),
    ]
    if size > 1:
        again.append(("depends on what else is in the batch", half, sample.ask(rows=half)))
    for name in sample.particles.factors:
        kind = "reward" if name in sample.particles.rewards else "factor"
        for what, rows, run in again:
            before, after = (getattr(particles, f"{kind}s")[name] for particles in (sample.particles, run))
            if _changed(before[rows], after):
                by = _nats(sample.particles.factors[name][rows], run.factors[name])
                yield Finding(
                    "reward with a state", "warning", f"{kind} {name!r} {what}{by}: it is not a likelihood", REMEDY
                )
                break


def _changed(before: Tensor, after: Tensor) -> bool:
    """Beyond the rounding of a network that sees another batch."""
    if bool((before.isnan() != after.isnan()).any()):
        return True
    known = ~before.isnan()
    before, after = before[known], after[known]
    same = (before == after) | ((before - after).abs() <= _slack(before))
    return not bool(same.all())


def _nats(before: Tensor, after: Tensor) -> str:
    """By how much a log-factor varies; where it rejects now this text and now that, there is no number for it."""
    apart = (before - after).abs()
    finite = apart[apart.isfinite()]
    if not len(finite) or not bool((finite > 0).any()):
        return ""
    return f", by {float(finite.mean()):.3g} nats on average and up to {float(finite.max()):.3g}"


def _slack(values: Tensor) -> float:
    finite = values[values.isfinite()]
    if len(finite) < 2:
        return 1e-5 * float(finite.abs().sum())
    return 0.01 * float(finite.std()) + 1e-5 * float(finite.abs().max())
