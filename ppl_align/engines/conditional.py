"""Conditional runs: the same engine, with an exact posterior draw among its particles. They bound log Z from above.

With x* ~ p* in the first slot, conditional SMC draws all the rest from the law that SMC has *given* that x* survives.
Its estimate Zhat_c then satisfies (Andrieu, Doucet & Holenstein 2010; Grosse, Ghahramani & Adams 2015,
arXiv:1511.02543; Zhao et al. 2024, arXiv:2404.17546)::

    E[1 / Zhat_c] = 1 / Z      hence      E[log Zhat] <= log Z <= E[log Zhat_c]

and E[log Zhat_c] - E[log Zhat] is the Jeffreys divergence between what the engine does and what it would do if it
were right. Importance sampling is the case without resampling. (Where populations may die, with hard rejections, the
equation reads E[1 / Zhat_c] = P(Zhat > 0) / Z, and the bound holds all the more.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.core.estimate import standard_error
from ppl_align.core.printed import with_error
from ppl_align.core.progress import Report
from ppl_align.core.runs import nested_run
from ppl_align.engines.base import Engine, Task
from ppl_align.engines.importance import ImportanceSampling
from ppl_align.engines.smc import SMC
from ppl_align.particles.weights import log_mean_exp
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.selection import draws_of
from ppl_align.runner.proposals import ProposesValues, as_proposal


@dataclass(frozen=True)
class ConditionalSMC(Engine):
    """``engine`` (importance sampling or SMC) with ``retained`` draws in the first slot of each replicate.

    ``retained`` holds exact posterior draws of the *same* target (``Enumeration``, ``Rejection``, ``Oracle.sample``,
    ``simulate``): replicate r keeps the r-th of them, so there must be as many as replicates; a draw used twice would
    make replicates dependent. The result's ``log_evidence`` estimates log Z from above.
    """

    engine: ImportanceSampling | SMC
    retained: Posterior

    name: ClassVar[str] = "conditional"

    def __post_init__(self) -> None:
        if not isinstance(self.engine, (ImportanceSampling, SMC)):
            raise InputError(f"only importance sampling and SMC can be conditional, not {type(self.engine).__name__}")
        if isinstance(as_proposal(self.engine.proposal), ProposesValues):
            raise InputError("a guide that proposes whole values cannot be conditional: use one that proposes tokens")
        if getattr(self.engine, "rejuvenate", None) is not None:
            raise InputError("a retained draw is not moved: take SMC without rejuvenate= for conditional runs")
        if not isinstance(self.retained, Posterior):
            raise InputError(f"retained= takes a Posterior of exact draws, got {type(self.retained).__name__}")

    def _infer(self, task: Task) -> Posterior:
        if not (self.retained.exact or self.retained.draws_are_exact):
            raise InputError(
                f"a run of {self.retained.engine!r} has no exact posterior draws to retain: take Enumeration, "
                "Rejection or simulate()"
            )
        values = draws_of(self.retained, self.engine.num_replicates)
        return replace(self.engine._infer(replace(task, retained=values)), kind=Kind.CONDITIONAL)

    def describe(self) -> dict[str, Any]:
        return {"engine": self.engine.name, **self.engine.describe(), "retained": self.retained.engine}


@dataclass(frozen=True)
class Bounds:
    """Two-sided bounds on log Z: ``lower`` [R] log Zhat, ``upper`` [R'] log Zhat_c, nats.

    In expectation ``lower <= log Z <= upper``; each replicate is also a certificate by Markov's inequality:
    P(log Zhat > log Z + log(1/d)) <= d and P(log Zhat_c < log Z - log(1/d)) <= d, with no other assumption.
    """

    lower: Tensor
    upper: Tensor

    @property
    def gap(self) -> float:
        """Mean upper - mean lower bound: the Jeffreys divergence between the engine and its ideal, estimated."""
        return float(self.upper.mean() - self.lower.mean())

    @property
    def standard_errors(self) -> tuple[float, float]:
        """Of the mean of each side; NaN for a single replicate."""
        return standard_error(self.lower), standard_error(self.upper)

    def certificate(self, probability: float = 0.05) -> tuple[float, float]:
        """An interval that holds log Z with at least ``1 - probability``, whatever the engine did wrong.

        Markov's inequality for the means of Zhat (above) and of 1/Zhat_c (below), half of ``probability`` each."""
        if not 0 < probability < 1:
            raise InputError(f"probability must lie between 0 and 1, got {probability}")
        slack = math.log(2 / probability)
        return float(log_mean_exp(self.lower)) - slack, slack - float(log_mean_exp(-self.upper))

    def __str__(self) -> str:
        low, high = self.standard_errors
        lower, upper = with_error(float(self.lower.mean()), low), with_error(float(self.upper.mean()), high)
        noise = " (the order is noise: more replicates)" if self.gap < 0 else ""
        return f"log Z between {lower} and {upper} nats{noise}"


def evidence_bounds(
    engine: ImportanceSampling | SMC,
    model: Callable[..., Any],
    *args: Any,
    exact: Posterior,
    seed: int = 0,
    progress: bool | Report | None = None,
    **kwargs: Any,
) -> Bounds:
    """Run ``engine`` as it is (lower bounds) and with exact draws retained (upper bounds); see :class:`Bounds`.

    ``exact``: a posterior of exact draws of the same target. Each upper bound needs its own, so there are as many of
    them as there are draws, and at most ``engine.num_replicates``. ``progress``: as for ``engine.run``, for both."""
    available = engine.num_replicates if exact.exact else exact.log_weight.numel()
    upper = ConditionalSMC(replace(engine, num_replicates=min(engine.num_replicates, available)), exact)
    lower = engine.run(model, *args, seed=seed, progress=progress, **kwargs)
    with nested_run():  # of the program, the first run has said it all
        return Bounds(lower.log_evidence, upper.run(model, *args, seed=seed, progress=progress, **kwargs).log_evidence)
