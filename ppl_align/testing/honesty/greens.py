"""How often a green light is false, and how often a run that deserves one gets it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ppl_align.core.errors import PplAlignError
from ppl_align.core.estimate import Estimate
from ppl_align.core.runs import run_memory
from ppl_align.core.seeds import isolated, mix
from ppl_align.diagnostics.advisor import advise, best_run
from ppl_align.engines import MCMC, SMC, SVI, ImportanceSampling, ParticleGibbs, Rejection, TemperedSMC
from ppl_align.inspection.advice import doubt
from ppl_align.inspection.pool import draw_pool
from ppl_align.inspection.strengths import strength
from ppl_align.jobs.escalation import rounds
from ppl_align.kernels import SuffixMH
from ppl_align.posterior import Posterior, evidence
from ppl_align.posterior.pooling import pooled
from ppl_align.testing.honesty.coverage import BATCH, LONGEST_DEAR, MANY, clopper_pearson, effective
from ppl_align.testing.honesty.groups import groups, of_chains, pools, widened
from ppl_align.testing.honesty.problems import FARTHEST, LONGEST, NEAREST, Kind, Problem, problem

STRATA = ((0.0, 1.0), (1.0, 3.0), (3.0, 6.0), (6.0, math.inf))  # nats
ENOUGH_GREENS, MOST_RUNS = 59, 3000
WANTED_GREENS = 300  # of MOST_RUNS: so many tell a false share of 1% from one of 5%
INSPECT = "inspect"
SHOWN: dict[str, tuple[str, ...]] = {
    "importance": ("importance",),
    "smc": ("smc",),
    "both": ("importance", "smc"),
    "rejection": ("rejection",),
    "svi": ("svi", "smc"),  # a guide is confirmed by what does not draw from it
    "tempered": ("tempered",),
    "rejuvenated": ("rejuvenated",),
    "mcmc": ("mcmc",),
    "gibbs": ("gibbs",),
    "mcmc+tempered": ("mcmc", "tempered"),  # and so are chains
    "gibbs+smc": ("gibbs", "smc"),
}
"""The runs that a verdict is asked about."""
ESCALATED = "escalated"
"""``both`` with a quarter of the particles, and as many again as there are, until it is green or has ``BUDGET`` times
as many as at first: what ``ppl-align run --data FILE --escalate 8`` does with a row."""
BUDGET = 8
DIAGNOSTICS = (*SHOWN, INSPECT, ESCALATED)
ALONE = ("mcmc", "gibbs")
CHAINS = (*ALONE, "mcmc+tempered", "gibbs+smc")
FAR = ("tempered", "rejuvenated", *CHAINS)
"""Of engines that move texts: on short ones."""
JUDGED = {name: name.split("+")[0] for name in ("svi", *CHAINS)}
"""Judged itself, whichever run the verdict names: a guide (ten runs to a guide), or chains."""
DEAR = {"svi": 5, "rejection": 2, ESCALATED: 3, "rejuvenated": 5, **dict.fromkeys(("tempered", *CHAINS), 28)}
"""Rows of these have so many times fewer runs at most."""
ENGINES: dict[str, Any] = {
    "importance": ImportanceSampling(),
    "smc": SMC(twist="prefix"),
    "rejection": Rejection(num_particles=64, max_draws=1_000_000),
    "svi": SVI(num_steps=30, num_particles=256),
    "tempered": TemperedSMC(128),  # of 64 few runs are green, 256 take too long
    "rejuvenated": SMC(twist="prefix", every=2, rejuvenate=SuffixMH()),
    "mcmc": MCMC(num_samples=128),
    "gibbs": ParticleGibbs(),
}
OF_ANY_SIZE = ("importance", "smc", "svi", "rejuvenated")
_EACH = 10  # runs of a problem
_PROBLEMS: dict[str, int] = {"graded": 40, "rare": 20}  # of a round


Wanted = tuple[str, int]
"""A diagnostic, and the number of a stratum."""


def most_runs(diagnostic: str, most: int) -> int:
    """Of a row, where other rows may have ``most``."""
    return max(1, most // DEAR.get(diagnostic, 1))


def wanted_greens(most: int) -> int:
    """Where a row may have ``most`` runs."""
    return max(ENOUGH_GREENS, WANTED_GREENS * most // MOST_RUNS)


@dataclass
class Stratum:
    """Counts of one diagnostic, kind and distance. ``deserving``: not wrong, with 100 effective draws by the exact
    weights (of chains: by autocorrelation); ``kept``: of these, those that are green."""

    runs: int = 0
    greens: int = 0
    false: int = 0
    deserving: int = 0
    kept: int = 0

    def add(self, green: bool, wrong: bool, effective: float) -> None:
        """One run. ``effective``: draws, see :func:`~ppl_align.testing.honesty.coverage.effective`."""
        deserves = not wrong and effective >= MANY
        self.runs += 1
        self.greens += green
        self.false += green and wrong
        self.deserving += deserves
        self.kept += green and deserves

    def settled(self, most: int, wanted: int) -> bool:
        """No more runs are needed: there are as many greens as are ``wanted``, or runs as there may be at ``most``."""
        return self.greens >= wanted or self.runs >= most

    @property
    def limit(self) -> float:
        """Upper 95% limit of the false share."""
        return clopper_pearson(self.false, self.greens, 0.9)[1]

    @property
    def holds(self) -> bool:
        """At most 5% false, at 95%; at most one where greens are few."""
        return self.limit <= 0.05 if self.greens >= ENOUGH_GREENS else self.false <= 1


@dataclass
class Greens:
    """By ``(diagnostic, kind, stratum)``."""

    strata: dict[tuple[str, str, int], Stratum] = field(default_factory=dict)

    def of(self, diagnostic: str, kind: str, distance: float) -> Stratum:
        """The counts a run at this distance belongs to."""
        at = next(i for i, (low, high) in enumerate(STRATA) if low <= distance < high)
        return self.strata.setdefault((diagnostic, kind, at), Stratum())

    def add(self, other: Greens) -> None:
        """Counts add up."""
        for key, counts in other.strata.items():
            mine = self.strata.setdefault(key, Stratum())
            for name, count in vars(counts).items():
                setattr(mine, name, getattr(mine, name) + count)

    def unsettled(self, kind: str, most: int) -> set[Wanted]:
        """The diagnostics, by stratum, that have seen neither enough greens nor ``most`` runs."""
        every = [(d, at) for d in DIAGNOSTICS for at in range(len(STRATA))]
        wanted = wanted_greens(most)
        counts = {row: self.strata.get((row[0], kind, row[1]), Stratum()) for row in every}
        return {row for row in every if not counts[row].settled(most_runs(row[0], most), wanted)}

    def kept(self, diagnostics: Sequence[str] = DIAGNOSTICS) -> float:
        """Of the runs that deserve a green light, the share that has one, for problems as the recipe draws them: rows
        count by how often it does, for those without a green light have had more runs than the others."""
        kept = deserving = 0.0
        for (diagnostic, kind, at), counts in self.strata.items():
            if diagnostic in diagnostics and counts.runs:
                each = how_often(kind, at) / counts.runs
                kept, deserving = kept + each * counts.kept, deserving + each * counts.deserving
        return kept / deserving if deserving else math.nan

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {f"{d} {k} {at}": vars(s) for (d, k, at), s in self.strata.items()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Greens:
        """What :meth:`as_dict` gave."""
        keys = {key: key.split(" ") for key in saved}
        return cls({(keys[k][0], keys[k][1], int(keys[k][2])): Stratum(**counts) for k, counts in saved.items()})


def how_often(kind: str, at: int) -> float:
    """The share of the problems of a round that are of this kind and lie in this stratum."""
    low, high = STRATA[at]
    share = math.log(min(high, FARTHEST) / max(low, NEAREST)) / math.log(FARTHEST / NEAREST)
    return share * _PROBLEMS[kind] / sum(_PROBLEMS.values())


def is_wrong(log_z: Estimate | None, mean: Estimate, truth: Problem) -> bool:
    """log Z off by more than 1 nat, or by .3 nats and three standard errors; or E[r] by more than 30% of what
    conditioning moves it, or by 10% of that and three standard errors. None: of chains, that have no log Z."""
    if log_z is not None:
        off = abs(log_z.value - truth.log_z)
        if off > 1 or (off > 0.3 and off > 3 * _known(log_z.standard_error)):
            return True
    far, shift = abs(mean.value - truth.mean), abs(truth.mean - truth.prior_mean)
    return far > 0.3 * shift or (far > 0.1 * shift and far > 3 * _known(mean.standard_error))


def _known(error: float) -> float:
    return 0.0 if math.isnan(error) else error


def round_of(
    seed: int, kind: Kind, particles: int, replicates: int, wanted: Sequence[Wanted], problems: int | None = None
) -> Greens:
    """One round of random problems, each looked at ten times by every diagnostic that is ``wanted`` at its distance.

    ``problems``: how many; 40 graded or 20 rare ones."""
    found = Greens()
    rng = np.random.default_rng([seed, len(kind)])
    for at in range(_PROBLEMS[kind] if problems is None else problems):
        kl = math.exp(rng.uniform(math.log(NEAREST), math.log(FARTHEST)))
        stratum = next(i for i, (low, high) in enumerate(STRATA) if low <= kl < high)
        diagnostics = [d for d, there in wanted if there == stratum]
        for far in (False, True):
            these = [d for d in diagnostics if (d in FAR) == far]
            if these:
                truth = problem(kind, 1_000_000 + 1000 * seed + at, kl, longest=LONGEST_DEAR if far else LONGEST)
                _looked_at(truth, particles, replicates, seed, these, found)
    return found


def _looked_at(
    truth: Problem, particles: int, replicates: int, seed: int, diagnostics: Sequence[str], found: Greens
) -> None:
    """One problem."""
    _compared(truth, particles, replicates, seed, [d for d in diagnostics if d in SHOWN], found)
    if ESCALATED in diagnostics:
        _escalated(truth, first_round(particles), replicates, seed, found)
    if INSPECT in diagnostics:
        _inspected(truth, particles * replicates, seed, found)


def _compared(
    truth: Problem, particles: int, replicates: int, seed: int, diagnostics: Sequence[str], found: Greens
) -> None:
    """Runs of the engines that the diagnostics need, judged alone and together."""
    needed = [name for name in ENGINES if any(name in SHOWN[diagnostic] for diagnostic in diagnostics)]
    batches = {name: _batch(name, truth, particles, replicates, seed) for name in needed}
    for at in range(_EACH):
        runs = {name: batch[at] for name, batch in batches.items()}
        for diagnostic in diagnostics:
            _judged(diagnostic, runs, truth, found)


def _batch(name: str, truth: Problem, particles: int, replicates: int, seed: int) -> Sequence[Posterior | None]:
    """Ten runs of an engine; None where it refuses. Chains are as many as they are."""
    engine = ENGINES[name]
    each = engine.num_chains if of_chains(engine) else replicates
    engine = widened(engine, each * _EACH)
    if name in OF_ANY_SIZE:
        engine = replace(engine, num_particles=particles)
    try:
        return list(groups(engine.run(truth.model, seed=seed), each))
    except PplAlignError:
        return [None] * _EACH


def _judged(diagnostic: str, runs: Mapping[str, Posterior | None], truth: Problem, found: Greens) -> None:
    """Does the run that the verdict names deserve what it says?"""
    row = found.of(diagnostic, truth.kind, truth.kl)
    wanted = SHOWN.get(diagnostic, tuple(runs))
    shown = {name: run for name in wanted if (run := runs[name]) is not None}
    if len(shown) < max(1, len(wanted)):  # no green light, and none that is missing
        row.add(False, True, 0.0)
        return
    best = best_run(shown)
    advice = advise(shown, best)
    named = JUDGED.get(diagnostic) or advice.use or best
    green = named in advice.confirmed if diagnostic in JUDGED else advice.standing == "sound"
    stands = shown[named]
    log_z = evidence.log_z(stands) if stands.kind.has_evidence else None
    row.add(green, is_wrong(log_z, stands.mean("r"), truth), effective(stands, truth, stands.draws_are_exact))


def first_round(particles: int) -> int:
    """Of a replicate, where other rows have ``particles``."""
    return max(1, particles // 4)


def _escalated(truth: Problem, particles: int, replicates: int, seed: int, found: Greens) -> None:
    """Ten times rounds of more particles, each run until its verdict is sound."""
    rows: list[dict[str, list[Posterior]]] = [{name: [] for name in SHOWN["both"]} for _ in range(_EACH)]
    for number, times in enumerate(rounds(BUDGET)):
        going = [at for at, row in enumerate(rows) if number == 0 or not _is_green(_pools(row))]
        for name in SHOWN["both"] if going else ():
            batch = _batch(name, truth, times * particles, replicates, mix(seed, f"round {number}"))
            for at in going:
                if (run := batch[at]) is not None:
                    rows[at][name].append(run)
    for row in rows:
        _judged(ESCALATED, _pools(row), truth, found)


def _pools(row: Mapping[str, Sequence[Posterior]]) -> dict[str, Posterior]:
    return {name: pooled(parts) for name, parts in row.items() if parts}


def _is_green(runs: Mapping[str, Posterior]) -> bool:
    return bool(runs) and advise(runs, best_run(runs)).standing == "sound"


def _inspected(truth: Problem, draws: int, seed: int, found: Greens) -> None:
    """``inspect`` says that importance sampling will do: pools and what it thinks of them, without the trials, prices
    and other strengths that it shows as well."""
    with run_memory(), isolated(mix(seed, "inspect")):
        drawn = draw_pool(truth.model, (), {}, draws * _EACH, lambda done, total, note: None, at_once=BATCH)
    for pool in pools(drawn, draws):
        written = strength(pool, 1.0)
        wrong = is_wrong(written.log_evidence, written.rewards["r"], truth)
        found.of(INSPECT, truth.kind, truth.kl).add(doubt(pool, written) is None, wrong, draws * truth.share)
