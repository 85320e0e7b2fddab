"""``inspect``: what can be known of a target before any inference is spent on it.

One pool of draws of the prior (under hard constraints: from within them), weighted for every strength of the rewards; a
few hundred continuations say where along the text the reward acts. Nothing here trains, resamples or searches, except
that SVI and SMC are tried on two draws, to find out whether they would run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_align.core.cost import Cost, measure
from ppl_align.core.errors import InputError
from ppl_align.core.files import made_folder
from ppl_align.core.printed import jsonable
from ppl_align.core.progress import Report, reporting
from ppl_align.core.runs import run_memory
from ppl_align.core.seeds import isolated, mix
from ppl_align.core.validation import at_least
from ppl_align.inspection.advice import advise, doubt
from ppl_align.inspection.costs import Prediction, predict, try_engines
from ppl_align.inspection.pool import Pool, draw_pool
from ppl_align.inspection.predictive import Answers, Event, PriorReward, answers, event, prior_rewards
from ppl_align.inspection.profile import Profile, profile
from ppl_align.inspection.strengths import Sensitivity, Strength, log_evidence_slope, sensitivities, strength, strengths
from ppl_align.posterior.estimates import Estimate
from ppl_align.program import Program
from ppl_align.runner.known_constraints import known_constraints

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SHARE = 4
"""Where draws are from within hard constraints: one of the prior itself for so many of them."""


@dataclass(frozen=True, repr=False)
class Inspection:
    """What :func:`inspect` found. Printing it shows tables of at most 80 columns that end in a recommendation.

    ``rewards``        the prior predictive of each reward
    ``written``        log Z, KL(p*||p0), E[r] and ESS at the betas as they are written
    ``strengths``      the same with all betas multiplied by a common factor
    ``answers``        entropies of prior and posterior in nats (None with a continuous latent)
    ``sensitivities``  what each factor does by itself; ``slope``: d log Z / d log beta, all betas together, nats
    ``profile``        KL paid along the text (None: not asked for, or nothing to be said)
    ``predictions``    what each engine would take for ``goal`` effective draws; infinite for one that refuses to run
    ``events``         probabilities of what the user named
    ``advice``         the recommendation, then what to beware of
    ``pool``           the draws themselves: of the prior, or from within the program's hard constraints
    ``prior``          draws of the prior itself (where there are constraints a quarter as many; else the same)
    ``cost``           of all of this
    """

    model: str
    lm: str
    prompts: tuple[str, ...]
    rewards: tuple[PriorReward, ...]
    written: Strength
    strengths: tuple[Strength, ...]
    answers: Answers | None
    sensitivities: tuple[Sensitivity, ...]
    slope: Estimate
    profile: Profile | None
    predictions: tuple[Prediction, ...]
    events: tuple[Event, ...]
    advice: tuple[str, ...]
    goal: int
    seed: int
    pool: Pool
    prior: Pool
    cost: Cost

    @property
    def num_draws(self) -> int:
        """Draws that all of this rests on."""
        return self.pool.num_draws

    @property
    def beta(self) -> float | None:
        """beta / weight of the only reward; None where there are several, or it is wanted small."""
        return self.pool.beta

    @property
    def doubt(self) -> str | None:
        """Why importance sampling with so many draws would not do; None: it will."""
        return doubt(self.pool, self.written)

    def __str__(self) -> str:
        return str(self.__rich__())

    __repr__ = __str__

    def __rich__(self) -> Any:
        from ppl_align.report.inspection import tables

        return tables(self)

    def figure(self) -> Figure:
        """One page: prior rewards, log Z and KL, E[r] and ESS over beta, the KL along the text, costs."""
        from ppl_align.report.inspection_figure import page

        return page(self)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the draws, JSON-able; None where a number has no meaning."""
        skipped = ("pool", "prior", "cost")
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in skipped}
        return jsonable(parts | {"num_draws": self.num_draws, "beta": self.beta, "cost": self.cost.as_dict()})

    def to_json(self) -> str:
        """:meth:`as_dict` as JSON."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False)

    def save(self, directory: str | Path) -> list[Path]:
        """Write ``inspection.json``, ``inspection.txt`` and ``inspection.png``; returns the paths."""
        folder = made_folder(directory)
        paths = [folder / f"inspection.{kind}" for kind in ("json", "txt", "png")]
        paths[0].write_text(self.to_json(), encoding="utf-8")
        paths[1].write_text(f"{self}\n", encoding="utf-8")
        self.figure().savefig(paths[2], dpi=130)
        return paths


def inspect(
    model: Callable[..., Any],
    *args: Any,
    num_draws: int = 512,
    events: Mapping[str, Callable[[str], bool]] | None = None,
    goal: int = 100,
    num_prefixes: int = 16,
    num_continuations: int = 8,
    seed: int = 0,
    progress: bool | Report | None = None,
    **kwargs: Any,
) -> Inspection:
    """Look at the target of ``model(*args, **kwargs)`` before any inference, with draws of its prior.

    ``num_draws``   of the prior. KL and log Z can be told up to about log(num_draws) nats; beyond, a ``~`` says so.
                    Where the program has hard constraints, so many from within them, and a quarter as many of the prior
    ``events``      by name, functions of one text: probability before and after, ``{"food": lambda t: "eat" in t}``
    ``goal``        effective draws that the costs are predicted for
    ``num_prefixes``, ``num_continuations``   for the KL along the text, at five cuts; ``num_prefixes=0`` leaves it out

    ``progress``    True for a bar on a terminal or in a notebook; or a function of (done, total, note)

    Same seed, same result; the global random numbers are left alone. Raises ``InputError`` for what the user can
    mend, ``ModelError`` for programs that engines cannot run, ``RewardError`` where a reward misbehaves.
    """
    at_least(2, num_draws=num_draws)
    at_least(1, goal=goal, num_continuations=num_continuations)
    at_least(0, num_prefixes=num_prefixes)
    if num_prefixes == 1:
        raise InputError("num_prefixes must be at least 2 (their spread is the error), or 0 to leave the profile out")
    if not callable(model):
        raise InputError(f"the first argument of inspect() is a Pyro program (a function), got {type(model).__name__}")
    with reporting(progress, "inspect") as tell, run_memory(), measure() as cost, isolated(mix(seed, "inspect")):
        known = known_constraints(Program(model, args, kwargs))
        within, masks = known.acting("mask", "test"), known.acting("mask")
        pool = draw_pool(model, args, kwargs, num_draws, tell, within)
        fewer = max(num_draws // SHARE, 2)
        prior = draw_pool(model, args, kwargs, fewer, tell) if pool.confined else pool
        paid = None
        if num_prefixes:  # it takes weights apart, for which log q must be exact: tests of text reject what is finished
            exact = pool if masks == within else draw_pool(model, args, kwargs, num_draws, tell, masks)
            paid = profile(exact, num_prefixes, num_continuations, tell)
        trials = try_engines(model, args, kwargs, pool, seed)
    grid, written, rewards = strengths(pool), strength(pool, 1.0), prior_rewards(pool)
    prices = predict(pool, prior, goal, trials)
    priors = pool.completions.values()
    prompts = {fn.lm.decode(prompt) for fn in priors for prompt in fn.prompts[:8]}
    return Inspection(
        model=getattr(model, "__name__", type(model).__name__),
        lm=", ".join(sorted({fn.lm.name for fn in priors})),
        prompts=tuple(sorted(prompts)),
        rewards=tuple(rewards),
        written=written,
        strengths=tuple(grid),
        answers=answers(pool, prior),
        sensitivities=tuple(sensitivities(pool)),
        slope=log_evidence_slope(pool),
        profile=paid,
        predictions=tuple(prices),
        events=tuple(event(pool, prior, name, happens) for name, happens in (events or {}).items()),
        advice=tuple(advise(pool, written, grid, rewards, trials)),
        goal=goal,
        seed=seed,
        pool=pool,
        prior=prior,
        cost=cost,
    )
