"""A constraint on averages, E[phi] = mu, is a posterior too, with a reward whose weight is fitted.

Some goals are about the distribution and not about any one text: half of the biographies should be of women, reviews
should be positive on average. Among all q that meet such a constraint, `E_q[phi] = mu`, the one nearest to the language
model in `KL(q||p0)` is again a tilted prior, `p*(x) = p0(x) exp(lambda phi(x)) / Z`: the feature is the reward, and
lambda, nats per unit of phi, is not chosen but solved for. Why: `log(p*/p0) = lambda phi - log Z`, so for any q

    KL(q||p0) - KL(q||p*) = E_q[log(p*/p0)] = lambda E_q[phi] - log Z
    KL(p*||p0)                              = lambda mu       - log Z

so that `KL(q||p0) = KL(q||p*) + KL(p*||p0) + lambda (E_q[phi] - mu)`. Where q meets it the last term is zero and
what remains is Pythagoras: the way from p0 to q is the way to p* plus the way from there, and none is shorter than
to p*. Lambda minimises a convex function, `log Z(lambda) - lambda mu`, whose slope is `E_p*[phi] - mu` and whose least
value is `-KL(p*||p0)`. With several constraints lambda and mu are vectors and not a word changes.

What is only half true. The constraint is on averages, and only on them: with a yes-or-no feature p* is a mixture of the
two conditioned priors, in the right proportion, each text as one-sided as before. A constraint of certainty (mu = 1)
has no finite lambda; it is conditioning, the limit. A reward with fixed beta and a constraint on `E[r]` go through the
same family, with `1/beta = lambda`; what differs is what stays fixed when the prior or the prompt changes. And a lambda
fitted on n draws of the prior knows nothing of texts that were not drawn: it is as good as those draws.

**In practice.** Fit lambda on draws of the prior, weighted by `exp(lambda phi)`: the mean of phi rises monotonically in
lambda, so bisection with the same draws cannot fail, and its error follows from that of the mean, `se / Var_p*(phi)`.
Watch the effective sample size there: a target far from the prior leaves few draws to fit on.

Source: Csiszar 1975 (doi:10.1214/aop/1176996454); Khalifa, Elsahar & Dymetman 2021, GDC (arXiv:2012.11635).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import SupportsFloat

import torch
from scipy.optimize import brentq
from scipy.special import logit
from torch import Tensor

from ppl_align import ImportanceSampling, completion, reward
from ppl_align.claims._toys import CRITIC, RAMBLER, pattern, praise
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, note, panels
from ppl_align.claims.findings import Findings
from ppl_align.testing.oracle import Oracle, kl_divergence


def fair(weight: float) -> None:
    """A yes-or-no feature: how often does a review say "fine"?"""
    text = completion("text", CRITIC, "", max_new_tokens=4)
    reward("phi", lambda texts: [float("fine" in t) for t in texts], text, weight=weight)


def cheerful(weight: float) -> None:
    """A feature with many values: praise."""
    text = completion("text", CRITIC, "", max_new_tokens=4)
    reward("phi", praise, text, weight=weight)


def ramble(weight: float) -> None:
    """The same without an end of text."""
    x = completion("text", RAMBLER, [2], max_new_tokens=4)
    reward("phi", pattern, x.tokens, weight=weight)


def both(weights: Tensor) -> None:
    """Two constraints at once."""
    text = completion("text", CRITIC, "", max_new_tokens=4)
    reward("fine", lambda texts: [float("fine" in t) for t in texts], text, weight=float(weights[0]))
    reward("dull", lambda texts: [float("dull" in t) for t in texts], text, weight=float(weights[1]))


CONSTRAINTS: dict[Callable[[float], None], float] = {fair: 0.7, cheerful: 1.5, ramble: 0.8}
"""Programs, and the mean of phi that is wanted."""


def solve(mean: Callable[[float], SupportsFloat], mu: float) -> float:
    """The lambda at which a rising mean reaches mu."""
    return float(brentq(lambda weight: float(mean(weight)) - mu, -10.0, 10.0, xtol=1e-13))


def newton(program: Callable[[Tensor], None], features: Sequence[str], mu: Tensor) -> Tensor:
    """Several constraints: Newton's method on log Z(lambda) - lambda . mu, whose Hessian is the covariance of phi."""
    weights = torch.zeros(len(mu), dtype=torch.float64)
    for _ in range(12):
        exact = Oracle(program, weights)
        phi = torch.stack([exact.rewards[name] for name in features])
        p = exact.log_target.exp()
        mean = phi @ p
        weights = weights - torch.linalg.solve((phi * p) @ phi.T - torch.outer(mean, mean), mean - mu)
    return weights


