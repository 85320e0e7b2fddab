"""Each f-divergence from the posterior is a policy gradient with a pseudo-reward of its own.

Training needs a distance from the policy pi to the target, and every convex f with f(1) = 0 offers one:
`D_f(pi||p*) = E_p*[f(t)]`, with `t = pi/p*`. The gradient looks the same for all of them, since only pi moves:

    grad D_f = sum_x p*(x) f'(t) grad t = sum_x f'(t) grad pi = E_pi[f'(t) grad log pi]

This is REINFORCE with the pseudo-reward `-f'(t)`, so a trainer changes its divergence by changing one line: `-1/t` for
f' is `KL(p*||pi)`, distributional policy gradients; `log t + 1` is `KL(pi||p*)`, RLHF; `sign(t - 1)/2` is the total
variation, `log(2t/(t + 1))` twice Jensen-Shannon, `1 - 1/t^2` and `2(t - 1)` the two chi-squares. Texts drawn from
another policy q count with `pi/q`. A baseline changes nothing in the mean, because `E_pi[grad log pi] = 0`, and the
right one, f'(1), takes the noise away where the work is done: at pi = p* all pseudo-rewards are constant.

What is only half true. The six agree on where to end, p*, only if the policy class contains it; else each stops
elsewhere. They also need different things. The target is known up to Z, and t inherits a wrong Z as a factor: for the
KLs and chi-squares that is a baseline or a learning rate, for total variation and Jensen-Shannon it turns the gradient.
And they feel different mistakes. Where pi misses a good text (t near 0) `1/t` and `1/t^2` cry out, if such a text is
ever drawn; where pi overrates a bad one (t large) `log t` and `t` do. Total variation hears only the sign: its gradient
does not shrink on the way to p*, so it needs a falling learning rate.

**In practice.** Reverse KL needs no Z and no ratio, only its logarithm; hence its popularity. For the others keep a
running estimate of Z from the draws, subtract a baseline, and look at the spread of `f'(t)`: where it is heavy-tailed,
the gradient is noise. Jensen-Shannon is mild on both sides (it grows like `log 1/t` for missed texts and is bounded for
overrated ones); Go et al. report that it strikes a good balance and often beats forward KL by a wide margin.

Source: Go et al. 2023, f-DPG (arXiv:2302.08215); Parshakova et al. 2019, DPG (arXiv:1912.08517).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_align import ImportanceSampling, Posterior
from ppl_align.claims._gradients import flat
from ppl_align.claims._toys import CRITIC, jensen_shannon, ramble, review
from ppl_align.claims.drawing import PALETTE, Axes, caption, note, panels
from ppl_align.claims.findings import Findings
from ppl_align.core.estimate import of_draws
from ppl_align.guides import AutoGuide
from ppl_align.testing.oracle import Oracle, kl_divergence


class Divergence(NamedTuple):
    """As it is usually written, a function of (log pi, log p*) [S], and the f' of the table, a function of t."""

    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


DIVERGENCES = {
    "KL(p*||pi)": Divergence(lambda a, b: kl_divergence(b, a), lambda t: -1 / t),
    "KL(pi||p*)": Divergence(kl_divergence, lambda t: t.log() + 1),
    "TV": Divergence(lambda a, b: (a.exp() - b.exp()).abs().sum() / 2, lambda t: (t - 1).sign() / 2),
    "2 JS": Divergence(lambda a, b: 2 * jensen_shannon(a, b), lambda t: (2 * t / (t + 1)).log()),
    "chi2(p*||pi)": Divergence(lambda a, b: (2 * b - a).exp().sum() - 1, lambda t: 1 - 1 / t**2),
    "chi2(pi||p*)": Divergence(lambda a, b: (2 * a - b).exp().sum() - 1, lambda t: 2 * (t - 1)),
}
NEEDS_Z = ("TV", "2 JS")


def study(found: Findings) -> None:
    """A random tabular policy on two programs: the table of slopes against autograd, then against draws."""
    for program, beta in ((review, 1.0), (ramble, 0.7)):
        exact, policy = Oracle(program, beta, 3), AutoGuide(program, "table")
        exact.log_q(policy)  # the first look makes the table, at the prior
        with torch.no_grad():
            for p in policy.sites["text"].parameters():
                p.copy_(0.5 * torch.randn_like(p))
        log_pi, grad_log_pi = scores(exact, policy)
        name, t = program.__name__, (log_pi - exact.log_target).exp()
        mass = (log_pi.exp() @ grad_log_pi).abs().max()
        found.equal(f"{name}: E_pi[grad log pi], largest of {grad_log_pi.shape[1]}", mass, 0.0)
        exactly = {}
        for label, (value, slope) in DIVERGENCES.items():
            gradient = exact.gradient(lambda log_q, value=value: value(log_q, exact.log_target), policy)  # type: ignore[misc]  # noqa: B023
            exactly[label] = flat(gradient.values())
            off = (log_pi.exp() * slope(t)) @ grad_log_pi - exactly[label]
            found.equal(f"{name}, {label}: formula - autograd, relative", off.norm() / exactly[label].norm(), 0.0)
        wrong_evidence(found, name, log_pi, grad_log_pi, t)
    by_draws(found, exact, policy, log_pi, grad_log_pi, exactly)
    near_the_target(found, exact)


