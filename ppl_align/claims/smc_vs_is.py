"""Importance sampling needs exponentially many draws in the length, good SMC polynomially many.

Take N draws of the prior. The relative variance of Zhat is `(E[w^2]/Z^2 - 1) / N`, and `E[w^2]/Z^2 = E_p*[w/Z]` is at
least `exp(KL(p*||p0))` by Jensen's inequality. A reward that is earned all along a text has a KL that grows with the
length T, so the number of draws grows exponentially, and each of them costs T tokens.

SMC breaks the text into steps. Write `pi_t` for its intermediate targets, `p0(x_<=t) psi_t(x_<=t)` normalised. With
resampling after every token the relative variance of Zhat is, up to terms in 1/N^2,

    (1/N) sum over t of chi2( p*(x_<=t) || pi_{t-1}(x_<t) p0(x_t|x_<t) )

For the soft value, `psi_t = E_p0[w|x_<=t]`, `pi_{t-1}` is p* itself and each term is the chi2 of a single token. The
sum grows like T, the price in tokens like T^2, and proposing tokens from the twist as well leaves no variance at all.

How good does a twist have to be? Multiply it by `exp(noise)`, independent for each prefix, of sd sigma: each term
becomes `exp(sigma^2) (1 + chi2) - 1`. The noise costs a factor per step, not a factor to the power of T. So a noisy
twist loses where the text is short or the reward is weak, because weighing alone has little to lose there, and wins
beyond some length, whatever sigma is; that length grows with sigma, in the end like sigma^2. What does not wash out is
an error that *accumulates*: a twist that is right for another beta takes `pi_t` further from p* with every token, and
SMC is exponential again.

What is only half true. About "exp(KL) draws" find the typical posterior draw (Chatterjee & Diaconis); unit relative
variance of Zhat takes more, `exp` of the Renyi divergence of order 2, and the table has both. The reward so far,
`twist="prefix"`, is nearly as good as the soft value here because the reward is a sum over tokens: of a reward that is
decided at the end it would say nothing.

**In practice.** Count tokens, not draws, and multiply by the relative variance. Do not ask importance sampling itself:
what it estimates from n draws can never exceed n, so it falls shortest where the truth is largest. Watch whether
log Zhat still rises with N. Before training a twist for short answers check that plain weighting is not enough.

Source: Chatterjee & Diaconis 2018 (arXiv:1511.01437); Zhao et al. 2024 (arXiv:2404.17546).
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_align import SMC, ImportanceSampling, MarkovLM, completion, reward
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, note, panels
from ppl_align.claims.findings import Findings
from ppl_align.rewards.tokens import TokenSum
from ppl_align.testing.chain import ChainOracle
from ppl_align.twists.twist import Prefixes

WORDS, LENGTHS = 12, (5, 10, 20, 40)
_seeded = torch.Generator().manual_seed(0)
AUTHOR = MarkovLM(torch.randn(WORDS, WORDS, generator=_seeded, dtype=torch.float64), name="author")
WORTH = torch.randperm(WORDS, generator=_seeded).double() / (WORDS - 1)  # 0 to 1, in no order
HASH = torch.randint(2**62, (64,), generator=_seeded) * 2 + 1


def story(length: int, beta: float) -> None:
    """A text of fixed length in which every word earns something."""
    x = completion("x", AUTHOR, [0], max_new_tokens=length)
    reward("score", TokenSum(WORTH), x.tokens, beta=beta)


def noisy(oracle: ChainOracle, sigma: float) -> Callable[[Prefixes], Tensor]:
    """The soft value plus N(0, sigma^2) nats: another number for each prefix, the same one whenever it is asked."""

    def twist(prefixes: Prefixes) -> Tensor:
        code = ((prefixes.tokens + 1) * HASH[: prefixes.tokens.shape[-1]]).sum(-1)  # int64 wraps around
        code = (code ^ (code >> 32)) * HASH[-1]
        uniform = (((code ^ (code >> 29)) & (2**52 - 1)).double() + 0.5) / 2**52
        return oracle.twist(prefixes) + sigma * torch.special.ndtri(uniform)

    return twist


def relative_variance(length: int, beta: float) -> float:
    """Of one weight, exactly: E[w^2]/Z^2 - 1, where w^2 is the weight at half of beta."""
    once, twice = ChainOracle(story, length, beta), ChainOracle(story, length, beta / 2)
    return math.expm1(twice.log_evidence - 2 * once.log_evidence)


def steps(length: int, beta: float, power: float | None = None, sigma: float = 0.0) -> Tensor:
    """The T terms chi2(p*(x_<=t) || pi_{t-1} p0) of SMC, by dynamic programming.

    The twist is the soft value with noise of sd ``sigma``, or, given ``power``, exp(power * reward so far / beta)."""
    log_p, gain = AUTHOR.log_table, WORTH / beta
    to_go = [torch.zeros(WORDS, dtype=torch.float64)]
    for _ in range(length - 1):
        to_go.insert(0, (log_p + gain + to_go[0]).logsumexp(-1))
    first = log_p[0]  # after the prompt
    log_z = (first + gain + to_go[0]).logsumexp(0)
    terms = [(first + 2 * (gain + to_go[0])).logsumexp(0) - 2 * log_z]
    # log of the sums over prefixes ending in u of p0 w^2 / psi and of p0 psi, where w is the weight so far
    exponents = (1.0, None) if power is None else (2 - power, power)
    squares, masses = (first + (0.0 if e is None else e) * gain for e in exponents)
    for t in range(1, length):
        norm = log_z + sigma**2 if power is None else masses.logsumexp(0)
        before = squares - to_go[t - 1] if power is None else squares
        terms.append(norm - 2 * log_z + (before[:, None] + log_p + 2 * (gain + to_go[t])).logsumexp((0, 1)))
        squares, masses = (
            (sums[:, None] + log_p).logsumexp(0) + (0.0 if e is None else e) * gain
            for sums, e in zip((squares, masses), exponents, strict=True)
        )
    return torch.stack(terms).expm1()


def crossover(beta: float, sigma: float) -> int:
    """The length from which a noisy twist needs fewer tokens than no twist, by bisection (at most 200)."""

    def wins(length: int) -> bool:
        plain = steps(length, beta, power=0.0)[-1]  # without a twist all the variance is in the last step
        return float(steps(length, beta, sigma=sigma).sum()) < float(plain)

    return bisect.bisect_left(range(2, 200), True, key=wins) + 2


def study(found: Findings) -> None:
    """The price in tokens, exactly; the engine; the crossover; what importance sampling says of itself."""
    prices(found)
    for length in (5, 20):
        engine(found, length, 0.5)
    lengths(found)
    self_assessment(found)


def prices(found: Findings) -> None:
    """Tokens to unit relative variance: N T with N = the relative variance of one draw, or the sum over steps."""
    beta = 0.5
    curves: dict[str, list[float]] = {"no twist": [], "reward so far": [], "soft value": [], "soft value + 1 nat": []}
    for length in LENGTHS:
        oracle, name = ChainOracle(story, length, beta), f"T={length}"
        plain = relative_variance(length, beta)
        found.less(f"{name}: exp(KL) < 1 + relative variance of IS", math.exp(oracle.kl), 1 + plain)
        last = float(steps(length, beta, power=0.0)[-1])
        found.equal(f"{name}: chi2 of the whole text, step by step", math.log(last), math.log(plain))
        sums = [steps(length, beta, power=1.0), steps(length, beta), steps(length, beta, sigma=1.0)]
        for label, price in zip(curves, (plain, *(float(s.sum()) for s in sums)), strict=True):
            curves[label].append(length * price)
        found.less(f"{name}: tokens to unit variance, soft value < no twist", curves["soft value"][-1], length * plain)
    found.data["prices"] = curves
    for label in ("reward so far", "soft value", "soft value + 1 nat"):
        growth = curves[label][-1] / curves[label][-2]
        found.holds(f"{label}: tokens grow like T^2, T=20 to 40", 3.5 < growth < 4.5, f"x {growth:.2f}")
    plain_growth = [after / before for before, after in itertools.pairwise(curves["no twist"])]
    found.less("no twist: growth from T=10 to 20 < from 20 to 40", plain_growth[1], plain_growth[2])
    eager = [float(steps(length, beta, power=2.0).sum()) for length in LENGTHS]
    found.less("a twist for half of beta: growth T=10 to 20 < 20 to 40", eager[2] / eager[1], eager[3] / eager[2])
    found.greater("its price at T=40, above 100 times the soft value's", 40 * eager[3], 100 * curves["soft value"][-1])


def engine(found: Findings, length: int, beta: float) -> None:
    """What SMC does with N particles, against the sum over steps; resampling after every token."""
    oracle, name = ChainOracle(story, length, beta), f"SMC, T={length}"
    twists: dict[str, tuple[Any, Tensor]] = {
        "reward so far": ("prefix", steps(length, beta, power=1.0)),
        "soft value": (oracle.twist, steps(length, beta)),
        "soft value + 1 nat": (noisy(oracle, 1.0), steps(length, beta, sigma=1.0)),
    }
    for label, (twist, terms) in twists.items():
        total = float(terms.sum())
        smc = SMC(math.ceil(10 * total), 60, twist=twist, ess_threshold=1.0, resampling="multinomial")
        # at a relative variance of 0.1 log Zhat is nearly normal, and the error of its variance is known
        price = smc.num_particles * float(smc.run(story, length, beta, seed=found.seed).log_evidence.var())
        found.agrees(f"{name}, {label}: log(N x variance)", math.log(price), (2 / 59) ** 0.5, math.log(total))
    exact = SMC(1, 20, twist=oracle.twist, proposal=oracle.proposal).run(story, length, beta, seed=found.seed)
    worst = (exact.log_evidence - oracle.log_evidence).abs().max()
    found.equal(f"{name}, soft value as proposal too: error of log Zhat, N=1", worst, 0.0, 1e-9)


def lengths(found: Findings) -> None:
    """From which length a twist with noise is worth having."""
    plain = {length: relative_variance(length, 0.5) for length in (*range(2, 16), 20, 40)}
    noise = {length: float(steps(length, 0.5, sigma=1.0).sum()) for length in plain}
    for short in (5, 10):
        found.less(f"beta=0.5, T={short}: no twist beats 1 nat of noise", plain[short], noise[short])
    for long in (20, 40):
        found.less(f"beta=0.5, T={long}: 1 nat of noise beats no twist", noise[long], plain[long])
    sigmas, table = (0.5, 1.0, 1.5, 2.0), {}
    for beta in (0.25, 0.5, 1.0):
        table[beta] = [crossover(beta, sigma) for sigma in sigmas]
        shown = ", ".join(map(str, table[beta]))
        found.holds(f"beta={beta:g}: noise of 0.5, 1, 1.5, 2 nats wins from T =", table[beta][-1] < 200, shown)
    found.equal("beta=0.5, 1 nat: by trying every length", table[0.5][1], next(t for t in plain if noise[t] < plain[t]))
    found.greater("a weak reward (beta=1) wants longer texts than a strong one", table[1.0][1], table[0.25][1])
    found.data["crossover"] = (sigmas, table)


def self_assessment(found: Findings) -> None:
    """The relative variance that 16 runs of 500 draws see in their own weights (500/ESS - 1), against the exact one."""
    for length, beta, factor in ((5, 0.5, 1.0), (40, 0.5, 50.0), (40, 0.25, 1e8)):
        oracle, name = ChainOracle(story, length, beta), f"IS, T={length}, beta={beta:g}"
        run = ImportanceSampling(num_particles=500, num_replicates=16).run(story, length, beta, seed=found.seed)
        own = 500 / run.importance_weights.ess - 1
        ratio = relative_variance(length, beta) / float(own.median())
        if length == 5:
            found.holds(f"{name}: true over stated variance is about 1", 0.5 < ratio < 2, f"{ratio:.2f}")
        else:
            found.holds(f"{name}: true over stated variance is above {factor:g}", ratio > factor, f"{ratio:.2g}")
            low = oracle.log_evidence - run.log_evidence.median()
            found.holds(f"{name}: the median log Zhat is too low", bool(low > 0), f"by {low:.1f} nats")


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """Price against length; crossover against noise."""
    for i, (label, curve) in enumerate(found.data["prices"].items()):
        left.loglog(LENGTHS, curve, color=PALETTE[i], lw=1.8, marker="o", ms=4, label=label)
    left.set_xticks(LENGTHS, [str(t) for t in LENGTHS])
    left.set_xticks([], minor=True)
    left.legend()
    caption(left, "Without a twist the price is exponential", "length T   [tokens]", "tokens to unit relative variance")
    sigmas, table = found.data["crossover"]
    for i, (beta, row) in enumerate(table.items()):
        right.semilogy(sigmas, row, color=PALETTE[i], lw=1.8, marker="o", ms=4)
        note(right, f"beta = {beta:g}", (sigmas[2], row[2]), (4, -14), PALETTE[i])
    right.annotate("the twist wins above", (0.52, 100), color=GREY)
    caption(right, "Noise delays the gain, it does not prevent it", "noise of the twist   [nats per prefix]")
    right.set_ylabel("length where it starts to win   [tokens]")
