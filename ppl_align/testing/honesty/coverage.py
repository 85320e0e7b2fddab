"""How often 95% intervals hold the truth, and how often one is stated, by engine, replicates, estimand and reward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

from ppl_align.core.errors import PplAlignError
from ppl_align.engines import MCMC, SMC, SVI, ImportanceSampling, ParticleGibbs, Rejection, TemperedSMC
from ppl_align.engines.base import Engine
from ppl_align.kernels import SuffixMH
from ppl_align.posterior import Posterior, evidence
from ppl_align.posterior.chains import effective_draws
from ppl_align.testing.honesty.groups import of_chains, replicates, widened
from ppl_align.testing.honesty.problems import LONGEST, Kind, Problem, problem

DISTANCES = (0.05, 0.15, 0.5, 1.0, 2.0, 5.0)  # nats
REPLICATES = (1, 4, 8)
CHAINS = (4, 8)  # of fewer no bar is stated
ESTIMANDS = ("E[r]", "log Z", "KL")
ENGINES: dict[str, Any] = {
    "importance": ImportanceSampling(128),
    "smc": SMC(128, twist="prefix"),
    "svi": SVI(num_steps=20, num_particles=64),
    "rejection": Rejection(16, max_draws=5_000_000),
    "tempered": TemperedSMC(64),
    "rejuvenated": SMC(128, twist="prefix", every=2, rejuvenate=SuffixMH()),
    "mcmc": MCMC(),
    "gibbs": ParticleGibbs(num_samples=16, num_warmup=8),
}
MANY = 100.0  # effective draws by the exact weights (of chains: by autocorrelation), from which a bar is to be stated
SEEDS, FEWER = 1000, {"svi": 200, "tempered": 60, "rejuvenated": 200, "mcmc": 200, "gibbs": 100}
LONGEST_DEAR = 10  # tokens, where seeds are fewer: a guide is trained for each, a move writes a text anew
TOGETHER = 10  # runs that share a pilot of tempered SMC
BATCH = 8_192  # rows of a run: what stays in a cache


@dataclass
class Cell:
    """Counts of one cell: runs that state a bar, of these those that hold the truth; the same where draws are many."""

    stated: int = 0
    held: int = 0
    runs: int = 0
    many: int = 0
    many_stated: int = 0

    def add(self, stated: bool, held: bool, many: bool) -> None:
        """One run."""
        self.runs += 1
        self.stated += stated
        self.held += held and stated
        self.many += many
        self.many_stated += many and stated

    @property
    def coverage(self) -> float:
        """Share of the stated bars that hold the truth; NaN without one."""
        return self.held / self.stated if self.stated else float("nan")

    def interval(self, confidence: float = 0.999) -> tuple[float, float]:
        """Clopper-Pearson, of the coverage."""
        return clopper_pearson(self.held, self.stated, confidence)

    @property
    def holds(self) -> bool:
        """Is a coverage in [.92, .98] compatible with what was seen?"""
        low, high = self.interval()
        return self.stated == 0 or (low <= 0.98 and high >= 0.92)


def clopper_pearson(hits: int, total: int, confidence: float) -> tuple[float, float]:
    """Two-sided interval of a binomial share; ``(0, 1)`` of nothing."""
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, hits, total - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, total - hits)) if hits < total else 1.0
    return low, high


@dataclass
class Cells:
    """All cells of one engine and kind of reward, by ``(replicates, estimand)``."""

    cells: dict[tuple[int, str], Cell] = field(default_factory=dict)

    def add(self, run: Posterior, size: int, truth: Problem, seen_exactly: bool) -> None:
        """One run of ``size`` replicates."""
        many = effective(run, truth, seen_exactly) >= MANY
        found = {"E[r]": run.mean("r")}
        if run.kind.has_evidence:
            found |= {"log Z": evidence.log_z(run), "KL": evidence.kl(run)}
        exact = {"E[r]": truth.mean, "log Z": truth.log_z, "KL": truth.kl}
        for name, estimate in found.items():
            low, high = estimate.interval()
            self.cells.setdefault((size, name), Cell()).add(estimate.stated, low <= exact[name] <= high, many)

    def refused(self, size: int, estimands: Sequence[str] = ESTIMANDS) -> None:
        """A run that its engine refused: it states no bar."""
        for name in estimands:
            self.cells.setdefault((size, name), Cell()).add(False, False, False)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {f"{size} {name}": vars(cell) for (size, name), cell in self.cells.items()}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Cells:
        """What :meth:`as_dict` gave."""
        split = {key: key.split(" ", 1) for key in saved}
        return cls({(int(split[key][0]), split[key][1]): Cell(**counts) for key, counts in saved.items()})


def effective(run: Posterior, truth: Problem, seen_exactly: bool) -> float:
    """What its draws are worth, whatever it says of them: by the exact weights of draws of the prior. Exact draws count
    as they are, and states of chains, that are no draws of the prior, as their autocorrelation leaves them."""
    if run.kind.is_ordered:
        return effective_draws(run)
    return run.log_weight.numel() * (1.0 if seen_exactly else truth.share)


def measure(name: str, engine: Engine, kind: Kind, seeds: int, seed: int) -> Cells:
    """One row of the table: six problems, ``seeds`` runs each; runs of fewer replicates are parts of those of more."""
    found = Cells()
    for at, distance in enumerate(DISTANCES):
        longest = LONGEST_DEAR if name in FEWER else LONGEST
        truth = problem(kind, 1000 * seed + at, distance, longest=longest, short=name == "rejection")
        for run in _runs(engine, truth, seeds, seed):
            for size in CHAINS if of_chains(engine) else REPLICATES:
                if run is None:
                    found.refused(size, ESTIMANDS[:1] if of_chains(engine) else ESTIMANDS)
                    continue
                found.add(replicates(run, 0, size), size, truth, name == "rejection")
    return found


def _runs(engine: Any, truth: Problem, seeds: int, seed: int) -> Iterator[Posterior | None]:
    """``seeds`` runs of the most replicates; of a trained guide one at a time, for each has its own, and ten to a pilot
    of tempered SMC."""
    most = max(REPLICATES)
    at_once = _at_once(engine, most, seeds)
    for first in range(0, seeds, at_once):
        count = min(at_once, seeds - first)
        try:
            run = widened(engine, most * count).run(truth.model, seed=10_000 * seed + first)
        except PplAlignError:  # an engine that refuses states nothing, and these are runs as well
            yield from [None] * count
            continue
        for each in range(count):
            yield replicates(run, most * each, most * (each + 1))


def _at_once(engine: Any, most: int, seeds: int) -> int:
    if isinstance(engine, SVI):
        return 1
    if isinstance(engine, TemperedSMC):
        return min(seeds, TOGETHER)
    one = engine.engine if isinstance(engine, ParticleGibbs) else engine
    return max(1, min(seeds, BATCH // (most * getattr(one, "num_particles", 1))))