def keeping(exact: Oracle, count: int) -> Tensor:
    """log q [count, S] of random laws with the same means of all features as p*: a random walk that preserves them."""
    basis = torch.stack([torch.ones_like(exact.log_target), *exact.rewards.values()])
    q = exact.log_target.exp().repeat(count, 1)
    for _ in range(30):
        noise = torch.randn_like(q)
        gram = torch.einsum("ns,fs,gs->nfg", q, basis, basis)
        noise -= torch.linalg.solve(gram, torch.einsum("ns,ns,fs->nf", q, noise, basis)) @ basis
        q = q * (1 + torch.rand(count, 1, dtype=torch.float64) * noise / (-noise).amax(1, keepdim=True))
    return q.log()


def excess(exact: Oracle, q: Tensor) -> Tensor:
    """KL(q||p0) - KL(q||p*) - KL(p*||p0), for each of the laws [count, S]."""
    nearest = kl_divergence(exact.log_target, exact.log_prior)
    return torch.stack([kl_divergence(law, exact.log_prior) - exact.reverse_kl(law) - nearest for law in q])


def study(found: Findings) -> None:
    """One constraint in three programs, then two constraints in one."""
    for program, mu in CONSTRAINTS.items():
        fitted = solve(lambda weight, program=program: Oracle(program, weight).mean("phi"), mu)  # type: ignore[misc]
        exact = Oracle(program, fitted)
        found.equal(f"{program.__name__}: E_p*[phi] = mu", exact.mean("phi"), mu)
        pythagoras(found, program.__name__, exact, fitted, mu)
        from_draws(found, program, exact, fitted, mu)
        if program is fair:
            yes_or_no(found, exact, fitted, mu)

    wanted = torch.tensor([0.7, 0.25], dtype=torch.float64)
    exact = Oracle(both, newton(both, ("fine", "dull"), wanted))
    for feature, mu in zip(("fine", "dull"), wanted.tolist(), strict=True):
        found.equal(f"both: E_p*[{feature}] = mu", exact.mean(feature), mu)
    found.equal("both: Pythagoras, 200 laws, off by", excess(exact, keeping(exact, 200)).abs().max(), 0.0)
    alone = Oracle(fair, solve(lambda weight: Oracle(fair, weight).mean("phi"), 0.7)).log_target
    found.greater("both: the first constraint alone leaves E[dull] above", exact.mean("dull", alone), wanted[1])


def pythagoras(found: Findings, name: str, exact: Oracle, fitted: float, mu: float) -> None:
    """For laws that meet the constraint, and with the last term for laws that do not."""
    nearest = kl_divergence(exact.log_target, exact.log_prior)
    found.equal(f"{name}: log Z - lambda mu = -KL(p*||p0)", exact.log_evidence - fitted * mu, -nearest)
    kept = keeping(exact, 200)
    broken = (exact.log_target + 1.5 * torch.randn_like(kept)).log_softmax(1)
    means = {label: q.exp() @ exact.rewards["phi"] for label, q in (("kept", kept), ("broken", broken))}
    found.equal(f"{name}: 200 laws q that keep it, |E_q[phi] - mu|", (means["kept"] - mu).abs().max(), 0.0)
    found.equal(f"{name}: Pythagoras for each of them, off by", excess(exact, kept).abs().max(), 0.0)
    lengths = {
        label: [(float(exact.reverse_kl(law)), float(kl_divergence(law, exact.log_prior))) for law in q]
        for label, q in (("kept", kept), ("broken", broken))
    }
    found.less(f"{name}: p* is nearer to p0 than any of them", nearest, min(b for _, b in lengths["kept"]), run=True)
    errors = excess(exact, broken)
    found.greater(f"{name}: 200 that break it are off by up to", errors.abs().max(), 0.0, run=True)
    last = fitted * (means["broken"] - mu)
    found.equal(f"{name}: which is lambda (E_q[phi] - mu), to within", (errors - last).abs().max(), 0.0)
    found.data[name] = lengths | {"nearest": float(nearest)}


