"""A policy that cannot express the posterior covers its modes or picks one, by direction of the KL.

There are two ways to be close to p*. RL with a KL penalty, and variational inference, lower the reverse divergence
`KL(q||p*)`: it is infinite as soon as q writes what p* never writes, and leaving something out costs little, so
q withdraws into one mode. Maximum likelihood on posterior draws, and distributional policy gradients (DPG, GDC), lower
the forward `KL(p*||q)`: now leaving out is what costs, and q covers everything, with mass in between if need be.

The smallest example is two answers drafted in parallel that ought to agree. The target is (.49, .01, .01, .49) on (no
no, no yes, yes no, yes yes), the policy a product with chances a and b of "yes". Forward, the best product has the
marginals of p*, since `KL(p*||q) = const - E_p*[log q1] - E_p*[log q2]`: a = b = 1/2, and what remains is the mutual
information of the two answers. Half of its drafts disagree, which p* almost never does. Reverse, with `m = 2a - 1`,
the stationary points solve `m = tanh(m log(odds)/2)`, odds = .49/.01: two mirror images, each near one mode, and the
covering point m = 0, which is a saddle. Jensen-Shannon, the mean divergence of q and p* from their mixture, covers
here.

Three things are only half true. First, all of this is about the policy class, not the target: give the second draft a
look at the first and both directions end at p* itself, divergence zero. Second, the reverse KL picks a mode only if
the modes are far apart: `m = tanh(J m)` has no other root than 0 for J <= 1, here for `beta >= 1/2` with a reward of 1
for agreeing. Third, "picks" is a matter of luck. At the prior the exact reverse gradient is zero by symmetry; noise
decides, and another seed picks the other mode. Where one mode holds more mass it is the deeper optimum, but the
shallow one is a local optimum as well.

**In practice.** An autoregressive policy can in principle express p*, so mode picking in RLHF is a matter of finite
capacity and of optimisation, and of a small beta that makes the modes steep. If all draws of a trained guide say the
same thing, train it again from another seed before believing it. Where coverage matters, fit the forward direction,
from the weighted draws of any other engine: above all for a proposal of importance sampling, whose weights `p*/q`
explode on what q leaves out.

Source: Korbak et al. 2022, RL and distribution matching (arXiv:2206.00761); Go et al. 2023, f-DPG (arXiv:2302.08215).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ppl_align import SVI, ImportanceSampling, MarkovLM, completion, reward
from ppl_align.claims._gradients import flat
from ppl_align.claims._toys import jensen_shannon
from ppl_align.claims._turns import maximise
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, panels
from ppl_align.claims.findings import Findings
from ppl_align.guides import AutoGuide
from ppl_align.testing import Oracle
from ppl_align.testing.oracle import kl_divergence


def coin(yes: float) -> MarkovLM:
    """Answers "yes" with that probability, whatever came before."""
    chances = torch.tensor([1 - yes, yes], dtype=torch.float64).log()
    return MarkovLM(chances.expand(2, 2), chances, tokens=("no ", "yes "), name="coin")


def agree(tokens: Tensor) -> Tensor:
    """1 if both answers are the same."""
    return (tokens[..., 0] == tokens[..., 1]).double()


def parallel(lm: MarkovLM, beta: float) -> None:
    """Two answers drafted in parallel that ought to agree. A guide for this program is a product."""
    first = completion("first", lm, "", max_new_tokens=1)
    second = completion("second", lm, "", max_new_tokens=1)
    reward("agree", agree, torch.cat([first.tokens, second.tokens], -1), beta=beta)


def serial(lm: MarkovLM, beta: float) -> None:
    """The same target, written one token after the other: here the guide can condition on the first."""
    both = completion("both", lm, "", max_new_tokens=2)
    reward("agree", agree, both.tokens, beta=beta)


FAIR, BIASED = coin(0.5), coin(0.6)
STEEP = 1 / math.log(49)  # the beta at which agreeing is 49 times as probable


def study(found: Findings) -> None:
    """The three optima; the roots behind them; one mode per seed; when both directions agree."""
    oracle = Oracle(parallel, FAIR, STEEP)
    for p, cell in zip(oracle.log_target.exp(), ("0.49", "0.01", "0.01", "0.49"), strict=True):
        found.rounds_to("p* of one pair of answers", p, cell)
    losses: dict[str, Loss] = {
        "forward": oracle.forward_kl,
        "reverse": oracle.reverse_kl,
        "JS": lambda q: jensen_shannon(q, oracle.log_target),
    }
    figures = {"forward": ("0.500000", "0.595108"), "reverse": ("0.975989", "0.669229"), "JS": ("0.500000", "0.177464")}
    best: dict[str, Tensor] = {}
    for name, loss in losses.items():
        best[name] = fit(oracle, guide_at(oracle, 0.8, 0.7), loss)
        for answer, yes in zip("ab", marginals(best[name]), strict=True):
            found.rounds_to(f"{name}: {answer} of the optimum", yes, figures[name][0])
        found.rounds_to(f"{name}: divergence there, nats", loss(best[name]), figures[name][1])
        surface = found.data[name] = torch.stack([torch.stack([loss(product(a, b)) for b in AXIS]) for a in AXIS])
        found.greater(f"{name}: lowest of 41 x 41 other products is higher", surface.min(), loss(best[name]) - 1e-9)
    mirror = fit(oracle, guide_at(oracle, 0.2, 0.3), oracle.reverse_kl)
    found.rounds_to("reverse, from the other side: the mirror, a", marginals(mirror)[0], "0.024011")
    found.rounds_to("reverse, divergence there", oracle.reverse_kl(mirror), "0.669229")

    found.rounds_to("P(both agree): p*", oracle.mean("agree"), "0.98")
    found.equal("P(both agree): forward optimum", oracle.mean("agree", best["forward"]), 0.5, 1e-6)
    found.greater("P(both agree): reverse optimum", oracle.mean("agree", best["reverse"]), 0.95)
    second_moment = {name: (2 * oracle.log_target - best[name]).exp().sum() for name in ("forward", "reverse")}
    found.greater(
        "E_q[(p*/q)^2]: reverse, above 100 x forward", second_moment["reverse"], 100 * second_moment["forward"]
    )

    prior = guide_at(oracle, 0.5, 0.5)
    slopes = oracle.gradient(oracle.reverse_kl, prior).values()
    found.equal("reverse: |gradient| at the prior", flat(slopes).norm(), 0.0)
    found.less("but a step aside is lower", oracle.reverse_kl(product(0.6, 0.6)), oracle.reverse_kl(product(0.5, 0.5)))
    for seed in range(3):
        guide = SVI(num_steps=60).run(parallel, FAIR, STEEP, seed=found.seed + seed).guide
        value = oracle.reverse_kl(fit(oracle, guide, oracle.reverse_kl))
        found.rounds_to(f"SVI (seed + {seed}), then exact descent: divergence", value, "0.669229")

    for beta in (0.6, 0.4):
        mild = Oracle(parallel, FAIR, beta)
        a = marginals(fit(mild, guide_at(mild, 0.8, 0.7), mild.reverse_kl))[0]
        found.equal(f"beta={beta}: reverse a, against m = tanh(J m)", a, (1 + root(beta)) / 2, 1e-5)
    found.equal("beta=0.6: that root m", root(0.6), 0.0)
    found.greater("beta=0.4: that root m > 1/2", root(0.4), 0.5)

    skewed = Oracle(parallel, BIASED, STEEP)
    cover = fit(skewed, guide_at(skewed, 0.8, 0.3), skewed.forward_kl)
    for answer, q, p in zip("ab", marginals(cover), marginals(skewed.log_target), strict=True):
        found.equal(f"biased coin: forward {answer} = P*(yes)", q, p, 1e-6)
    independent = product(*marginals(skewed.log_target))
    information = kl_divergence(skewed.log_target, independent)
    found.equal("biased coin: its KL = mutual information of p*", skewed.forward_kl(cover), information)
    drawn = ImportanceSampling(num_particles=1000).run(parallel, BIASED, STEEP, seed=found.seed)
    found.agrees(
        "biased coin: the same a from 4000 weighted draws",
        *drawn.mean(lambda p: p["first"].tokens[..., 0].double()),
        marginals(cover)[0],
    )
    deep, shallow = (skewed.reverse_kl(fit(skewed, guide_at(skewed, y, y), skewed.reverse_kl)) for y in (0.8, 0.2))
    found.less("biased coin: reverse in the heavy mode, and in the other", deep, shallow)

    able = Oracle(serial, FAIR, STEEP)
    for name, loss in (("forward", able.forward_kl), ("reverse", able.reverse_kl)):
        guide = SVI(num_steps=5).run(serial, FAIR, STEEP, seed=found.seed).guide
        found.greater(
            f"one token after the other: {name} at the start", loss(able.log_q(guide).detach()), 0.1, run=True
        )
        found.equal(f"one token after the other: {name} optimum", loss(fit(able, guide, loss)), 0.0)


Loss = Callable[[Tensor], Tensor]
AXIS = torch.linspace(0.01, 0.99, 41, dtype=torch.float64).tolist()


def guide_at(oracle: Oracle, a: float, b: float) -> AutoGuide:
    """The library's guide of the program (a table for each answer), set to these chances of "yes"."""
    guide = SVI(num_steps=1).run(oracle.model, *oracle.args).guide
    for site, yes in (("first", a), ("second", b)):
        (table,) = guide.sites[site].parameters()
        source, wanted = oracle.source(site), torch.tensor([[1 - yes, yes]], dtype=torch.float64).log()
        before = source.lm.start(source.prompts).log_probs  # the table tilts the prior
        with torch.no_grad():
            table.copy_(wanted - before)
    return guide


