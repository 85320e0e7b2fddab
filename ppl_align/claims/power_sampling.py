"""Power sampling needs the length of a text in its acceptance ratio, as soon as texts can end.

The power p0(x)^alpha of a language model, alpha > 1, prefers what is probable *as a whole*. Power sampling draws from
it by Metropolis-Hastings: cut the text x at a place i, each of its l(x) tokens as likely as any other, draw a new rest
at temperature 1/alpha, and accept by a ratio. With q the law of the new tokens, the exact ratio is

    p0(y)^alpha q(x_>=i | x_<i) / (p0(x)^alpha q(y_>=i | y_<i))   *   l(x) / l(y)

The last factor is there because the place i is chosen among l(x) places on the way out and among l(y) on the way back.
Where all texts have one length it is 1, and the published rule is exact, as the tables of no EOS below say to rounding.

Where texts can end, the published rule (re-implemented here from its description) differs in three things. It has no
factor l(x)/l(y). It cuts x to the length of y before it compares them. And y may be no longer than x, so that an end,
once accepted, cannot be undone in the same block of text, and the text is returned at the end of that block. Below is
what each of them does alone, from exact transition matrices over all strings, without simulation:

* no length factor: the moves leave `p0(x)^alpha l(x)` as it is. That is a closed form: longer texts are preferred in
  proportion to their length. Most of the error that remains after many steps, where texts may grow, comes from this.
* comparing after a cut: also a bias towards long texts, since what is cut off x is not counted against y; small alone.
* no growth within a block: a ratchet towards short texts. No law over texts is left as it is, every further step
  shortens them, and *more steps make it worse*. It also leaves texts that have not ended and grow no further: where an
  ended text of 3 tokens is replaced, so it is by 3 tokens, ended or not.

The first and the third push in opposite directions, so that for a few steps they may cancel in part. That is luck.

What is only half true. How much of this matters is a matter of how often texts end within the window: never, and the
rule is exact. These are toys of three and four words whose every text is listed; what it means for the accuracy on a
benchmark is not known from here. And the exact rule is exact in the limit: after ten steps in a block it is some way
from its target too, as the figure shows.

**In practice.** `MCMC(SuffixMH(proposal=at_temperature(1 / alpha)))` on a program with `power(...)` has the exact ratio.
Let texts end, look at their lengths, and run more steps: if the mean length keeps drifting, something is wrong.

Source: Karan & Du 2025 (arXiv:2510.14901), re-implemented; suffix moves: Faria et al. 2024 (arXiv:2406.00049).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_align import MCMC, MarkovLM, completion, power
from ppl_align.claims._power_rule import EXACT, PUBLISHED, Rule, Strings, random_lm
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, note, panels
from ppl_align.claims.findings import Findings
from ppl_align.core.estimate import of_draws
from ppl_align.kernels import SuffixMH, at_temperature
from ppl_align.testing.delivered import delivered, total_variation
from ppl_align.testing.oracle import Oracle
from ppl_align.testing.programs import EOS

FOUR, FIXED = random_lm(4, 3, 1.5), random_lm(3, 1, 1.0, ends=False)
CASES = {"four words": (FOUR, 6), "three words": (EOS, 8)}
BLOCK, STEPS = 2, (1, 2, 5, 10, 20, 50, 100)
STATIONARY = {  # TV to p0^alpha of what the moves leave as it is: no length factor; that and the cut
    "four words, alpha=2": ("0.273", "0.309"),
    "four words, alpha=4": ("0.172", "0.259"),
    "three words, alpha=2": ("0.246", "0.246"),
    "three words, alpha=4": ("0.008", "0.008"),
}
PUBLISHED_TV = {2.0: ("0.38", "0.68"), 4.0: ("0.36", "0.39")}  # four words, after 10 and 100 moves in each block
UNENDED = {2.0: ("0.38", "0.68"), 4.0: ("0.23", "0.39")}
ALONE = {
    "no length factor": Rule(no_length=True),
    "compared after a cut": Rule(truncates=True),
    "no growth in a block": Rule(ratchet=True),
}


def sharpened(lm: MarkovLM, length: int, alpha: float) -> None:
    """A text of at most so many tokens, and a power of its probability."""
    text = completion("text", lm, [], max_new_tokens=length)
    power("sharp", text, alpha)


def study(found: Findings) -> None:
    """The published rule against the exact one; each difference alone; no EOS; the library's chains."""
    found.data["curves"], found.data["lengths"] = {}, {}
    for name, (lm, length) in CASES.items():
        for alpha in (2.0, 4.0):
            strings = Strings(lm, length, alpha)
            case = f"{name}, alpha={alpha:g}"
            invariant(found, case, strings)
            if lm is FOUR:
                samplers(found, case, strings, alpha)
                chains(found, case, strings, alpha)
    without_end(found)


def invariant(found: Findings, case: str, strings: Strings) -> None:
    """What the moves of a block leave as it is, where texts may grow."""
    target = strings.target()
    found.equal(f"{case}: exact rule, TV", total_variation(strings.stationary(EXACT), target), 0.0)
    tilted = target * strings.length
    alone = strings.stationary(Rule(no_length=True))
    law = total_variation(alone, tilted / tilted.sum())
    found.equal(f"{case}: no length factor: TV to p0^alpha l(x)", law, 0.0)
    both = strings.stationary(Rule(no_length=True, truncates=True))
    cut = strings.stationary(Rule(truncates=True))
    away = [float(total_variation(one, target)) for one in (alone, cut, both)]
    found.greater(f"{case}: no length factor: TV > that of a cut alone", away[0], away[1])
    for what, value, stated in zip(("no length factor", "both"), (away[0], away[2]), STATIONARY[case], strict=True):
        found.rounds_to(f"{case}: {what}: TV", value, stated)
    found.greater(
        f"{case}: both: mean length > that of p0^alpha", mean_length(strings, both), mean_length(strings, target)
    )


