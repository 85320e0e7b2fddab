"""Particles must be weighed by what a step adds to the score of a process reward model, not by the score.

A process reward model says after every step how likely an answer is still to come out right, `PRM_t`. Particle filters
let N answers grow, weigh them by it after each step and copy the good ones. Which distribution does that draw from? Two
are meant, with odds `o_t = PRM_t / (1 - PRM_t)` and l the number of steps of an answer:

    (i)   p0(x) o_l(x)               the prior, times what is said of the finished answer
    (ii)  p0(x) o_1(x) ... o_l(x)    the prior, times what is said after every step

The rule that is commonly shipped, re-implemented here from its description, weighs by the *absolute* odds at every
step; finished answers stay in the population and their odds are applied again at every later step; in the end one
answer is drawn by a softmax of the final scores, although the population has just been resampled by them. As N grows,
what comes out is not (i) and not (ii) but, with T the largest number of steps,

    p0(x) o_1(x) ... o_l(x) o_l(x)^(T - l) o_l(x)

a closed form. So an answer that is finished early and well is counted T - l + 1 times more, one that is finished early
and badly is punished as often. On film reviews of at most 5 words its total variation to (i) is 0.70 and to (ii) is
0.27, however many particles there are. Drawing the answer evenly from the resampled population takes the last factor
away, and brings it no nearer: 0.33 to (ii), for the two errors had cancelled in part.

Weighing by increments has neither fault: after a step the weight is multiplied by `o_t / o_(t-1)` for (i), by `o_t` for
(ii), and what is finished is multiplied by 1. The products telescope to the target, and the law of what is delivered
converges to it: below .01 with 1,024 particles, for both. A step costs the same.

What is only half true. Where all answers take the same number of steps, nothing is counted again, and if the answer is
drawn evenly as well, the shipped rule is exact for (ii). And it may well find better answers by the measure of a
benchmark than either target would: it is a sharper distribution, whose sharpness depends on T. That it is the
posterior of something that one wrote down, it is not.

**In practice.** Decide which target is meant. In this library the program says it, `reward("prm", ...)` on the finished
text, and the twist is a function of the unfinished ones: `SMC(twist=lambda prefixes: log_odds(prefixes))`. Whatever the
twist, the target is the program's, and finished answers count once.

Source: particle filtering with process rewards: Puri et al. 2025 (arXiv:2502.01618); increments: Naesseth et al. 2019
(arXiv:1903.04797); twists: Zhao et al. 2024 (arXiv:2404.17546).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_align import SMC, MarkovLM, completion, reward
from ppl_align.claims._power_rule import random_lm
from ppl_align.claims._toys import CRITIC
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, panels
from ppl_align.claims.findings import Findings
from ppl_align.testing.delivery import delivered, total_variation
from ppl_align.testing.oracle import Oracle

STEPS = 5
FIXED = random_lm(3, 1, 1.0, ends=False)
SIZES = {16: 24_000, 64: 6000, 256: 2000, 1024: 600}
"""Particles, and runs of so many: their product keeps the noise of a law alike."""
WORTH = torch.tensor([0.0, 0.8, -0.8, 0.1], dtype=torch.float64)
STATED = {"shipped to (i)": "0.70", "shipped to (ii)": "0.27", "evenly to (ii)": "0.33"}


def log_odds(tokens: Tensor) -> Tensor:
    """What the process reward model says of the steps so far, [...]: words by their worth, twice that after "very"."""
    worth = WORTH[tokens]
    very = (tokens[..., :-1] == 3) * worth[..., 1:]
    return 0.2 + worth.sum(-1) + very.sum(-1)


def each_step(tokens: Tensor, ends: bool) -> tuple[Tensor, Tensor]:
    """Log odds after every step, [..., t], and which steps were taken, bool: those up to the end, token 0."""
    said = torch.stack([log_odds(tokens[..., : t + 1]) for t in range(tokens.shape[-1])], -1)
    before = (tokens == 0).long().cumsum(-1) - (tokens == 0).long()
    return said, (before == 0) | (not ends)


def final(lm: MarkovLM) -> None:
    """Target (i): the prior, times the odds of the finished answer."""
    x = completion("x", lm, [], max_new_tokens=STEPS)
    reward("prm", log_odds, x.tokens)


def every_step(lm: MarkovLM) -> None:
    """Target (ii): the prior, times the odds after every step."""
    x = completion("x", lm, [], max_new_tokens=STEPS)
    reward("prm", lambda tokens: product(tokens, lm.eos_id is not None), x.tokens)


def product(tokens: Tensor, ends: bool = True) -> Tensor:
    """The log of the product of the odds, [...]."""
    said, taken = each_step(tokens, ends)
    return torch.where(taken, said, 0.0).sum(-1)


def shipped(lm: MarkovLM, particles: int, runs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The rule as re-implemented: answers [runs, particles, STEPS] after the last resampling, and their log odds."""
    assert lm.log_initial is not None
    first, table = lm.log_initial.double().softmax(-1), lm.log_table.double().softmax(-1)
    tokens = torch.zeros(runs, particles, 0, dtype=torch.long)
    finished = torch.zeros(runs, particles, dtype=torch.bool)
    for _ in range(STEPS):
        law = table[tokens[..., -1]] if tokens.shape[-1] else first.expand(runs, particles, -1)
        token = torch.multinomial(law.reshape(-1, law.shape[-1]), 1, generator=generator).reshape(runs, particles)
        tokens = torch.cat([tokens, torch.where(finished, 0, token)[..., None]], -1)
        finished = finished | (token == lm.eos_id) if lm.eos_id is not None else finished
        chance = log_odds(tokens).softmax(-1)  # absolute, and of what has finished as well
        kept = torch.multinomial(chance, particles, replacement=True, generator=generator)
        tokens = tokens.gather(1, kept[..., None].expand_as(tokens))
        finished = finished.gather(1, kept)
    return tokens, log_odds(tokens)