def fit(oracle: Oracle, guide: AutoGuide, loss: Loss) -> Tensor:
    """Exact descent (L-BFGS) on loss(log q) in the guide's own parameters: log q of the four pairs."""
    tables = [p for part in guide.sites.values() for p in part.parameters()]
    maximise(lambda: -loss(oracle.log_q(guide)), tables)
    return oracle.log_q(guide).detach()


def product(a: float | Tensor, b: float | Tensor) -> Tensor:
    """log q of the pairs (no no, no yes, yes no, yes yes) for independent answers."""
    first, second = (torch.stack([1 - y, y]) for y in (torch.as_tensor(a).double(), torch.as_tensor(b).double()))
    return torch.outer(first, second).reshape(-1).log()


def marginals(log_q: Tensor) -> tuple[Tensor, Tensor]:
    """The chances of "yes" in the first and in the second answer."""
    q = log_q.exp()
    return q[2] + q[3], q[1] + q[3]


def root(beta: float) -> float:
    """The largest root of m = tanh(m / (2 beta)), m = 2a - 1."""
    m = 1.0
    for _ in range(2000):
        m = math.tanh(m / (2 * beta))
    return m


@panels(3, size=(4.2, 3.8))
def figure(found: Findings, *axes: Axes) -> None:
    """Both landscapes over (a, b), and where the reverse optimum goes as beta falls."""
    spots = {"forward": [(0.5, 0.5)], "reverse": [(0.975989, 0.975989), (0.024011, 0.024011)]}
    titles = ("Forward KL(p*||q) covers", "Reverse KL(q||p*) picks a mode")
    for axis, title, (name, optima) in zip(axes, titles, spots.items(), strict=False):
        surface = found.data[name].numpy()
        levels = surface.min() + torch.logspace(-2, 0.5, 14).numpy()
        axis.contour(AXIS, AXIS, surface.T, levels=levels, colors=GREY, linewidths=0.9)
        axis.scatter(*zip(*optima, strict=True), color=PALETTE[1], s=46, zorder=3)
        axis.set_aspect("equal")
        caption(axis, title, "a = q(first answer is yes)", "b = q(second answer is yes)")
    betas = torch.linspace(0.15, 0.9, 200).tolist()
    for sign in (1, -1):
        axes[2].plot(betas, [(1 + sign * root(beta)) / 2 for beta in betas], color=PALETTE[1], lw=2)
    axes[2].axhline(0.5, color=PALETTE[0], lw=1.4, ls="--")
    axes[2].annotate("reverse", (0.2, 0.88), color=PALETTE[1])
    axes[2].annotate("forward", (0.2, 0.53), color=PALETTE[0])
    caption(axes[2], "It picks only below beta = 1/2", "beta   [reward units per nat]", "a of the optimum")