def samplers(found: Findings, case: str, strings: Strings, alpha: float) -> None:
    """What comes out after text has grown block by block, with so many moves in each block."""
    target, rules = strings.target(), {"exact rule": EXACT, "published rule": PUBLISHED, **ALONE}
    laws = {name: strings.sampler(rule, BLOCK, STEPS) for name, rule in rules.items()}
    away = {name: total_variation(law, target).tolist() for name, law in laws.items()}
    found.data["curves"][alpha] = away
    found.data["lengths"][alpha] = {name: [mean_length(strings, law) for law in laws[name]] for name in rules}
    at = {steps: i for i, steps in enumerate(STEPS)}
    found.less(f"{case}: exact rule, 100 moves a block: TV < .003", away["exact rule"][-1], 0.003)
    for steps, stated, left in zip((10, 100), PUBLISHED_TV[alpha], UNENDED[alpha], strict=True):
        gap, law = away["published rule"][at[steps]], laws["published rule"][at[steps]]
        found.rounds_to(f"{case}: published rule, {steps} moves a block: TV", gap, stated)
        found.rounds_to(f"{case}: and it leaves unended, below 6 tokens", law[~strings.whole].sum(), left)
        found.greater(f"{case}: published rule, {steps} moves: TV > exact", gap, away["exact rule"][at[steps]])
    low, high = laws["published rule"][at[10]], laws["published rule"][-1]
    found.less(
        f"{case}: published: mean length at 100 moves < at 10", mean_length(strings, high), mean_length(strings, low)
    )
    found.less(f"{case}: and < that of p0^alpha", mean_length(strings, high), mean_length(strings, target))
    whole = torch.where(strings.whole, high, 0.0)
    gap = float(total_variation(whole / whole.sum(), target))
    found.greater(f"{case}: the same among texts that are whole: TV > .1", gap, 0.1)
    found.greater(f"{case}: no growth alone, 100 moves: TV > no length factor's", away["no growth in a block"][-1],
                  away["no length factor"][-1])  # fmt: skip


def mean_length(strings: Strings, law: Tensor) -> float:
    """Tokens, EOS included."""
    return float((law * strings.length).sum())


def without_end(found: Findings) -> None:
    """All texts have one length: the rules are one rule."""
    for alpha in (2.0, 4.0):
        strings = Strings(FIXED, 6, alpha)
        both = [strings.step(rule, 6)[0][strings.whole] for rule in (EXACT, PUBLISHED)]
        apart = (both[0] - both[1]).abs().max()
        found.equal(f"no EOS, alpha={alpha:g}: the transition matrices differ by", apart, 0.0)
        law = total_variation(strings.stationary(PUBLISHED), strings.target())
        found.equal(f"no EOS, alpha={alpha:g}: published rule, TV", law, 0.0)


def chains(found: Findings, case: str, strings: Strings, alpha: float) -> None:
    """The library's chains: as often accepted as the matrix of the exact rule says, and at its target."""
    oracle = Oracle(sharpened, FOUR, strings.limit, alpha)
    exact = strings.target()
    kernel = SuffixMH(proposal=at_temperature(1 / alpha))
    begun = MCMC(kernel, 2000, 1, 0, init=oracle.sample(1, 2000, seed=found.seed))
    accepted = begun.run(sharpened, FOUR, strings.limit, alpha, seed=found.seed).history["accepted"][0]
    found.agrees(f"{case}: MCMC, accepted", *of_draws(accepted.double()),
                 exact @ strings.step(EXACT, strings.limit)[1])  # fmt: skip
    run = MCMC(kernel, 200, 128, 128).run(sharpened, FOUR, strings.limit, alpha, seed=found.seed)
    away = delivered(run, oracle)
    found.less(
        f"{case}: MCMC, 256 steps: TV < twice the noise floor", away.total_variation, 2 * away.noise_floor, run=True
    )
    drawn = of_draws(run.completions["text"].lengths.double().mean(-1))
    found.agrees(f"{case}: MCMC, 256 steps: mean length", *drawn, mean_length(strings, exact))


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """Distance and length against the moves in each block, alpha = 2."""
    colours = dict(zip(found.data["curves"][2.0], (*PALETTE[:2], GREY, GREY, GREY), strict=True))
    styles = dict(zip(ALONE, (":", "-.", "--"), strict=True))
    for axes, seen in ((left, found.data["curves"][2.0]), (right, found.data["lengths"][2.0])):
        for name, row in seen.items():
            axes.semilogx(STEPS, row, color=colours[name], lw=1.8 if name not in ALONE else 1.2,
                          ls=styles.get(name, "-"), marker="o" if name not in ALONE else None, ms=4,
                          label=name)  # fmt: skip
    left.legend()
    caption(left, "More moves make the published rule worse", "moves in each block", "total variation to p0^alpha")
    caption(right, "It shortens texts for as long as it runs", "moves in each block", "mean length   [tokens]")
    note(
        right, "no length factor: too long", (STEPS[3], found.data["lengths"][2.0]["no length factor"][3]), (0, 6), GREY
    )


__all__ = ["figure", "sharpened", "study"]
