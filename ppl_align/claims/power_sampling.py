"""Power sampling as published is exact for texts of one length, and biased as soon as texts can end.

The power p0(x)^alpha of a language model, alpha > 1, prefers what is probable *as a whole*. Power sampling draws from
it by Metropolis-Hastings: cut the text x at a place i, each of its l(x) tokens as likely as any other, draw a new rest
at temperature 1/alpha, and accept by a ratio. With q the law of the new tokens, the exact ratio is

    p0(y)^alpha q(x_>=i | x_<i) / (p0(x)^alpha q(y_>=i | y_<i))   *   l(x) / l(y)

The last factor is there because the place is one of l(x) on the way out and one of l(y) on the way back. Where all
texts have one length it is 1, and the published rule is exact: its transition matrix is the exact rule's, entry by
entry.

Where texts can end, the published rule, re-implemented here from its description, differs in three things. It has no
factor l(x)/l(y). It cuts x to the length of y before it compares them. And y may be no longer than x, so that an end,
once accepted, cannot be undone in the same block of text, and the text is returned when the block is done. Here is what
each does alone, from transition matrices over all strings of four words and at most 6 tokens, at alpha = 2:

* no length factor: the moves leave `p0(x)^alpha l(x)` as it is, which is a closed form. Longer texts are preferred in
  proportion to their length; the total variation to p0^alpha is 0.273, however long it runs.
* comparing after a cut: another bias towards long texts, for what is cut off x does not count. Alone it is 0.003;
  with the first, 0.309.
* no growth within a block: a ratchet towards short texts. It leaves no law as it is but that of the shortest texts, so
  that more moves make it *worse*. It matters most: alone it does what all three do together.

All three together are at 0.38 after 10 moves in each block of 2 tokens and at 0.68 after 100, where the exact rule is
at 0.06 and at 0.00002. Part of it is text that never ended: where an ended text of 3 tokens is replaced by 3 others,
these may have no end, and the last block lets nothing grow. Counting only texts that are whole, it is still 0.38.

What is only half true. All this is a matter of how often texts end inside the window: never, and the rule is exact; a
single likely end (three words, alpha = 4), and without the ratchet little is wrong. For very few moves it is even
nearer than the exact rule, which starts with texts that are too long. These are toys; what it means for the accuracy on
a benchmark is not known from here. And the exact rule is exact in the limit only, as the left panel shows.

**In practice.** `MCMC(SuffixMH(proposal=at_temperature(1 / alpha)))` on a program with `power(...)` has the exact
ratio. Look at the lengths of texts, and run longer: if their mean keeps drifting, something is wrong.

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
from ppl_align.testing.delivery import delivered, total_variation
from ppl_align.testing.oracle import Oracle
from ppl_align.testing.programs import EOS

FOUR, FIXED = random_lm(4, 3, 1.5), random_lm(3, 1, 1.0, ends=False)
CASES = {"four words": (FOUR, 6), "three words": (EOS, 8)}
BLOCK, STEPS = 2, (1, 2, 5, 10, 20, 50, 100)
STATIONARY = {  # TV to p0^alpha of what the moves leave as it is: no length factor; the cut; both
    "four words, alpha=2": ("0.273", "0.003", "0.309"),
    "four words, alpha=4": ("0.172", "0.013", "0.259"),
    "three words, alpha=2": ("0.246", "0.000", "0.246"),
    "three words, alpha=4": ("0.008", "0.000", "0.008"),
}
PUBLISHED_TV = {2.0: ("0.38", "0.68"), 4.0: ("0.36", "0.39")}  # four words, after 10 and 100 moves in each block
EXACT_TV = {2.0: ("0.06", "0.00002"), 4.0: ("0.18", "0.002")}
WHOLE = {2.0: "0.38", 4.0: "0.15"}  # 100 moves, among texts that are whole
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
    for what, value, stated in zip(("no length factor", "the cut", "both"), away, STATIONARY[case], strict=True):
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
    for steps, stated in zip((10, 100), EXACT_TV[alpha], strict=True):
        found.rounds_to(f"{case}: exact rule, {steps} moves a block: TV", away["exact rule"][at[steps]], stated)
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
    found.rounds_to(f"{case}: the same among texts that are whole: TV", gap, WHOLE[alpha])
    few = away["published rule"][0]
    found.less(f"{case}: after 1 move: published rule nearer than exact", few, away["exact rule"][0])
    alone = total_variation(laws["no growth in a block"][-1], high)
    found.less(f"{case}: no growth alone, 100 moves: TV to all three < .01", alone, 0.01)
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
    exact, matrix = strings.target(), strings.step(EXACT, strings.limit)[0]
    law = torch.where(strings.whole, strings.log_p[:, -1].exp(), 0.0)
    for _ in range(256):
        law = law @ matrix
    found.less(f"{case}: exact rule, 256 steps from the prior: TV < .001", total_variation(law, exact), 0.001)
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
