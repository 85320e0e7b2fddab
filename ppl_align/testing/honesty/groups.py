"""One run of many replicates as many runs of a few, one large pool as many: what is independent may be cut anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch

from ppl_align.core.cost import Cost
from ppl_align.engines import MCMC, ParticleGibbs
from ppl_align.inspection.pool import Pool
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind

_BY_STEP = ("ess", "resampled", "log_evidence_increment", "ancestors", "moved", "cut", "accepted")  # [S, R, ...]
_BY_REPLICATE = ("lineage", "num_draws")  # [R, ...]
# Of all replicates alike, and left as they are: exponent, num_moves, move_accepted, step, move_site, num_warmup.


def of_chains(engine: Any) -> bool:
    """Are the replicates of its runs Markov chains?"""
    return isinstance(engine, MCMC | ParticleGibbs)


def widened(engine: Any, count: int) -> Any:
    """The same engine with ``count`` replicates, which may be chains: these are many, and never cut in time."""
    return replace(engine, **{"num_chains" if of_chains(engine) else "num_replicates": count})


def groups(run: Posterior, size: int) -> Iterator[Posterior]:
    """Runs of ``size`` replicates each, in order; what is left over is left out."""
    for first in range(0, len(run.log_weight) - size + 1, size):
        yield replicates(run, first, first + size)


def replicates(run: Posterior, first: int, last: int) -> Posterior:
    """The run as it would be with replicates ``first .. last - 1`` alone; costs in proportion."""
    part, size = slice(first, last), run.log_weight.shape[1]
    history = dict(run.history)
    history |= {key: torch.as_tensor(history[key])[:, part] for key in _BY_STEP if key in history}
    history |= {key: torch.as_tensor(history[key])[part] for key in _BY_REPLICATE if key in history}
    kind = run.kind
    if run.resampled is not None:
        kind = Kind.RESAMPLED if bool(run.resampled[:, part].any()) else Kind.WEIGHTED
    ratio = (last - first) / len(run.log_weight)
    cost = Cost(**{f.name: type(v)(v * ratio) for f in fields(Cost) for v in [getattr(run.cost, f.name)]})
    index = torch.arange(first * size, last * size).reshape(-1, size)
    return run.take(index, log_weight=run.log_weight[part], history=history, kind=kind, cost=cost)


def pools(drawn: Pool, size: int) -> Iterator[Pool]:
    """Pools of ``size`` draws each, in order, without the texts."""
    for first in range(0, drawn.num_draws - size + 1, size):
        yield replace(drawn, particles=drawn.particles.take(torch.arange(first, first + size)))