def from_draws(found: Findings, program: Callable[[float], None], exact: Oracle, fitted: float, mu: float) -> None:
    """Lambda from draws of the prior, as one would fit it on a real language model."""
    name, engine = program.__name__, ImportanceSampling(5000, 4)
    phi = engine.run(program, 0.0, seed=found.seed).rewards["phi"].flatten()
    estimate = solve(lambda weight: torch.softmax(weight * phi, 0) @ phi, mu)
    mean, error = engine.run(program, estimate, seed=found.seed).mean("phi")  # the same draws, weighted by the engine
    found.equal(f"{name}: E[phi] as the engine sees it, fitted lambda", mean, mu)
    variance = exact.mean((exact.rewards["phi"] - mu) ** 2)
    found.agrees(f"{name}: lambda from 20,000 draws of the prior", estimate, error / variance, fitted)
    grid = torch.linspace(-1, 2, 61, dtype=torch.float64)
    means = (exact.log_prior + grid[:, None] * exact.rewards["phi"]).softmax(1) @ exact.rewards["phi"]
    found.data[f"{name}, curve"] = grid.tolist(), means.tolist(), estimate, mu


def yes_or_no(found: Findings, exact: Oracle, fitted: float, mu: float) -> None:
    """A feature of two values: a mixture of two conditioned priors, and conditioning in the limit."""
    yes = exact.rewards["phi"] == 1
    share = float(exact.log_prior[yes].exp().sum())
    found.equal("fair: lambda = logit(mu) - logit(E_p0[phi])", fitted, logit(mu) - logit(share))
    given_yes = torch.where(yes, exact.log_prior, -torch.inf).log_softmax(0)
    given_no = torch.where(yes, -torch.inf, exact.log_prior).log_softmax(0)
    mixture = (mu * given_yes.exp() + (1 - mu) * given_no.exp()).log()
    found.equal("fair: KL(p*||mu p0(.|yes) + (1 - mu) p0(.|no))", kl_divergence(exact.log_target, mixture), 0.0)
    nearly = Oracle(fair, solve(lambda weight: Oracle(fair, weight).mean("phi"), 0.9999))
    conditioned = kl_divergence(given_yes, nearly.log_target)
    found.equal("fair: mu = 0.9999, KL(p0(.|yes)||p*) = -log mu", conditioned, -math.log(0.9999))


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """Pythagoras as a line of slope one; lambda as the solution of an equation."""
    seen = found.data["cheerful"]
    left.scatter(*zip(*seen["broken"], strict=True), s=9, color=GREY, alpha=0.6, lw=0, label="E_q[phi] is not mu")
    left.scatter(*zip(*seen["kept"], strict=True), s=9, color=PALETTE[0], lw=0, label="E_q[phi] = mu")
    left.scatter([0], [seen["nearest"]], s=46, color=PALETTE[1], zorder=3, clip_on=False)
    note(left, "p*", (0, seen["nearest"]), (6, -14), PALETTE[1])
    caption(left, "Laws that meet the constraint lie on a line of slope 1", "KL(q||p*)   [nats]", "KL(q||p0)   [nats]")
    left.legend(loc="lower right")
    labels = {"cheerful": "praise", "ramble": "pattern", "fair": '"fine"'}
    for (name, label), colour in zip(labels.items(), PALETTE, strict=False):
        grid, curve, estimate, mu = found.data[f"{name}, curve"]
        right.plot(grid, curve, color=colour, lw=1.8)
        right.plot([grid[0], estimate, estimate], [mu, mu, min(curve)], color=colour, lw=1, ls="--")
        note(right, label, (grid[-1], curve[-1]), (4, -3), colour)
    caption(right, "The mean rises with lambda, so it can be solved for")
    right.set(xlabel="lambda   [nats per unit of phi] (dashes: from 20,000 draws)", ylabel="E[phi]")
