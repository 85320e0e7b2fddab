"""Would an engine run this program at all? It is asked itself: by a trial as short as it gets, two draws of each thing.

A copy of an engine's rules would be right until one of them changes. Trials are means to an end: they say nothing, and
draw from random streams of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.errors import PplAlignError, first_line, type_and_line
from ppl_align.core.runs import nested_run
from ppl_align.core.seeds import isolated, mix
from ppl_align.engines import SMC, SVI
from ppl_align.engines.base import Task
from ppl_align.inspection.pool import Pool
from ppl_align.lm.completions import sequence_lengths


@dataclass(frozen=True)
class Trials:
    """``svi``: why it refuses to train on the program, None if it does not. ``resamples``: has SMC anything to weigh
    before the end? Without, whatever the twist, it is importance sampling."""

    svi: str | None = None
    resamples: bool = True


def try_engines(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], pool: Pool, seed: int
) -> Trials:
    """Ask SVI and SMC; a pool in which all is rejected has nothing to try."""
    if not bool(pool.log_weight.isfinite().any()):
        return Trials()
    with nested_run():
        task = Task(model, args, dict(kwargs), lambda done, total, note: None)
        return Trials(refusal_of_svi(task, seed), smc_resamples(task, pool, seed))


def refusal_of_svi(task: Task, seed: int) -> str | None:
    """One step of training on two draws, as SVI would take it: the line in which it refuses, or None."""
    engine = SVI(num_steps=1, num_particles=2, num_replicates=1)
    try:
        engine.run(task.model, *task.args, seed=seed, **task.kwargs)
    except PplAlignError as error:
        return first_line(error)
    except Exception as error:  # whatever it is, it is no run
        return type_and_line(error)
    return None


def smc_resamples(task: Task, pool: Pool, seed: int) -> bool:
    """Does SMC look at weights before the end, where one of its particles writes the longest texts of the pool?"""
    engine = SMC(num_particles=2, num_replicates=1, twist=lambda prefixes: torch.zeros(len(prefixes.tokens)))
    longest = _longest(pool)
    retained = {name: value[longest : longest + 1] for name, value in pool.particles.values.items()}
    with isolated(mix(seed, "trial of smc")):
        try:
            run = engine._infer(Task(task.model, task.args, task.kwargs, task.progress, retained))
        except PplAlignError:  # it went on far enough to fail at something else
            return True
    return run.ess_by_step is not None and len(run.ess_by_step) > 0


def _longest(pool: Pool) -> int:
    """The draw, among those of positive weight, whose longest text has the most tokens."""
    most = torch.zeros(pool.num_draws)
    for name, fn in pool.completions.items():
        lengths: Tensor = sequence_lengths(pool.particles.values[name].cpu(), fn.terminal)
        most = torch.maximum(most, lengths.reshape(pool.num_draws, -1).amax(-1).float())
    return int(torch.where(pool.log_weight.isfinite(), most, -1.0).argmax())
