"""Powers of a language model can be drawn by SMC, almost exactly; the best temperature is not always 1/alpha.

Sequential Monte Carlo for p0(x)^alpha draws each token at a temperature, weighs the particles and copies the good ones.
At temperature 1/alpha the weight of a token is `sum_v p0(v | x_<t)^alpha`, whatever the token is, so that it varies
least: that is the choice of Power-SMC. On the way the exponent may climb a ramp, `p0(x_<=t)^alpha_t` with alpha_t from
1 to alpha over so many tokens, so that a text with a bad beginning has time to recover.

What is delivered is one draw, so the law of *that draw* is what has to be near the target, over everything random in
the run. It is measured by averaging the normalised weights of 2,000 runs of 256 particles on a model of four words
whose 1,093 texts can all be listed, many of which end early. Its total variation to p0^alpha is below .01 at alpha = 2
and 4, at a noise of the average, printed beside it, below .003.

A ramp has a trap where texts end. What has ended has its full price p0(x)^alpha; what has not ended has paid only
p0(x_<=t)^alpha_t, with the rest still to come. Beside it finished text looks improbable and is lost, and when the ramp
is climbed it is too late: with a ramp of 8 tokens on texts of 6 the total variation is above .05. If the finished texts
climb the same ramp (`PowerRamp` says so to SMC) it is below .01 again.

What is only half true. On texts as short as these a ramp is of no use: without one (`tokens=0`) the total variation is
below .01 just the same. And "temperature 1/alpha is optimal" is a statement about the next token. Probable as a whole
may be a text that takes an improbable turn: here, on a model of eight words at alpha = 4, to end after one word, where
another word is likelier but nothing probable follows it. That text has 0.717 of the target; at temperature 1/4 it is
drawn with probability 0.016, at 1/2 with 0.109. With 256 particles the total variation is above .02 at 1/4 and below
.01 at 1/2. Weights are honest in both cases, so more particles put it right; and the evidence is unbiased in both, but
its spread over replicates, at 1/4 more than twice that at 1/2, tells them apart.

**In practice.** `SMC(twist=PowerRamp(alpha), proposal=at_temperature(1 / alpha))`, some hundred particles. Try a
temperature between 1/alpha and 1 as well, and keep the one whose replicates agree better on log Z.

Source: Power-SMC (arXiv:2602.10273), the ramp and the temperature; Karan & Du 2025 (arXiv:2510.14901), the target.
"""

from __future__ import annotations

from typing import Any

from ppl_align import SMC
from ppl_align.claims._power_rule import random_lm
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, note, panels
from ppl_align.claims.findings import Findings
from ppl_align.claims.power_sampling import FOUR, sharpened
from ppl_align.core.estimate import of_draws
from ppl_align.kernels import at_temperature
from ppl_align.posterior import Posterior
from ppl_align.testing.delivery import Delivered, delivered
from ppl_align.testing.oracle import Oracle
from ppl_align.twists import PowerRamp
from ppl_align.twists.twist import Prefixes

EIGHT = random_lm(8, 5, 2.0)
PROGRAMS = {"four words": (FOUR, 6), "eight words": (EIGHT, 4)}
PARTICLES, RUNS = 256, 2000
TEMPERATURES = {0.25: 1000, 0.5: 2000, 0.7: 200, 1.0: 200}


class OnlyUnfinished(PowerRamp):
    """A ramp that what has ended does not climb."""

    def ended(self, prefixes: Prefixes) -> None:
        return None


def study(found: Findings) -> None:
    """The law of a delivered draw; the trap of the ramp; the temperature."""
    oracles = {alpha: Oracle(sharpened, *PROGRAMS["four words"], alpha) for alpha in (2.0, 4.0)}
    for alpha, oracle in oracles.items():
        away, run = measured(found, "four words", oracle, alpha, PowerRamp(alpha, tokens=4), 1 / alpha)
        case = f"four words, alpha={alpha:g}, {RUNS} runs of {PARTICLES}"
        found.less(f"{case}: noise floor < .003", away.noise_floor, 0.003, run=True)
        found.less(f"{case}: TV of a delivered draw < .01", away.total_variation, 0.01, run=True)
        ratio = (run.log_evidence - oracle.log_evidence).exp()
        found.agrees(f"four words, alpha={alpha:g}: E[Zhat/Z]", *of_draws(ratio), 1.0)
        if alpha == 4.0:
            particles(found, oracle, away)
    trap(found, oracles[4.0])
    temperature(found)


