"""Diagnostics that look at visited samples cannot see a mode that was not visited.

Let a region have prior mass a and half of the posterior. All n draws of the prior miss it with probability `(1 - a)^n`:
.905 for a = 1e-4 and n = 1000. Given that they miss, they are distributed exactly as draws that miss it in a world
where the region is worth nothing. So whatever is computed from draws and weights (ESS, Pareto k-hat, R-hat, the spread
of log Zhat, a standard error, a plot) has the same distribution in both worlds: a test that raises a false alarm with
probability alpha detects the mode with probability at most `alpha + 1 - (1 - a)^n`. No cleverer diagnostic of the same
draws exists, and more replicates help only by being more draws.

What such a run reports is right about what it saw: log Z without the region (too low by log 2), expectations under the
visited half, standard errors for those. Zhat is unbiased all the same: the few runs that do hit the mode overshoot, and
pay for the others. They also look terrible, one draw carries everything. A good ESS and a bad estimate go together. SMC
misses it in the same way, unless a prefix is already rewarded before the rare token is drawn: resampling multiplies
only what was drawn.

What does see it has to come from the posterior's side. Half of all exact draws lie in the mode, so ten of them miss it
with probability 1e-3. Retained in a conditional run they give the upper half of a sandwich of log Z, and its gap opens.
`Rejection` finds the mode too, but not by magic: its `upper=` says how large a weight can be, and it keeps drawing
until a weight of that size has had its chance, `exp(upper/beta) / Z` draws for each one accepted. The same bound makes
an honest statement out of n prior draws: with 95% confidence *one* region, named before looking, that all of them
missed has prior mass below 3/n, so it adds at most `3/n exp(upper/beta)` to Z. It has to be named first: the set of all
texts that were not drawn was missed too, and can have prior mass near 1. That is a poor bound, and without knowing more
there is no better.

What is only half true. The diagnostics are not useless: they do detect proposals that are bad where they have been.
And how well a mode is hidden depends on the proposal: a guide trained at a larger beta, another prompt, a reward with
partial credit can make a = 1e-4 into a = 1e-2, and then 1000 draws are plenty.

**In practice.** Read "k-hat is fine" as "nothing is wrong where I looked". Ask what a rare completion could earn: if
`p0 exp(r/beta)` of something you can write down by hand is a sizeable share of Zhat, there is a mode, and scoring that
one text says so at once. Prefer rewards with known bounds. Where exact draws can be had (a small problem of the same
kind, a likelihood that can be simulated, `Rejection`) take ten of them.

Source: Grosse, Ghahramani & Adams 2015 (arXiv:1511.02543); Vehtari et al. 2024 (arXiv:1507.02646) for k-hat.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_align import SMC, ImportanceSampling, MarkovLM, Posterior, Rejection, completion, evidence_bounds, reward
from ppl_align.claims.drawing import PALETTE, Axes, caption, panels
from ppl_align.claims.findings import Findings
from ppl_align.core.estimate import of_draws
from ppl_align.posterior.run_summary import summary_of
from ppl_align.rewards.tokens import TokenSum
from ppl_align.testing.oracle import Oracle

RARE, COMMON, BETA, DRAWS, RUNS = 1e-4, 60, 0.5, 1000, 200


def author(where: int, rare: float) -> MarkovLM:
    """Common tokens, and one that comes at position ``where`` only, with probability ``rare`` after anything."""
    generator = torch.Generator().manual_seed(where)
    logits = torch.randn(2, COMMON + 1, COMMON + 1, generator=generator, dtype=torch.float64)
    logits[..., COMMON] = -torch.inf
    logits = logits.log_softmax(-1)
    logits[where] += math.log1p(-rare)
    logits[where, :, COMMON] = math.log(rare)
    return MarkovLM(logits, name="author")


def story(where: int, jackpot: float, rare: float = RARE) -> None:
    """Two tokens, each worth at most 0.3; the rare one is worth ``jackpot``."""
    values = 0.3 * torch.sin(torch.arange(2 * (COMMON + 1), dtype=torch.float64) ** 2).reshape(2, -1)
    values[:, COMMON] = jackpot
    x = completion("x", author(where, rare), [0], max_new_tokens=2)
    reward("score", TokenSum(values), x.tokens, beta=BETA, upper=0.3 + max(0.3, jackpot))


def in_mode(posterior: Posterior) -> Tensor:
    """Which draws have the rare token, [R, N]."""
    return (posterior.completions["x"].tokens == COMMON).any(-1)


def half(where: int, rare: float = RARE) -> float:
    """The jackpot with which the texts that have the rare token are half of the posterior."""
    plain = Oracle(story, where, 0.0, rare)
    share = plain.mean(in_mode(plain.posterior)[0])
    return BETA * float(((1 - share) / share).log())


def study(found: Findings) -> None:
    """The rare token comes first, or last."""
    for where, name in ((0, "first"), (1, "last")):
        jackpot = half(where)
        oracle = Oracle(story, where, jackpot)
        inside = in_mode(oracle.posterior)[0]
        found.equal(f"rare token {name}: prior mass of the mode", oracle.mean(inside, oracle.log_prior), RARE)
        found.equal(f"rare token {name}: its posterior mass", oracle.mean(inside), 0.5)
        many_runs(found, name, where, oracle)
    found.rounds_to("chance that 1000 draws miss it", (1 - RARE) ** DRAWS, "0.905")
    jackpot = half(0)
    one_run(found, jackpot, Oracle(story, 0, jackpot))
    sandwich(found, jackpot, Oracle(story, 0, jackpot))
    rejection(found)


def many_runs(found: Findings, name: str, where: int, oracle: Oracle) -> None:
    """Runs of 1000 draws, in this world and in the one where the rare token is worth nothing."""
    engine = ImportanceSampling(DRAWS, num_replicates=RUNS)
    run, other = (engine.run(story, where, worth, seed=found.seed) for worth in (half(where), 0.0))
    missed = ~in_mode(run).any(-1)
    blind = (1 - RARE) ** DRAWS
    error = math.sqrt(blind * (1 - blind) / RUNS)
    found.agrees(f"{name}: share of runs that miss it", missed.double().mean(), error, blind)
    same = torch.equal(run.log_weight[missed], other.log_weight[missed])
    found.holds(f"{name}: those have the weights of a world without it", same, "identical" if same else "different")
    ratio = (run.log_evidence - oracle.log_evidence).exp()
    quiet, loud = ratio[missed], ratio[~missed]
    found.agrees(f"{name}: Zhat/Z where missed", *of_draws(quiet), 0.5 / (1 - RARE))
    found.holds(f"{name}: Zhat/Z where hit is above 2", bool(loud.min() > 2), f"{loud.min():.2f} or more")
    square = torch.logsumexp(oracle.log_prior + 2 * oracle.log_potential, 0) - 2 * oracle.log_evidence
    error = math.sqrt(math.expm1(float(square)) / DRAWS / RUNS)  # exact: the draws do not know it
    found.agrees(f"{name}: E[Zhat]/Z, all runs", ratio.mean(), error, 1.0)
    effective = run.importance_weights.ess
    least, most = float(effective[missed].min()), float(effective[~missed].max())
    found.holds(f"{name}: ESS where missed is above 600 of 1000", least > 600, f"{least:.0f} or more")
    found.holds(f"{name}: ESS where hit is below 10", most < 10, f"{most:.1f} or less")
    smc = SMC(DRAWS, num_replicates=RUNS // 2, twist="prefix").run(story, where, half(where), seed=found.seed)
    share, error = (~in_mode(smc).any(-1)).double().mean(), math.sqrt(blind * (1 - blind) / (RUNS // 2))
    found.agrees(f"{name}: share of runs of SMC that miss it", share, error, blind)
    found.data[name] = {"ratio": ratio.log(), "ess": effective, "missed": missed}


def one_run(found: Findings, jackpot: float, oracle: Oracle) -> None:
    """What the owner of a run that missed the mode gets to see: four replicates, every column."""
    engine = ImportanceSampling(DRAWS, num_replicates=4)
    attempts = (engine.run(story, 0, jackpot, seed=1000 * found.seed + attempt) for attempt in range(100))
    run = next(run for run in attempts if not bool(in_mode(run).any()))
    told = summary_of(run)
    found.less("a run that missed it: k-hat", told.pareto_k or math.inf, 0.5, run=True)
    found.less("a run that missed it: R-hat of E[score]", told.rhats.get("score", math.inf), 1.01, run=True)
    found.less("a run that missed it: spread of log Zhat, nats", told.spread or math.inf, 0.1, run=True)
    off = abs(told.log_evidence - oracle.log_evidence) / (told.standard_error or math.inf)
    found.greater("a run that missed it: error of log Z / its stated standard error", off, 20, run=True)
    score, error = run.mean("score")
    off = abs(score - float(oracle.mean("score"))) / error
    found.greater("a run that missed it: error of E[score] / its stated standard error", off, 100, run=True)
    honest = math.exp(told.log_evidence) + 3 / (4 * DRAWS) * math.exp((0.3 + jackpot) / BETA)
    # for this one region, which was named before looking: its prior mass, 1e-4, is below 3/n
    found.less(
        "named beforehand, mass < 3/n: log Z, below log(Zhat + 3/n exp(upper/beta))",
        oracle.log_evidence,
        math.log(honest),
        run=True,
    )


def sandwich(found: Findings, jackpot: float, oracle: Oracle) -> None:
    """Exact draws are in the mode half of the time; retained, they open the gap between the bounds."""
    engine = ImportanceSampling(DRAWS, num_replicates=300)
    exact = oracle.sample(1, 300, seed=found.seed)
    found.agrees("share of exact draws in the mode", *of_draws(in_mode(exact).double().flatten()), 0.5)
    bounds = evidence_bounds(engine, story, 0, jackpot, exact=exact, seed=found.seed)
    empty = Oracle(story, 0, 0.0).sample(1, 300, seed=found.seed)
    without = evidence_bounds(engine, story, 0, 0.0, exact=empty, seed=found.seed)
    low, high = bounds.standard_errors
    noise = math.hypot(*without.standard_errors)
    found.less("E[log Zhat] < log Z", bounds.lower.mean(), oracle.log_evidence, low)
    found.greater("E[log Zhat_c] > log Z", bounds.upper.mean(), oracle.log_evidence, high)
    found.less("gap of the bounds in a world without the mode, nats", without.gap, 0.02, noise)
    found.greater(
        "gap with the mode, above 20 times the gap without it",
        bounds.gap,
        20 * abs(without.gap),
        math.hypot(low, high, 20 * noise),
    )
    found.data["bounds"] = (bounds.lower - oracle.log_evidence, bounds.upper - oracle.log_evidence)


def rejection(found: Findings) -> None:
    """The engine that draws until a weight of the largest size had its chance; with a = 1e-2, to be quick."""
    jackpot = half(0, 1e-2)
    oracle = Oracle(story, 0, jackpot, 1e-2)
    run = Rejection(10, num_replicates=10, max_draws=10**6).run(story, 0, jackpot, 1e-2, seed=found.seed)
    found.agrees("a=1e-2: share of Rejection's draws in the mode", *of_draws(in_mode(run).double().flatten()), 0.5)
    exact = math.exp(oracle.log_evidence - (0.3 + jackpot) / BETA)
    accepted = 99 / (float(run.history["num_draws"].sum()) - 1)
    found.agrees("a=1e-2: acceptance, Z/exp(upper/beta)", accepted, exact / 10, exact)


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """Runs by ESS and error; the sandwich."""
    seen = found.data["first"]
    for i, (mask, label) in enumerate(((seen["missed"], "missed the mode"), (~seen["missed"], "hit it"))):
        left.scatter(seen["ess"][mask], seen["ratio"][mask], s=14, color=PALETTE[i], alpha=0.6, lw=0, label=label)
    left.axhline(0, color="black", lw=1)
    caption(left, "The runs that look perfect are wrong", "effective sample size, of 1000", "log Zhat - log Z   [nats]")
    left.legend(loc="upper right")
    lower, upper = found.data["bounds"]
    edges = torch.linspace(-1, 3, 41).tolist()
    right.hist(lower.tolist(), edges, color=PALETTE[0], alpha=0.7, label="plain runs: below, on average")
    right.hist(upper.tolist(), edges, color=PALETTE[1], alpha=0.7, label="exact draw retained: above")
    right.axvline(0, color="black", lw=1)
    caption(right, "One exact draw in each run opens the gap", "log Zhat - log Z   [nats]", "runs, of 300")
    right.legend()
