"""Evidence has a lower bound from any engine, and an upper bound with one exact posterior draw kept.

Importance sampling and SMC estimate Z without bias, `E[Zhat] = Z`. The logarithm is concave, so `E[log Zhat] <= log Z`:
on average every run is too low, and nothing in the run says by how much. The other side comes from one exact draw.

Let Q be the law of everything a run draws (all particles, all ancestors) and of one completion k picked from it by
weight. Let P be the law in which k is first drawn from p* and the rest of the run is built around it, which is what
*conditional* SMC does. Everything cancels in their ratio but

    P(run, k) / Q(run, k) = Zhat(run) / Z
    KL(Q||P) = log Z - E[log Zhat]        KL(P||Q) = E[log Zhat_c] - log Z        E[1/Zhat_c] = 1/Z

where Zhat_c is the same estimate computed in a run of P. So the gap between the two bounds is the Jeffreys divergence
of Q and P. Under Q the picked completion is what the engine delivers, under P it is a draw of p*; a marginal is never
further away than the whole, so the gap bounds the Jeffreys divergence between *one delivered completion* and p*. For
importance sampling more particles tighten both sides, always; for SMC usually. And Markov's inequality makes each
replicate a certificate: `P(log Zhat > log Z + log(1/d)) <= d` and `P(log Zhat_c < log Z - log(1/d)) <= d`, whatever
else went wrong.

What breaks it. The rest of the run has to be resampled *given* that the retained particle survives. With multinomial
resampling that is "slot 0 keeps it, the others are drawn as ever"; with every other scheme it is not, since its slots
are not independent. Forcing slot 0 after a plain systematic draw makes `E[Z/Zhat_c]` 23/22 = 1.045 in the two-coin
program below, 17/16 in a harsher one, less than 1 where a prefix promises what the end does not keep. If the future
does not depend on the ancestor the error vanishes, so a test on independent tokens does not notice.

What is only half true. `E[1/Zhat_c] = 1/Z` is an equality if all weights are positive; with hard rejections it is
`P(Zhat > 0) / Z`, and the bound holds all the more. One exact draw shared by all replicates leaves each of them valid
but makes them dependent: the mean is still an upper bound, its standard error comes out too small.

**In practice.** `evidence_bounds(engine, model, exact=...)`. The draws must be exact for *this* target: from
`Rejection`, from an enumerable copy of the problem, or, where the likelihood is an observed continuation, by writing
middle and ending and asking for the middle (`simulate`). A simulated ending certifies that ending; retained for another
one, the draw is not from its posterior and the "upper bound" can lie below log Z. A mean over simulated endings is a
statement about typical endings, not about yours.

Source: Grosse, Ghahramani & Adams 2015 (arXiv:1511.02543); Zhao et al. 2024 (arXiv:2404.17546).
"""

from __future__ import annotations

import itertools
import math
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ppl_align import SMC, ConditionalSMC, ImportanceSampling, MarkovLM, completion, evidence_bounds, reward
from ppl_align.claims._evidence import STAYS, importance, two_steps
from ppl_align.claims._toys import COIN, RAMBLER, ramble, review
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, note, panels
from ppl_align.claims.findings import Findings
from ppl_align.core.errors import InputError
from ppl_align.core.estimate import Estimate, of_draws
from ppl_align.particles.resampling import CONDITIONAL, SCHEMES
from ppl_align.particles.schemes import systematic
from ppl_align.testing.oracle import Oracle, kl_divergence
from ppl_align.testing.simulation import simulate

BETA, MILD = 0.8, 1.5
STICKY = MarkovLM(torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.5, 0.0, 2.0]], dtype=torch.float64), name="sticky")


def coins(first: float, last: float) -> None:
    """Two coins; heads in the first promises ``log first`` and is worth ``log last``. The second does not count."""
    x = completion("x", COIN, [0], max_new_tokens=2)
    reward("r", lambda t: math.log(first if t.shape[-1] == 1 else last) * (t[..., 0] == 1).double(), x.tokens)


def heads() -> None:
    """Two coins, a reward for each head: the future does not depend on the ancestor."""
    x = completion("x", COIN, [0], max_new_tokens=2)
    reward("r", lambda t: (t == 1).double().sum(-1), x.tokens, beta=0.7)


