"""Best-of-n is an approximate posterior, within log n - (n-1)/n nats of the prior.

Draw n completions from `p0` and keep the one with the highest reward, ties broken at random. Write `F(r)` for the
prior probability of a reward of at most r and `F(r-)` for one below r. The winner has level r if all n draws are at or
below it and not all below, and within a level it is distributed as under the prior:

    bon(x) = p0(x) (F(r(x))^n - F(r(x)-)^n) / (F(r(x)) - F(r(x)-))

Give each draw a hidden tie-breaker, uniform on (0, 1). Then ranks are continuous, the winner's rank u has density
`n u^(n-1)`, and the KL of (text, tie-breaker) from the prior is exactly the integral of `n u^(n-1) log(n u^(n-1))`,
which is `log n - (n-1)/n`. The text alone is a marginal of that pair, and a marginal is never further away: hence
`KL(bon||p0) <= log n - (n-1)/n`. Equality needs a density ratio that is constant within each level; `n u^(n-1)` is
not, so the bound is strict as soon as one level has positive probability, which is always the case for text.

Best-of-n never knows more of a reward than its order. That decides how it compares with the posterior. Among all
policies at the same KL the posterior has the most reward, because `E_q[r] - beta KL(q||p0) <= beta log Z` with
equality at `p*` only. Best-of-n reaches it if and only if `log bon(x)/p0(x)` is affine in r. For two-valued rewards it
always is: best-of-n *is* a posterior then, at a beta that falls with n. With three or more values it takes a
coincidence, and one can be arranged: put `r = log(bon/p0)` and best-of-n is the posterior of that reward at beta = 1,
although it is the same best-of-n as before. So it is always an exact posterior, only of a reward with other spacings.

As an approximation of one fixed `p*` it has a best n: too few draws leave it at the prior, too many go past the target
towards the argmax, where KL(bon||p*) keeps growing until all probability sits on the best level.

**In practice.** Do not report `log n - (n-1)/n` as the KL of best-of-n when the reward has few levels (pass or fail,
rubrics, ratings): it overstates the distance from the prior. If the spacing of rewards means something, weigh the n
draws by `exp(r/beta)` instead of taking the maximum; if only the order does, best-of-n is the honest choice. Choose n
for the target; more draws are not more accuracy.

Source: Beirami et al. 2024 (arXiv:2401.01879); Sessa et al. 2024 (arXiv:2407.14622).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from scipy.integrate import quad
from torch import Tensor

from ppl_align import ImportanceSampling, completion, reward
from ppl_align.claims._toys import COIN, CRITIC, matched, praise, ramble, review, spot
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, note, panels
from ppl_align.claims.findings import Findings
from ppl_align.core.estimate import of_draws
from ppl_align.testing.oracle import Oracle, kl_divergence

BETA = 0.5


def passes(beta: float) -> None:
    """Reviews, judged as good or not."""
    text = completion("review", CRITIC, "", max_new_tokens=4)
    reward("r", lambda texts: [float(score > 0) for score in praise(texts)], text, beta=beta)


def coins(length: int) -> None:
    """Equally likely texts, no two of the same reward: the text read as a binary number."""
    x = completion("x", COIN, [0], max_new_tokens=length)
    reward("r", lambda tokens: (tokens * 2 ** torch.arange(tokens.shape[-1])).sum(-1).double(), x.tokens)


def bound(n: int) -> float:
    """log n - (n-1)/n, nats."""
    return math.log(n) - (n - 1) / n


def best_of(n: int, r: Tensor, log_prior: Tensor) -> Tensor:
    """log bon [S], from the CDF of the reward under the prior."""
    levels, where = r.unique(return_inverse=True)
    mass = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, where, log_prior.exp())
    top = mass.cumsum(0)
    return log_prior + ((top**n - (top - mass).clamp_min(0.0) ** n) / mass).log()[where]


def by_hand(n: int, r: Tensor, log_prior: Tensor) -> Tensor:
    """bon [S] by listing every possible n draws; each winner of a tie gets its share."""
    p, found = log_prior.exp(), torch.zeros(len(r), dtype=torch.float64)
    for drawn in itertools.product(range(len(r)), repeat=n):
        winners = [i for i in drawn if r[i] == max(r[list(drawn)])]
        for i in winners:
            found[i] += p[list(drawn)].prod() / len(winners)
    return found


def study(found: Findings) -> None:
    """The bound and what makes it strict; the law; the posterior at the same KL; the best n."""
    for n in (2, 16):
        entropy = quad(lambda u, n=n: n * u ** (n - 1) * math.log(n * u ** (n - 1)), 1e-300, 1.0, epsabs=1e-12)[0]
        found.equal(f"n={n}: KL of the winner's rank, density n u^(n-1)", entropy, bound(n))
    short = []
    for length in (3, 6, 12):
        oracle = Oracle(coins, length)
        kl = kl_divergence(best_of(16, oracle.rewards["r"], oracle.log_prior), oracle.log_prior)
        found.less(f"n=16, {2**length} equal texts, no ties: KL below the bound", kl, bound(16))
        short.append(bound(16) - kl)
    found.less("64 texts are nearer to it than 8", short[1], short[0])
    found.less("4096 nearer than 64, by a factor of 1000", short[2], short[1] / 1000)
    for program in (review, passes, ramble):
        compare(found, program, Oracle(program, BETA))
    coincidence(found, Oracle(ramble, BETA))
    for program in (review, ramble):
        optimum(found, program.__name__, Oracle(program, BETA))


def compare(found: Findings, program: Any, oracle: Oracle) -> None:
    """The law, its KL, and the posterior at the same KL."""
    name, r, p0 = program.__name__, oracle.rewards["r"], oracle.log_prior
    order = p0.argsort(descending=True)[:12]  # a dozen texts: 12^3 triples
    some = p0[order].log_softmax(0)
    off = by_hand(3, r[order], some) - best_of(3, r[order], some).exp()
    found.equal(f"{name}: law of best-of-3 = listing all triples", off.abs().max(), 0.0)
    drawn = ImportanceSampling(num_particles=4, num_replicates=8000).run(program, BETA, seed=found.seed)
    best = drawn.rewards["r"].amax(-1)
    exact = oracle.mean("r", best_of(4, r, p0))
    found.agrees(f"{name}: E[r] of best-of-4, drawn", *of_draws(best), exact)
    points = []
    for n in (2, 4, 16, 64):
        bon = best_of(n, r, p0)
        kl, gain = spot(bon, p0, r)
        points.append((kl, gain, n))
        if n not in (4, 64):
            continue
        found.less(f"{name}, n={n}: KL(bon||p0) < bound", kl, bound(n))
        beta, posterior = matched(kl, r, p0)
        if program is passes:
            found.equal(f"{name}, n={n}: KL from p* at beta={beta:.3f}", kl_divergence(bon, posterior), 0.0)
        else:
            found.less(f"{name}, n={n}: E[r] < posterior's, equal KL", gain, oracle.mean(r, posterior))
    frontier = [(p0 + s * r).log_softmax(0) for s in torch.linspace(0, 12, 240).tolist()]
    found.data[name] = {"bon": points, "posterior": [spot(q, p0, r) for q in frontier]}


def coincidence(found: Findings, oracle: Oracle) -> None:
    """Best-of-4 sees the order of rewards only; one spacing makes it an exact posterior, for this n."""
    r, p0 = oracle.rewards["r"], oracle.log_prior
    bon = best_of(4, r, p0)
    found.equal("ramble: bon of exp(r) is bon of r, KL", kl_divergence(best_of(4, r.exp(), p0), bon), 0.0)
    moved = float(kl_divergence((p0 + r.exp() / BETA).log_softmax(0), oracle.log_target))
    found.holds("ramble: the posterior of exp(r) is not that of r", moved > 0.1, f"KL {moved:.3f}")
    spaced = ((bon - p0) * 1e9).round() / 1e9  # one number for each level, whatever the rounding
    posterior = (p0 + spaced).log_softmax(0)
    found.holds("r' = log(bon/p0) has more than two values", len(spaced.unique()) > 2, f"{len(spaced.unique())} values")
    found.equal("r': best-of-4 is its posterior at beta=1, KL", kl_divergence(best_of(4, spaced, p0), posterior), 0.0)
    more = best_of(64, spaced, p0)
    _, other = matched(float(kl_divergence(more, p0)), spaced, p0)
    found.less("r': best-of-64 is no posterior of it: E[r']", oracle.mean(spaced, more), oracle.mean(spaced, other))


def optimum(found: Findings, name: str, oracle: Oracle) -> None:
    """KL(bon||p*) for a fixed target, as n grows."""
    sizes = [1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 96, 128, 256, 512, 1024]
    args = oracle.rewards["r"], oracle.log_prior
    laws = [best_of(n, *args) for n in sizes]
    gaps = [float(oracle.reverse_kl(q)) for q in laws]
    inner = min(range(len(sizes)), key=lambda i: gaps[i])
    found.holds(f"{name}: some n between 1 and 1024 is best", 0 < inner < len(sizes) - 1, f"n={sizes[inner]}")
    found.less(f"{name}: KL(bon||p*) there, against n=1", gaps[inner], gaps[0])
    found.less(f"{name}: and against n=1024", gaps[inner], gaps[-1])
    last = torch.where(oracle.rewards["r"] == oracle.rewards["r"].max(), oracle.log_prior, -torch.inf).log_softmax(0)
    found.equal(f"{name}: n=1e6 keeps the best level only, KL", kl_divergence(last, best_of(10**6, *args)), 0.0, 1e-6)
    found.data[f"{name} gaps"] = (sizes, gaps)


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """Reward against KL, and the distance from one target."""
    seen = found.data["review"]
    left.plot(*zip(*seen["posterior"], strict=True), color=PALETTE[0], lw=2)
    note(left, "posteriors", seen["posterior"][24], (-70, 8), PALETTE[0])
    for kl, gain, n in seen["bon"]:
        left.plot([kl, bound(n)], [gain, gain], color=GREY, lw=1, ls=":")
        left.scatter([kl], [gain], s=26, color=PALETTE[1], zorder=3)
        left.scatter([bound(n)], [gain], s=22, facecolor="none", edgecolor=GREY, zorder=3)
        note(left, f"n={n}", (kl, gain), (4, -12), PALETTE[1])
    note(left, "log n - (n-1)/n", (bound(16), seen["bon"][2][1]), (8, -3), GREY)
    left.set_xlim(0, 1.05 * bound(64))
    caption(left, "Best-of-n lies below the posteriors", "KL(q||p0)   [nats]", "E_q[r]   [reward units]")
    for i, name in enumerate(("review", "ramble")):
        sizes, gaps = found.data[f"{name} gaps"]
        right.semilogx(sizes, gaps, marker="o", ms=4, color=PALETTE[i], lw=1.5, base=2)
        where = (sizes[(2, -3)[i]], gaps[(2, -3)[i]])
        note(right, name, where, ((8, 2), (-50, 2))[i], PALETTE[i])
    caption(right, "For one target there is a best n", "n", "KL(bon||p*)   [nats]")
