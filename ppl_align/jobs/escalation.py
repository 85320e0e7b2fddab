"""``--escalate``: what is not sound gets more particles, round after round, and all rounds count.

Each round adds as many particles as there are so far, so that a row is looked at a few times only: every look is a
chance to be fooled (``make honesty`` counts how often).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ppl_align.core.errors import AllDeadError, TooManyDrawsError
from ppl_align.core.seeds import mix
from ppl_align.core.turns import Outcome
from ppl_align.diagnostics.advisor import advise, best_run
from ppl_align.engines.base import Engine
from ppl_align.jobs.plan import Target
from ppl_align.posterior import Posterior
from ppl_align.posterior.pooling import pooled

OTHERS_MAY_FARE_BETTER = (AllDeadError, TooManyDrawsError)


def rounds(budget: int) -> Iterator[int]:
    """How many times the particles that engines are set to each round brings, the first included; ``budget`` in all.

    >>> list(rounds(1)), list(rounds(8)), list(rounds(6))
    ([1], [1, 1, 2, 4], [1, 1, 2, 2])
    """
    yield 1
    so_far = 1
    while so_far < budget:
        more = min(so_far, budget - so_far)
        yield more
        so_far += more


def widths(factor: int, widest: int) -> list[int]:
    """``factor`` times the particles, in runs of at most ``widest`` times as many: what memory has room for.

    >>> widths(4, 8), widths(4, 2), widths(5, 2)
    ([4], [2, 2], [2, 2, 1])
    """
    widest = max(1, widest)
    whole, rest = divmod(factor, widest)
    return [widest] * whole + [rest] * (rest > 0)


@dataclass
class Attempt:
    """What the engines have found of a ``target`` so far. By engine: ``found``, its runs; ``died``: particles of each
    replicate in runs that left none; ``failed``: why it has found nothing, or will find no more. ``times``: so many
    times the particles that engines are set to have been drawn."""

    target: Target
    found: dict[str, list[Posterior]] = field(default_factory=dict)
    died: dict[str, int] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)
    times: int = 0

    def seed(self, round_: int, part: int) -> int:
        """Of the runs of a round: the target's, and from the second round on others that come from it."""
        return self.target.seed if round_ == 0 else mix(self.target.seed, f"round {round_}.{part}")

    @property
    def runs(self) -> dict[str, Posterior]:
        """By engine, all that it has found in one."""
        return {name: pooled(runs, self.died.get(name, 0)) for name, runs in self.found.items()}

    @property
    def grave(self) -> list[str]:
        """Engines that have met an error which the others would meet, too."""
        return [name for name, error in self.failed.items() if not isinstance(error, OTHERS_MAY_FARE_BETTER)]

    @property
    def wants_more(self) -> bool:
        """Is it not sound, so that more particles may help?"""
        if self.grave:
            return False
        try:
            runs = self.runs
            return not runs or advise(runs, best_run(runs)).standing != "sound"
        except Exception:  # a comparison fails again, and says so, when the row is finished
            return False

    def next(self, name: str, engine: Engine, factor: int) -> Engine | None:
        """The engine for ``factor`` times the particles; None where more of them would not help."""
        if isinstance(self.failed.get(name), TooManyDrawsError):
            return None
        first = next(iter(self.found.get(name, [])), None)
        return engine if first is None and name not in self.died else engine.more(factor, first)

    def note(self, name: str, engine: Engine, outcome: Outcome[Posterior]) -> None:
        """What became of a run of ``engine``. Raises what is no error of the run: an interrupt."""
        error = outcome.error
        if error is None:
            self.found.setdefault(name, []).append(outcome.get())
            if isinstance(self.failed.get(name), AllDeadError):
                del self.failed[name]
        elif isinstance(error, AllDeadError):
            self.died[name] = self.died.get(name, 0) + getattr(engine, "num_particles", 0)
            if name not in self.found:
                self.failed.setdefault(name, error)
        elif isinstance(error, Exception):
            self.failed[name] = error
        else:
            raise error


__all__ = ["OTHERS_MAY_FARE_BETTER", "Attempt", "rounds", "widths"]