def measured(
    found: Findings,
    name: str,
    oracle: Oracle,
    alpha: float,
    twist: Any,
    temperature: float,
    particles: int = PARTICLES,
    runs: int = RUNS,
) -> tuple[Delivered, Posterior]:
    """The law of a delivered draw of so many independent runs of SMC, and the runs."""
    smc = SMC(particles, runs, twist=twist, proposal=at_temperature(temperature))
    run = smc.run(sharpened, *PROGRAMS[name], alpha, seed=found.seed)
    return delivered(run, oracle), run


def particles(found: Findings, oracle: Oracle, last: Delivered) -> None:
    """It falls as the number of particles grows."""
    curve = []
    for size, runs in ((4, 4000), (16, 2000), (64, 1000)):
        twist = PowerRamp(4.0, tokens=4)
        away, _ = measured(found, "four words", oracle, 4.0, twist, 0.25, size, runs)
        curve.append((size, away.total_variation, away.noise_floor))
    found.greater("four words, alpha=4: TV at N=4 > twice that at N=16", curve[0][1], 2 * curve[1][1], run=True)
    found.greater("four words, alpha=4: TV at N=16 > twice that at N=64", curve[1][1], 2 * curve[2][1], run=True)
    found.data["curve"] = [*curve, (PARTICLES, last.total_variation, last.noise_floor)]


def trap(found: Findings, oracle: Oracle) -> None:
    """A ramp longer than the text, climbed by the unfinished alone, and by all."""
    alone, both, none = (
        measured(found, "four words", oracle, 4.0, twist, 0.25, runs=300)[0].total_variation
        for twist in (OnlyUnfinished(4.0, tokens=8), PowerRamp(4.0, tokens=8), PowerRamp(4.0, tokens=0))
    )
    found.greater("ramp of 8 tokens, unfinished texts alone climb it: TV > .05", alone, 0.05, run=True)
    found.less("ramp of 8 tokens, all climb it: TV < .01", both, 0.01, run=True)
    found.less("no ramp: TV < .01", none, 0.01, run=True)


def temperature(found: Findings) -> None:
    """Eight words, alpha = 4: what is most probable as a whole takes an improbable turn."""
    oracle = Oracle(sharpened, *PROGRAMS["eight words"], 4.0)
    best = int(oracle.log_target.argmax())
    found.rounds_to(
        "eight words, alpha=4: the most probable text, in the target", oracle.log_target.max().exp(), "0.717"
    )
    for degree, stated in ((0.25, "0.016"), (0.5, "0.109")):
        drawn = oracle.log_q(at_temperature(degree))[best].exp()
        found.rounds_to(f"drawn at temperature {degree:g} with probability", drawn, stated)
    curve, spread = [], {}
    for degree, runs in TEMPERATURES.items():
        away, run = measured(found, "eight words", oracle, 4.0, PowerRamp(4.0, tokens=2), degree, runs=runs)
        spread[degree] = float((run.log_evidence - oracle.log_evidence).exp().std())
        curve.append((degree, away.total_variation, away.noise_floor))
    found.greater("eight words, alpha=4, temperature 1/4: TV > .02", curve[0][1], 0.02, run=True)
    found.less("eight words, alpha=4, temperature 1/2: TV < .01", curve[1][1], 0.01, run=True)
    found.greater("sd of Zhat/Z at temperature 1/4 > twice that at 1/2", spread[0.25], 2 * spread[0.5], run=True)
    found.data["temperature"] = curve


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """Distance against particles; against temperature."""
    sizes, away, floor = zip(*found.data["curve"], strict=True)
    left.loglog(sizes, away, color=PALETTE[0], lw=1.8, marker="o", ms=4)
    left.loglog(sizes, floor, color=GREY, lw=1.2, ls="--")
    note(left, "noise floor", (sizes[1], floor[1]), (-4, -16), GREY)
    left.axhline(0.01, color="black", lw=0.8, ls=":")
    left.set_xticks(sizes, [str(size) for size in sizes])
    left.set_xticks([], minor=True)
    caption(left, "Four words: few particles are enough", "particles N", "total variation of one delivered draw")
    degrees, away, floor = zip(*found.data["temperature"], strict=True)
    right.semilogy(degrees, away, color=PALETTE[1], lw=1.8, marker="o", ms=4)
    right.semilogy(degrees, floor, color=GREY, lw=1.2, ls="--")
    right.axhline(0.01, color="black", lw=0.8, ls=":")
    right.set_xticks(degrees)
    caption(right, "Eight words: 1/alpha is too sharp", "temperature of the proposal", "total variation, N = 256")


__all__ = ["figure", "study"]