def limits(oracle: Oracle, ends: bool) -> dict[str, Tensor]:
    """What the rule converges to, [S]: its last draw by a softmax, and evenly."""
    tokens = oracle.values["x"]
    said, taken = each_step(tokens, ends)
    last = log_odds(tokens)
    again = (STEPS - taken.sum(-1)) * last
    evenly = oracle.log_prior + torch.where(taken, said, 0.0).sum(-1) + again
    return {"shipped": (evenly + last).softmax(0), "evenly": evenly.softmax(0)}


def law_of(tokens: Tensor, weight: Tensor, oracle: Oracle) -> Tensor:
    """The law of one draw by ``weight`` [runs, particles], averaged over runs, [S]."""
    digits = 4 ** torch.arange(STEPS)
    numbers, order = (oracle.values["x"] * digits).sum(-1).sort()
    place = order[torch.searchsorted(numbers, (tokens * digits).sum(-1))]
    law = torch.zeros(len(order), dtype=torch.float64)
    return law.index_add_(0, place.reshape(-1), weight.reshape(-1)) / len(weight)


def study(found: Findings) -> None:
    """The limits exactly; the shipped rule as N grows; increments as N grows; answers of one length."""
    targets = {"(i)": Oracle(final, CRITIC), "(ii)": Oracle(every_step, CRITIC)}
    limit = limits(targets["(i)"], ends=True)
    for what, stated in STATED.items():
        rule, target = what.split(" to ")
        away = total_variation(limit[rule], targets[target].log_target.exp())
        found.rounds_to(f"reviews, N to infinity: {what}: TV", away, stated)
    as_shipped(found, targets, limit)
    by_increments(found, targets)
    one_length(found)


def as_shipped(found: Findings, targets: dict[str, Oracle], limit: dict[str, Tensor]) -> None:
    """It converges, to something else."""
    generator = torch.Generator().manual_seed(found.seed)
    curves: dict[str, list[float]] = {name: [] for name in (*targets, "limit")}
    for size, runs in SIZES.items():
        tokens, score = shipped(CRITIC, size, runs, generator)
        law = law_of(tokens, score.softmax(-1), targets["(i)"])
        for name, oracle in targets.items():
            curves[name].append(float(total_variation(law, oracle.log_target.exp())))
        curves["limit"].append(float(total_variation(law, limit["shipped"])))
    found.less("shipped, N=1024: TV to the closed form < .03", curves["limit"][-1], 0.03, run=True)
    for name, oracle in targets.items():
        plateau = float(total_variation(limit["shipped"], oracle.log_target.exp()))
        found.greater(f"shipped, N=1024: TV to {name} > its plateau - .03", curves[name][-1], plateau - 0.03, run=True)
    found.data["shipped"] = curves


def by_increments(found: Findings, targets: dict[str, Oracle]) -> None:
    """SMC with a function of prefixes as its twist, on both targets."""
    twists = {"(i)": lambda p: log_odds(p.tokens), "(ii)": lambda p: product(p.tokens)}
    found.data["increments"], found.data["floor"] = {}, {}
    for name, program in (("(i)", final), ("(ii)", every_step)):
        curve = []
        for size, runs in SIZES.items():
            smc = SMC(size, runs, twist=twists[name])
            curve.append(delivered(smc.run(program, CRITIC, seed=found.seed), targets[name]))
        away = [one.total_variation for one in curve]
        found.less(f"increments, {name}: TV at N=64 < half of that at N=16", away[1], away[0] / 2, run=True)
        found.less(f"increments, {name}: TV at N=1024 < .01", away[-1], 0.01, run=True)
        found.data["increments"][name] = away
        found.data["floor"][name] = [one.noise_floor for one in curve]


def one_length(found: Findings) -> None:
    """No answer ends early: the shipped rule is exact for (ii), if the answer is drawn evenly."""
    target = Oracle(every_step, FIXED)
    limit = limits(target, ends=False)
    law = target.log_target.exp()
    found.equal(
        "one length: shipped, drawn evenly, N to infinity: TV to (ii)", total_variation(limit["evenly"], law), 0.0
    )
    found.greater("one length: shipped, drawn by softmax: TV to (ii) > .1", total_variation(limit["shipped"], law), 0.1)
    generator = torch.Generator().manual_seed(found.seed)
    tokens, score = shipped(FIXED, 1024, 200, generator)
    evenly = law_of(tokens, torch.full_like(score, 1 / 1024), target)
    found.less(
        "one length: shipped, drawn evenly, N=1024: TV to (ii) < .03", total_variation(evenly, law), 0.03, run=True
    )


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """Total variation against particles, for both targets."""
    sizes, axes = list(SIZES), {"(i)": left, "(ii)": right}
    for name, panel in axes.items():
        curves = (found.data["shipped"][name], found.data["increments"][name], found.data["floor"][name])
        for i, (curve, label) in enumerate(zip(curves, ("absolute scores, as shipped", "increments", ""), strict=True)):
            colour, style = (GREY, "--") if i == 2 else (PALETTE[1 - i], "-")
            panel.loglog(sizes, curve, color=colour, ls=style, lw=1.2 if i == 2 else 1.8,
                         marker=None if i == 2 else "o", ms=4, label=label or "noise floor")  # fmt: skip
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.set_xticks([], minor=True)
    left.legend()
    caption(left, "(i) prior x final odds", "particles N", "total variation of one delivered draw")
    caption(right, "(ii) prior x odds of every step", "particles N")


__all__ = ["figure", "study"]
