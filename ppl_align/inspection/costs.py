"""What each engine would take for a given number of effective draws, as far as the pool can tell. Nothing is guessed.

* importance sampling: N = goal (1 + chi2(p*||p0)) draws of the prior, Zhat then within sqrt(chi2 / N);
* rejection: N = goal / a with a = E[exp(psi - B)], where the largest value B of psi is known;
* SMC: a particle is at most one effective draw, so ``goal`` particles at least; what a twist saves is not known
  beforehand, and SMC without one, or with nothing to weigh before the end, draws as often as importance sampling;
* SVI: its default budget, counted; what the guide will have learned is not known beforehand;
* under a hard constraint the first, third and fourth draw from within it, as the pool does, and rejection does not: its
  draws have the price of those of the prior;
* exact: the number of sequences, where they can be listed, and what is scored for each.

An engine that refuses the program has no price, and its own words are the note: it is asked itself, by a trial as short
as it gets, two draws of each thing. A copy of an engine's rules would be right until one of them changes. Trials are
means to an end: they say nothing, and draw from random streams of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.errors import InputError, PplAlignError, first_line, type_and_line
from ppl_align.core.estimate import of_draws
from ppl_align.core.runs import nested_run
from ppl_align.core.seeds import isolated, mix
from ppl_align.engines import SMC, SVI, Enumeration, Rejection
from ppl_align.engines.base import Task
from ppl_align.engines.rejection.rejection import check_bounds
from ppl_align.inspection.pool import BATCH, Pool
from ppl_align.lm.completions import sequence_lengths
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.posterior.estimates import Estimate


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
        tested = bool(pool.known.acting("test").matchers)
        svi = "nothing keeps a guide to a test of text" if tested else refusal_of_svi(task, seed)
        return Trials(svi, smc_resamples(task, pool, seed))


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


@dataclass(frozen=True)
class Prediction:
    """``num_draws`` of whole programs (infinite: cannot be done), its standard error, LM tokens and seconds at the
    pool's speed (None: not known). ``at_least``: all of these are lower bounds. ``note``: what it rests on."""

    engine: str
    num_draws: Estimate
    lm_tokens: float | None
    seconds: float | None
    at_least: bool
    note: str


def predict(pool: Pool, prior: Pool, goal: int, trials: Trials = Trials()) -> list[Prediction]:
    """A line for each engine; ``goal`` effective draws (then Zhat is within about 1 / sqrt(goal)).

    ``prior``: draws of the prior itself, where the pool is from within hard constraints. ``trials``: what the engines
    said when they were asked."""
    w = pool.weighted(pool.psi)
    each = w.draws_per_effective
    sampling = Estimate(goal * each.value, goal * each.standard_error)
    note = "goal x (1 + chi2)" if w.enough else f"its {w.ess:.1f} effective draws cannot tell how many more"
    if not w.alive:
        ended = "end dead" if pool.confined else "are rejected"
        note = f"all {pool.num_draws} draws {ended}: rarer than {3 / pool.num_draws:.2g}"
    if pool.confined:
        note += f", from within {pool.constraints[0]!r}"
    found = [_line(pool, "importance", sampling, not w.enough, note)]
    if not w.alive:
        found.append(Prediction("smc", Estimate(math.nan, math.nan), None, None, False, note))
    elif trials.resamples:
        note = "at least the goal; a twist decides how many more"
        found.append(_line(pool, "smc", Estimate(goal, 0.0), True, note))
    else:
        note = "no weights before the end: it is importance sampling"
        found.append(_line(pool, "smc", sampling, not w.enough, note))
    return [*found, _svi(pool, trials), _rejection(pool, prior, goal), _exact(pool)]


def _line(drawn: Pool, engine: str, draws: Estimate, at_least: bool, note: str) -> Prediction:
    share, cost = draws.value / drawn.num_draws, drawn.cost
    tokens, seconds = (cost.lm_tokens + cost.scored_tokens) * share, cost.seconds * share
    if not math.isfinite(share):
        return Prediction(engine, draws, None, None, at_least, note)
    return Prediction(engine, draws, tokens, seconds, at_least, note)


def _refused(engine: str, why: str) -> Prediction:
    return Prediction(engine, Estimate(math.inf, math.nan), None, None, False, f"no: {why}")