def scores(exact: Oracle, policy: AutoGuide) -> tuple[Tensor, Tensor]:
    """log pi [S] and grad log pi [S, parameters]."""
    log_pi, parameters = exact.log_q(policy), list(policy.sites["text"].parameters())
    rows = [torch.autograd.grad(each, parameters, retain_graph=True) for each in log_pi]
    return log_pi.detach(), torch.stack([flat(row) for row in rows])


def by_draws(
    found: Findings, exact: Oracle, policy: AutoGuide, log_pi: Tensor, grad_log_pi: Tensor, exactly: dict[str, Tensor]
) -> None:
    """One component of the gradient from draws of pi, and from draws of p0 with weights and a baseline."""
    direction = torch.randn(grad_log_pi.shape[1], dtype=torch.float64)
    t, along = (log_pi - exact.log_target).exp(), grad_log_pi @ direction
    ours = where(exact, ImportanceSampling(1000, 40, proposal=policy).run(exact.model, *exact.args, seed=found.seed))
    others = where(exact, ImportanceSampling(1000, 40).run(exact.model, *exact.args, seed=found.seed + 1))
    weight = (log_pi - exact.log_prior).exp()
    for label, (_, slope) in DIVERGENCES.items():
        estimates = {
            "draws of pi": (slope(t) * along)[ours],
            "draws of p0, pi/p0, baseline": (weight * (slope(t) - slope(torch.tensor(1.0))) * along)[others],
        }
        for origin, values in estimates.items():
            found.agrees(f"ramble, {label}: {origin}", *of_draws(values), exactly[label] @ direction)
    bare = (exact.log_prior.exp() * (t.log() + 1)) @ grad_log_pi
    found.greater("ramble, KL(pi||p*): p0 without pi/p0, 1 - cosine", unlike(bare, exactly["KL(pi||p*)"]), 0.01)


def wrong_evidence(found: Findings, name: str, log_pi: Tensor, grad_log_pi: Tensor, t: Tensor) -> None:
    """Z half as large makes t half as large: who minds?"""
    for label, (_, slope) in DIVERGENCES.items():
        right, wrong = ((log_pi.exp() * slope(t * factor)) @ grad_log_pi for factor in (1.0, 0.5))
        if label in NEEDS_Z:
            found.greater(f"{name}, {label}: half of Z turns it, 1 - cosine", unlike(right, wrong), 1e-6)
        else:
            found.equal(f"{name}, {label}: half of Z does not turn it", unlike(right, wrong), 0.0)


def near_the_target(found: Findings, exact: Oracle) -> None:
    """Close to p*, one logit per text: grad log pi(x) = e_x - pi. How long is the gradient, and how noisy?"""
    p = exact.log_target.exp()
    wobble = torch.randn_like(p)
    distances = torch.logspace(-4, 0, 17, dtype=torch.float64)
    for label, (_, slope) in DIVERGENCES.items():
        lengths = []
        for distance in distances:
            pi = (exact.log_target + distance * wobble).softmax(0)
            signal = slope(pi / p)
            lengths.append(float((pi * (signal - pi @ signal)).norm()))
        order = math.log10(lengths[4] / lengths[0])  # from 1e-4 to 1e-3
        found.equal(f"{label}: power of the distance in its gradient", order, 0 if label == "TV" else 1, 0.02)
        found.data[label] = lengths
    found.data["distances"] = distances.tolist()
    spread = (p * (1 - 2 * p + p @ p)).sum()  # E|e_x - p|^2
    noise = {label: slope(torch.ones(())) ** 2 * spread for label, (_, slope) in DIVERGENCES.items()}
    for label in ("KL(p*||pi)", "KL(pi||p*)"):
        found.greater(f"{label}: variance at p* without a baseline", noise[label], 0.0)
    found.equal("the other four: variance at p* without a baseline", sum(noise.values()) - 2 * spread, 0.0)


def where(exact: Oracle, run: Posterior) -> Tensor:
    """The place of each draw in the support, [R * N]."""
    base = CRITIC.vocab_size ** torch.arange(3)
    support, drawn = (tokens.reshape(-1, 3) @ base for tokens in (exact.values["text"], run.completions["text"].tokens))
    order = support.argsort()
    return order[torch.searchsorted(support[order], drawn)]


def unlike(a: Tensor, b: Tensor) -> Tensor:
    """One minus the cosine of two gradients."""
    return 1 - (a @ b) / (a.norm() * b.norm())


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """Pseudo-rewards, and what is left of the gradients near the target."""
    t = torch.logspace(-2, 2, 201, dtype=torch.float64)
    for (label, (_, slope)), colour in zip(DIVERGENCES.items(), PALETTE, strict=False):
        left.plot(t, slope(torch.ones(())) - slope(t), color=colour, lw=1.8, label=label)
        right.loglog(found.data["distances"], found.data[label], color=colour, lw=1.8)
    left.set_xscale("log")
    left.set_ylim(-5, 8)
    caption(left, "Who minds a missed text, who an overrated one", "t = pi/p* of a text", "pseudo-reward f'(1) - f'(t)")
    left.legend(loc="upper right", fontsize=8.5)
    note(right, "TV", (1e-4, found.data["TV"][0]), (4, -12), PALETTE[2])
    caption(right, "All gradients fade near p* but one", "distance of the logits from p*", "length of the gradient")
