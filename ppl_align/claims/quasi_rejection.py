"""Quasi-rejection sampling trades acceptance for a distance from the target that can be bounded.

Rejection sampling needs a number B with `p0(x) exp(r(x)/beta) <= B q(x)` for every x, and for text no such number is
known, or it is so large that nothing is ever accepted. Quasi-rejection sampling takes any `B > 0`, draws from q and
accepts with probability `min(1, w/B)`, where `w = P/q` and `P = p0 exp(r/beta)`. What comes out has density
`p_B = P_B / Z_B` with `P_B = min(P, B q)`, and a share `Z_B / B` of the draws is accepted. That is an exact sampler of
another target: with q = p0, the posterior of the reward capped at `beta log B`.

How far p_B is from p* follows from one inequality. Since `P_B <= P` and `Z_B <= Z`, both p* and p_B are at least
`P_B / Z` everywhere, so they overlap by at least the sum of that:

    TVD(p*, p_B) <= 1 - Z_B/Z            KL(p_B||p*) <= log(Z/Z_B)

The bound usually quoted is `1 - p*(A_B)` with `A_B = {w <= B}`, the posterior probability of being capped at all. It is
never tighter: `1 - Z_B/Z` is the sum of `P - B q` over the same capped region, divided by Z. At small B, where nearly
everything is capped, it is close to 1 and says nothing, although the prior itself may be much nearer than that. Even
the sharper bound is not tight there: capping every weight by the same factor is no distortion at all, only uneven
capping is. A bound on TVD is one on every probability: no event's is off by more than that.

What is only half true. "A bounded error" needs `Z_B/Z`, and Z is estimated from the same draws. A region that they have
missed is missing from Z, from p*(A_B) and from the bound alike, so the *estimated* bound is no bound (hidden-mode has
such a region). And the other KL obeys neither: `KL(p*||p_B) = log(Z_B/Z) + E_p*[max(0, log(w/B))]` grows with the
weights that were capped.

**In practice.** One bank of draws answers for all B, without drawing again: acceptance and the bound are means of
`min(w, B)`. Choose the largest B whose acceptance can be paid for, and report `1 - Z_B/Z` beside it. In this library:
cap the reward, give `upper=`, run `Rejection`. If the cap is stated openly it is part of the target and no error.

Source: Eikema, Kruszewski, Elsahar & Dymetman 2021 (arXiv:2112.05702).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.stats import poisson
from torch import Tensor

from ppl_align import CallableLM, ImportanceSampling, Rejection, completion, reward
from ppl_align.claims._toys import RAMBLER, pattern
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, note, panels
from ppl_align.claims.findings import Findings
from ppl_align.core.errors import PplAlignError
from ppl_align.core.estimate import of_draws, standard_error
from ppl_align.testing.oracle import Oracle, kl_divergence

COUNTS = torch.arange(int(poisson.isf(1e-15, 11)) + 2)  # beyond, both tails are below 1e-15
LOG_Q, LOG_P = (torch.tensor(poisson.logpmf(COUNTS, mean), dtype=torch.float64) for mean in (10, 11))
COUNTER = CallableLM(len(COUNTS), lambda prefix: LOG_Q.expand(len(prefix), -1), name="counter")


def count(cap: float = math.inf) -> None:
    """The prior writes one token, a number from Poisson(10); the reward log p/q makes the posterior Poisson(11)."""
    n = completion("n", COUNTER, [0], max_new_tokens=1)
    reward("ratio", lambda tokens: (LOG_P - LOG_Q)[tokens[..., 0]].clamp_max(cap), n.tokens, upper=cap)


def ramble(cap: float = math.inf) -> None:
    """Four tokens, and weights that have a largest one."""
    x = completion("x", RAMBLER, [2], max_new_tokens=4)
    reward("pattern", lambda tokens: pattern(tokens).clamp_max(0.5 * cap), x.tokens, beta=0.5, upper=0.5 * cap)


def careless() -> None:
    """An upper bound that is none: the reward is not capped."""
    n = completion("n", COUNTER, [0], max_new_tokens=1)
    reward("ratio", lambda tokens: (LOG_P - LOG_Q)[tokens[..., 0]], n.tokens, upper=math.log(0.5))


STATED = {  # B: acceptance, TVD, 1 - p*(A_B), 1 - Z_B/Z, KL(p*||p_B), KL(p_B||p*)
    0.5: ("0.9995", "0.1229", "0.9951", "0.5003", "0.0481", "0.0465"),
    1.0: ("0.8768", "0.0749", "0.5401", "0.1232", "0.0199", "0.0177"),
    2.0: ("0.4982", "0.0035", "0.0322", "0.0036", "0.0005", "0.0004"),
    4.0: ("0.2500", "0.00001", "0.00008", "0.00001", "0.0000", "0.0000"),
}
COLUMNS = ("acceptance", "TVD", "1 - p*(A_B)", "1 - Z_B/Z", "KL(p*||p_B)", "KL(p_B||p*)")


def columns(program: Any, target: Oracle, bound: float) -> tuple[tuple[float, ...], Tensor]:
    """The row of the table for one B, and log p_B [S]: the posterior of the capped reward."""
    capped = Oracle(program, math.log(bound))
    p, p_b = target.log_target, capped.log_target
    over = target.log_potential > math.log(bound)
    return (
        math.exp(capped.log_evidence) / bound,
        float((p.exp() - p_b.exp()).abs().sum() / 2),
        float(p[over].exp().sum()),
        1 - math.exp(capped.log_evidence - target.log_evidence),
        float(kl_divergence(p, p_b)),
        float(kl_divergence(p_b, p)),
    ), p_b


def study(found: Findings) -> None:
    """The stated table, the inequalities on two programs, and the sampler itself."""
    target = Oracle(count)
    found.equal("Poisson(11) from Poisson(10): log Z", target.log_evidence, 0.0)
    for bound, stated in STATED.items():
        for name, value, text in zip(COLUMNS, columns(count, target, bound)[0], stated, strict=True):
            found.rounds_to(f"B={bound:g}: {name}", value, text)
    for program, bounds in ((count, (0.5, 2.0)), (ramble, (3.0,))):
        for bound in bounds:
            inequalities(found, program, Oracle(program), bound)
    ends(found, Oracle(ramble))
    sampler(found, target)
    grid = torch.logspace(-0.7, 0.65, 60).tolist()
    found.data["curve"] = [columns(count, target, b)[0] for b in grid]
    found.data["laws"] = {b: columns(count, target, b)[1].exp().tolist() for b in STATED}


def inequalities(found: Findings, program: Any, target: Oracle, bound: float) -> None:
    """What p_B is, and TVD <= 1 - Z_B/Z <= 1 - p*(A_B)."""
    name = f"{program.__name__}, B={bound:g}"
    (_, tvd, quoted, sharper, forward, reverse), p_b = columns(program, target, bound)
    accept = (target.log_potential - math.log(bound)).clamp_max(0.0)
    accepted = (target.log_prior + accept).log_softmax(0)
    found.equal(f"{name}: KL(law of what is accepted||p_B)", kl_divergence(accepted, p_b), 0.0)
    found.less(f"{name}: TVD < 1 - Z_B/Z", tvd, sharper)
    found.less(f"{name}: 1 - Z_B/Z < 1 - p*(A_B)", sharper, quoted)
    found.less(f"{name}: KL(p_B||p*) < log(Z/Z_B)", reverse, -math.log1p(-sharper))
    excess = target.mean((target.log_potential - math.log(bound)).clamp_min(0.0))
    found.equal(f"{name}: KL(p*||p_B) = log(Z_B/Z) + E_p*[excess]", forward, math.log1p(-sharper) + float(excess))


def ends(found: Findings, target: Oracle) -> None:
    """Below all weights nothing is changed, above all of them nothing is capped."""
    low, high = float(target.log_potential.min().exp()), float(target.log_potential.max().exp())
    (acceptance, *_), p_b = columns(ramble, target, low)
    found.equal("ramble, B = smallest weight: all is accepted", acceptance, 1.0)
    found.equal("and p_B is the prior, KL", kl_divergence(p_b, target.log_prior), 0.0)
    (acceptance, tvd, *_), _ = columns(ramble, target, high)
    found.equal("ramble, B = largest weight: exact, TVD", tvd, 0.0)
    found.equal("and the acceptance is Z/B", acceptance, math.exp(target.log_evidence) / high)


def sampler(found: Findings, target: Oracle) -> None:
    """Rejection on the capped program is the sampler; one bank of prior draws forecasts it for every B."""
    (acceptance, *_), p_b = columns(count, target, 1.0)
    run = Rejection(num_particles=50, num_replicates=100).run(count, 0.0, seed=found.seed)
    found.agrees("Rejection, B=1: acceptance", *of_draws(run.log_evidence.exp()), acceptance)
    drawn = of_draws(run.completions["n"].tokens[..., 0].double().mean(-1))
    found.agrees("Rejection, B=1: mean count is that of p_B", *drawn, (p_b.exp() * COUNTS).sum())
    found.less("and not that of p*, 11", drawn.value, 11.0, drawn.standard_error)
    bank = ImportanceSampling(num_particles=20_000, num_replicates=1).run(count, seed=found.seed)
    weight = bank.log_weight[0].exp()
    for bound in (0.5, 1.0, 2.0):
        (acceptance, _, _, sharper, *_), _ = columns(count, target, bound)
        kept = weight.clamp_max(bound)
        share, left = kept / bound, kept.mean() / weight.mean()
        error = standard_error((kept - left * weight) / weight.mean())  # delta method for a ratio of means
        found.agrees(f"one bank of draws, B={bound:g}: acceptance", *of_draws(share), acceptance)
        found.agrees(f"one bank of draws, B={bound:g}: 1 - Z_B/Z", 1 - left, error, sharper)
    try:
        Rejection().run(careless, seed=found.seed)
        refused = "it ran"
    except PplAlignError as refusal:
        refused = type(refusal).__name__
    found.holds("Rejection refuses an upper= that is too low", refused != "it ran", refused)


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """The laws for four B; distance and bounds against acceptance."""
    shown = slice(0, 26)
    counts = COUNTS[shown].tolist()
    left.plot(counts, LOG_Q[shown].exp().tolist(), color=GREY, lw=1.5, ls="--")
    left.plot(counts, LOG_P[shown].exp().tolist(), color="black", lw=1.5)
    for i, bound in enumerate((0.5, 1.0, 2.0)):
        left.plot(
            counts,
            found.data["laws"][bound][shown],
            color=PALETTE[i],
            lw=0,
            marker="o",
            ms=4,
            label=f"p_B, B={bound:g}",
        )
    left.plot([], [], color=GREY, lw=1.5, ls="--", label="prior, Poisson(10)")
    left.plot([], [], color="black", lw=1.5, label="target, Poisson(11)")
    left.legend()
    caption(left, "The larger B, the nearer to the target", "count", "probability")
    accepted, tvd, quoted, sharper, *_ = zip(*found.data["curve"], strict=True)
    labels = (("TVD(p*, p_B)", 32, (4, -16)), ("1 - Z_B/Z", 28, (-64, 0)), ("1 - p*(A_B)", 44, (-70, 8)))
    for i, (curve, (label, at, away)) in enumerate(zip((tvd, sharper, quoted), labels, strict=True)):
        right.semilogy(accepted, curve, color=PALETTE[i], lw=2)
        note(right, label, (accepted[at], curve[at]), away, PALETTE[i])
    right.set_ylim(1e-5, 2)
    caption(right, "Both bounds hold, one is nearly sharp", "share of the draws that is accepted", "total variation")