def _svi(drawn: Pool, trials: Trials) -> Prediction:
    default = SVI()
    draws = (default.num_steps + default.num_replicates) * default.num_particles + 2  # two of a pilot
    if bool(drawn.log_weight.isneginf().any()):  # a dead end within constraints is a rejection, too
        return _refused("svi", "a rejection has no gradient")
    if trials.svi is not None:
        return _refused("svi", trials.svi)
    note = f"{default.num_steps} steps; what they reach is not known"
    if drawn.particles.environment:
        note += "; it decides, its draws are not of this posterior"
    return _line(drawn, "svi", Estimate(draws, 0.0), True, note)


def _rejection(pool: Pool, prior: Pool, goal: int) -> Prediction:
    try:
        check_bounds(pool.particles.log_upper, pool.particles.factors, pool.particles.scales)
    except PplAlignError as refusal:
        return _refused("rejection", str(refusal))
    bound = pool.log_bound
    if bound is None:
        drawn = [name for name, upper in pool.particles.log_upper.items() if isinstance(upper, Tensor)]
        return _refused("rejection", f"no largest value of {drawn[0]!r} is known: its weight")
    share = (pool.psi - bound).clamp_max(0.0).exp() * pool.log_ratio.exp()
    acceptance, error = of_draws(share)
    if acceptance == 0:
        return Prediction("rejection", Estimate(math.inf, math.nan), None, None, True, "could accept no draw")
    draws = goal / acceptance
    w = pool.weighted(pool.psi)
    note, most = f"accepts {100 * acceptance:.3g}%", Rejection().max_draws
    if draws > most:
        note += f"; raise max_draws= of {most:,}"
    return _line(prior, "rejection", Estimate(draws, draws * error / acceptance), not w.enough, note)


def _exact(pool: Pool) -> Prediction:
    total, tokens, engine = 1.0, 0.0, Enumeration()
    for name, fn in pool.sites.items():
        size = support_size(fn, min(BATCH, pool.num_draws))
        if size is None:
            return _refused("exact", f"{name!r} cannot be listed")
        tokens += total * size[1]
        total *= size[0]
    shown = f"{total:,.0f}" if total < 1e9 else f"1e{math.floor(math.log10(total))}" if total < math.inf else "too many"
    try:
        engine.refuse_too_many(total, name)
    except InputError:
        # top-p cuts some of what is counted
        up_to = "up to " if any(fn.warp.top_p is not None for fn in pool.completions.values()) else ""
        return _refused("exact", f"{up_to}{shown} sequences, more than {engine.max_sequences:,}")
    shared = len(pool.sites) > 1 or pool.cost.scored_tokens > 0
    note = f"all {shown} assignments" + ("; fewer tokens where they share a beginning" if shared else "")
    tokens += total * pool.cost.scored_tokens / pool.distinct(list(pool.sites))  # a text is scored once
    speed = pool.cost.seconds / max(pool.cost.lm_tokens + pool.cost.scored_tokens, 1)
    return Prediction("exact", Estimate(total, 0.0), tokens, tokens * speed, False, note)


def support_size(fn: Any, num_particles: int) -> tuple[float, float] | None:
    """(values of a latent site, LM tokens that it takes to list them), for one particle; None: it cannot be listed.

    An upper bound where the prior gives probability zero to some tokens or top-p cuts it."""
    batch = max(math.prod(fn.batch_shape) // num_particles, 1)
    if not isinstance(fn, CompletionDistribution):
        if not getattr(fn, "has_enumerate_support", False):
            return None
        return float(len(fn.enumerate_support(expand=False))) ** batch, 0.0
    vocab, length = fn.lm.vocab_size, fn.max_new_tokens
    ends = len(fn.terminal)
    if fn.warp.top_k is not None:
        vocab, ends = min(vocab, fn.warp.top_k), 0  # which of them are terminal differs from prefix to prefix
    try:
        going = [float(vocab - ends) ** t for t in range(length)]
        leaves = sum(ends * g for g in going[:-1]) + vocab * going[-1]
        return leaves**batch, sum(going[1:]) * batch
    except OverflowError:
        return math.inf, math.inf
