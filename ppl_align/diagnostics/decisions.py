"""Runs that decide, beside runs that condition: two questions about one program, each with its own number.

    conditioning   log Z, the posterior: "it went well: what was said, and what did the world answer?"
    deciding       J = E[log-likelihood] - KL(policy || p0), the world as it is: "what should be said?"

J is measured on the episodes that a run delivers, so that runs can be ranked by it whatever they did to find their
policy. It says nothing about how much better another policy could be; an exact run beside them does, its table holds
the best J there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ppl_align.core.estimate import FEWEST_EXACT, quantile
from ppl_align.posterior.doubts import LOG_Z, OF_THE_SHIFT
from ppl_align.posterior.estimates import Estimate
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.run_summary import summary_of

SIGNIFICANT = 3.0  # standard errors
NEGLIGIBLE = 0.05  # nats


def split(runs: Mapping[str, Posterior]) -> tuple[dict[str, Posterior], dict[str, Posterior]]:
    """``(those that condition, those that decide)``, by name."""
    conditioned = {name: run for name, run in runs.items() if run.target == "posterior"}
    return conditioned, {name: run for name, run in runs.items() if name not in conditioned}


def best(decided: Mapping[str, Posterior]) -> str:
    """The run whose policy earned most."""
    return max(decided, key=lambda name: _j(decided[name]).value)


def verdict(runs: Mapping[str, Posterior]) -> tuple[str, bool]:
    """One line on the runs that decide, and whether anything confirms it."""
    conditioned, decided = split(runs)
    leader = best(decided)
    j = _j(decided[leader])
    line = f"Act by {leader}: J = {j} nats"
    most = next((run.optimism.best for run in conditioned.values() if run.optimism is not None), None)
    if most is not None:
        near = most - j.value <= max(SIGNIFICANT * j.standard_error, NEGLIGIBLE)
        known = lacking(decided[leader], most) is None
        return f"{line}, where the best of all policies has {most:.4g}.", near and known
    others = [_j(run) for name, run in decided.items() if run.engine != decided[leader].engine]
    agree = lacking(decided[leader]) is None and any(
        j.value - other.value <= max(SIGNIFICANT * math.hypot(j.standard_error, other.standard_error), NEGLIGIBLE)
        for other in others
    )
    return f"{line}, the largest of those measured.", agree


def lacking(run: Posterior, scale: float | None = None) -> int | None:
    """How many episodes it takes to know J to half a nat and to 30% of ``scale`` (of J itself, where that is not
    given); None where it is known. A few episodes that happen to agree know nothing."""
    j, count = _j(run), run.log_weight.numel()
    goal = min(LOG_Z, max(OF_THE_SHIFT * abs(j.value if scale is None else scale), NEGLIGIBLE))
    if count < FEWEST_EXACT or not math.isfinite(j.standard_error):
        return max(FEWEST_EXACT, 2 * count)
    needed = math.ceil(count * (quantile(0.975, count - 1) * j.standard_error / goal) ** 2)
    return needed if needed > count else None


def questions(runs: Mapping[str, Posterior]) -> str:
    """Which question each run answers, where there are two."""
    conditioned, decided = (listed(list(group)) for group in split(runs))
    return (
        f"Two questions: {conditioned} condition{_s(conditioned)} (it went well: what was said, what did the world "
        f"answer?), {decided} decide{_s(decided)} (what to say, in the world as it is?)."
    )


def _j(run: Posterior) -> Estimate:
    found = summary_of(run).decision_value
    return Estimate(-math.inf, math.nan) if found is None or math.isnan(found.value) else found


def listed(names: list[str]) -> str:
    """Names as a sentence has them: a, b and c."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _s(names: str) -> str:
    return "" if " and " in names else "s"