def strict() -> None:
    """All or nothing: three tokens without a 2."""
    x = completion("x", RAMBLER, [2], max_new_tokens=3)
    reward("r", lambda t: torch.where((t == 2).any(-1), -torch.inf, 0.0), x.tokens)


def infill(ending: Any) -> None:
    """The middle of a text whose last token is known."""
    middle = completion("middle", STICKY, [0], max_new_tokens=2)
    completion("ending", STICKY, ([0], middle), starts_with=ending)


def forced(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The wrong way: a plain systematic draw, then slot 0 is overwritten."""
    ancestors = systematic(weights, generator)
    ancestors[:, 0] = 0
    return ancestors


def study(found: Findings) -> None:
    """Both sides for every resampler; importance sampling exactly; what breaks it."""
    for program, beta in ((review, MILD), (ramble, BETA)):
        oracle = Oracle(program, beta)
        for scheme in SCHEMES:
            engine = SMC(4, 2000, resampling=scheme, twist="prefix", ess_threshold=1.0)
            exact = oracle.sample(1, 2000, seed=found.seed)
            bounds = evidence_bounds(engine, program, beta, exact=exact, seed=found.seed)
            name, (low, high) = f"{program.__name__}, {scheme}", bounds.standard_errors
            found.agrees(f"{name}: E[Z/Zhat_c]", *of_draws((oracle.log_evidence - bounds.upper).exp()), 1.0)
            if program is ramble:
                found.agrees(f"{name}: E[Zhat/Z]", *of_draws((bounds.lower - oracle.log_evidence).exp()), 1.0)
                found.less(f"{name}: E[log Zhat] < log Z", bounds.lower.mean(), oracle.log_evidence, low)
                found.greater(f"{name}: E[log Zhat_c] > log Z", bounds.upper.mean(), oracle.log_evidence, high)
    exactly(found, Oracle(ramble, BETA))
    delivered(found, Oracle(ramble, BETA, 2))
    certificates(found, Oracle(review, MILD))
    wrong_way(found)
    one_draw_each(found, Oracle(ramble, BETA))
    endings(found)
    found.data["curves"] = curves(found, Oracle(ramble, BETA))


def jeffreys(log_p: Tensor, log_q: Tensor) -> float:
    """KL(p||q) + KL(q||p), nats."""
    return float(kl_divergence(log_p, log_q) + kl_divergence(log_q, log_p))


def exactly(found: Findings, oracle: Oracle) -> None:
    """Importance sampling with N = 1 to 4, by listing what it can draw."""
    cases = [importance(oracle, n) for n in (1, 2, 3, 4)]
    found.equal("IS, N=1: lower bound = ELBO of the prior", cases[0].lower, oracle.elbo(oracle.log_prior))
    found.equal("IS, N=1: upper bound = E_p*[log w]", cases[0].upper, oracle.mean(oracle.log_potential))
    for n, (fewer, more) in enumerate(itertools.pairwise(cases), 2):
        found.greater(f"IS: lower bound rises from N={n - 1} to {n}", more.lower, fewer.lower)
        found.less(f"IS: upper bound falls from N={n - 1} to {n}", more.upper, fewer.upper)
    half, other = oracle.log_evidence - cases[1].lower, cases[1].upper - oracle.log_evidence
    found.less("IS, N=2: KL(delivered||p*) < lower half of the gap", kl_divergence(*cases[1][2:]), half)
    found.less("IS, N=2: KL(p*||delivered) < upper half", kl_divergence(cases[1].target, cases[1].delivered), other)
    exact = oracle.sample(1, 8000, seed=found.seed)
    bounds = evidence_bounds(ImportanceSampling(4, 8000), ramble, BETA, exact=exact, seed=found.seed)
    found.agrees("IS, N=4, the engine: E[log Zhat]", *of_draws(bounds.lower), cases[3].lower)
    found.agrees("IS, N=4, the engine: E[log Zhat_c]", *of_draws(bounds.upper), cases[3].upper)
    found.data["exact"] = [(c.upper - c.lower, jeffreys(c.delivered, c.target)) for c in cases]


def delivered(found: Findings, oracle: Oracle) -> None:
    """SMC: the law of one completion picked by weight, from many runs, against the gap."""
    engine = SMC(2, 20_000, twist="prefix", ess_threshold=1.0)
    exact = oracle.sample(1, 20_000, seed=found.seed)
    bounds = evidence_bounds(engine, ramble, BETA, 2, exact=exact, seed=found.seed)
    run, place = engine.run(ramble, BETA, 2, seed=found.seed), torch.tensor([1, 3])
    share = torch.zeros(9, dtype=torch.float64)
    picked = run.log_weight.softmax(-1) / len(run.log_weight)
    share.index_add_(0, (run.completions["text"].tokens * place).sum(-1).reshape(-1), picked.reshape(-1))
    distance = jeffreys(share[(oracle.values["text"] * place).sum(-1)].log(), oracle.log_target)
    error = math.hypot(*bounds.standard_errors)
    found.less("SMC, N=2: Jeffreys divergence of one delivered text < gap", distance, bounds.gap, error)


def certificates(found: Findings, oracle: Oracle) -> None:
    """How often one replicate is off by more than log(1/d)."""
    engine = ImportanceSampling(1, 8000)
    bounds = evidence_bounds(engine, review, MILD, exact=oracle.sample(1, 8000, seed=found.seed), seed=found.seed)
    for d in (0.1, 0.3):
        error = math.sqrt(d * (1 - d) / 8000)
        above = (bounds.lower > oracle.log_evidence - math.log(d)).double().mean()
        below = (bounds.upper < oracle.log_evidence + math.log(d)).double().mean()
        found.less(f"IS, N=1: share with log Zhat > log Z + log(1/{d:g})", above, d, error)
        found.less(f"IS, N=1: share with log Zhat_c < log Z - log(1/{d:g})", below, d, error)
    low, high = bounds.certificate(0.05)
    found.holds(
        "review: log Z lies in its 95% certificate", low < oracle.log_evidence < high, f"{low:.2f} .. {high:.2f}"
    )


def wrong_way(found: Findings) -> None:
    """Slot 0 forced after a plain systematic draw; rejections."""
    plain = STAYS["plain systematic, slot 0 forced"]
    for name, stays in STAYS.items():
        found.equal(f"two coins, {name}: E[Z/Zhat_c]", two_steps(2, 20, stays), 23 / 22 if stays is plain else 1.0)
    found.rounds_to("forced slot 0, to three digits", two_steps(2, 20, plain), "1.045")
    found.equal("forced slot 0, weights 3 and 1e12", two_steps(3, 1e12, plain), 17 / 16)
    found.less("forced slot 0, weights 2 and 1/20: E[Z/Zhat_c]", two_steps(2, 0.05, plain), 1.0)
    engine = SMC(2, 60_000, twist="prefix", ess_threshold=1.0)

    def inverse(program: Any, *args: Any) -> Estimate:
        oracle = Oracle(program, *args)
        run = ConditionalSMC(engine, oracle.sample(1, 60_000, seed=found.seed)).run(program, *args, seed=found.seed)
        return of_draws((oracle.log_evidence - run.log_evidence).exp())

    found.agrees("two coins, the engine: E[Z/Zhat_c]", *inverse(coins, 2, 20), 1.0)
    with mock.patch.dict(CONDITIONAL, systematic=forced):
        mean, error = inverse(coins, 2, 20)
        found.agrees("two coins, the engine with slot 0 forced", mean, error, 23 / 22)
        found.greater("and that is not 1", mean, 1.0, error)
        found.agrees("independent tokens, the same: nothing to see", *inverse(heads), 1.0)
    oracle = Oracle(strict)
    run = ConditionalSMC(ImportanceSampling(2, 8000), oracle.sample(1, 8000, seed=found.seed)).run(
        strict, seed=found.seed
    )
    alive = 1 - (1 - math.exp(oracle.log_evidence)) ** 2
    found.agrees("rejections, IS(2): E[Z/Zhat_c] = P(Zhat > 0)",
                 *of_draws((oracle.log_evidence - run.log_evidence).exp()), alive)  # fmt: skip


def one_draw_each(found: Findings, oracle: Oracle) -> None:
    """60 experiments of 100 replicates which share one exact draw."""
    engine, means, stated = ImportanceSampling(4, 100), [], []
    for k in range(60):
        exact = oracle.sample(1, 1, seed=1000 * found.seed + k)
        shared = ConditionalSMC(engine, exact.take(torch.zeros(100, 1, dtype=torch.long), draws_are_exact=True))
        mean, error = of_draws(shared.run(ramble, BETA, seed=1000 * found.seed + k).log_evidence)
        means.append(mean)
        stated.append(error)
    ratio = float(torch.tensor(means).std() / torch.tensor(stated).mean())
    found.holds("one shared draw: true error over stated error is above 3", ratio > 3, f"{ratio:.1f}")
    try:
        ConditionalSMC(engine, oracle.sample(1, 99)).run(ramble, BETA)
        refused = False
    except InputError:
        refused = True
    found.holds("100 replicates with 99 exact draws are refused", refused)


def endings(found: Findings) -> None:
    """A simulated ending certifies itself, and no other."""
    oracles = [Oracle(infill, [ending]) for ending in range(3)]
    pairs = simulate(infill, [0], num_simulations=400, seed=found.seed)
    excess = [float(pair.draw.log_weight) - oracles[pair.arguments["ending"][0]].log_evidence for pair in pairs]
    shared = sum(math.exp(o.log_evidence) * float(kl_divergence(o.log_target, o.log_prior)) for o in oracles)
    squares = [float(o.mean((o.log_potential - o.log_evidence) ** 2)) * math.exp(o.log_evidence) for o in oracles]
    exact = math.sqrt((sum(squares) - shared**2) / len(excess))
    found.agrees("simulated: E[log Zhat_c - log Z], N=1: mutual information", sum(excess) / len(excess), exact, shared)
    for kept, what in ((1, "above log Z, draws for this ending"), (0, "below log Z, draws for another one")):
        engine = ConditionalSMC(ImportanceSampling(2, 2000), oracles[kept].sample(1, 2000, seed=found.seed))
        mean, error = of_draws(engine.run(infill, [1], seed=found.seed).log_evidence)
        compare = found.greater if kept else found.less
        compare(f"infill: E[log Zhat_c] {what}", mean, oracles[1].log_evidence, error)


def curves(found: Findings, oracle: Oracle) -> dict[str, Any]:
    """Both bounds against the number of particles."""
    sizes = (1, 2, 4, 8, 16, 32)
    exact = oracle.sample(1, 500, seed=found.seed)
    seen: dict[str, Any] = {"log Z": oracle.log_evidence, "sizes": sizes, "IS": [], "SMC": []}
    for n in sizes:
        for label, engine in (
            ("IS", ImportanceSampling(n, 500)),
            ("SMC", SMC(n, 500, twist="prefix", ess_threshold=1.0)),
        ):
            bounds = evidence_bounds(engine, ramble, BETA, exact=exact, seed=found.seed)
            seen[label].append((float(bounds.lower.mean()), float(bounds.upper.mean())))
    return seen


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """The sandwich closes with N; the gap and what it bounds."""
    seen = found.data["curves"]
    for i, label in enumerate(("IS", "SMC")):
        low, high = zip(*seen[label], strict=True)
        left.semilogx(seen["sizes"], high, base=2, color=PALETTE[i], lw=1.5, marker="v", ms=5)
        left.semilogx(seen["sizes"], low, base=2, color=PALETTE[i], lw=1.5, marker="^", ms=5, label=label)
    left.axhline(seen["log Z"], color="black", lw=1)
    left.annotate("log Z", (24, seen["log Z"]), (0, 10), textcoords="offset points")
    left.legend(loc="lower right")
    caption(left, "Both sides close in on log Z", "particles N", "E[log Zhat_c] (v), E[log Zhat] (^)   [nats]")
    gap, distance = zip(*found.data["exact"], strict=True)
    right.semilogy((1, 2, 3, 4), gap, color=PALETTE[0], marker="o", lw=1.5)
    right.semilogy((1, 2, 3, 4), distance, color=GREY, marker="o", lw=1.5)
    note(right, "gap of the bounds", (3, gap[2]), (0, 8), PALETTE[0])
    note(right, "one delivered completion", (2, distance[1]), (-120, -22), GREY)
    right.set_xticks((1, 2, 3, 4))
    caption(right, "The gap bounds what is delivered", "draws N of importance sampling")
    right.set_ylabel("Jeffreys divergence from p*   [nats]")
