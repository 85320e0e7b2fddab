"""The maximiser of KL-regularised reward is the Bayesian posterior.

Reinforcement learning from human feedback maximises `J(q) = E_q[r] - beta KL(q||p0)`: much reward, but close to the
language model `p0` one started from. Bayes' rule with prior `p0` and likelihood `exp(r/beta)` gives
`p*(x) = p0(x) exp(r(x)/beta) / Z`. Both name the same distribution. Solve Bayes' rule for the reward,
`r(x) = beta log(p*(x)/p0(x)) + beta log Z`, and put it into J:

    J(q) = E_q[beta log(p*/p0)] + beta log Z - beta E_q[log(q/p0)]
         = beta log Z - beta KL(q||p*)

The first term does not depend on q and the second is largest, zero, at `q = p*` and nowhere else. So the best value of
the objective is `beta log Z`, known before any training, and a policy falls short of it by exactly `beta` times its
KL from the posterior. The step holds for every q, every reward and every `beta > 0`.

What is only half true. The optimum is `p*` among *all* distributions; a policy class that cannot express `p*` stops at
the member nearest to it in `KL(q||p*)`, the mode-seeking direction. And an optimum is not a promise to get there. J is
concave in q, not in the logits: the gradient of a text's logit is proportional to the text's own probability, so plain
gradient ascent out of a collapsed policy goes uphill and hardly moves. The natural gradient leaves that factor out and
arrives from anywhere at the same rate. It is also this penalty that makes it Bayes. With `KL(p0||q)` in its place the
optimum is `beta p0/(c - r)`; with an entropy bonus instead of a KL it is `exp(r/beta)`, the posterior of a *uniform*
prior over strings, which no language model is. And nothing here says that `r` is right: the posterior is exactly as
good as its likelihood.

**In practice.** Beta is not a regulariser to be tuned away, it is part of the target: 1/beta is how many nats one unit
of reward is worth. Once it is fixed, "is training done?" has an answer: compare J with an estimate of `beta log Z`. Two
trainers with the same r, beta and p0 have the same target, so a difference between them is inference, not alignment.

Source: Korbak, Perez & Buckley 2022 (arXiv:2205.11275); Levine 2018 (arXiv:1805.00909).
"""

from __future__ import annotations

from typing import Any

import torch
from scipy.optimize import bisect
from torch import Tensor

from ppl_align import SVI
from ppl_align.claims._toys import ramble, review, spot
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, note, panels
from ppl_align.claims.findings import Findings
from ppl_align.testing.oracle import Oracle, kl_divergence


def objective(oracle: Oracle, beta: float, policy: Any) -> Tensor:
    """J(q) = E_q[r] - beta KL(q||p0), as RLHF writes it: neither Z nor p* appears."""
    log_q = oracle.log_q(policy)
    (r,) = oracle.rewards.values()
    return oracle.mean(r, log_q) - beta * kl_divergence(log_q, oracle.log_prior)


def climb(oracle: Oracle, beta: float, start: Tensor, natural: bool) -> tuple[Tensor, list[float]]:
    """200 steps of gradient ascent on J over a tabular policy, one logit per text: log q, and J on the way.

    Of a text's logit the gradient is q(x) times something. The natural gradient leaves that q(x) out."""
    logits, path = start.clone().requires_grad_(), []
    for _ in range(200):
        j = objective(oracle, beta, logits.log_softmax(0))
        (slope,) = torch.autograd.grad(j, logits)
        path.append(j.item())
        step = slope / logits.detach().softmax(0) if natural else slope
        logits = (logits.detach() + 0.2 / beta * step).requires_grad_()
    return logits.detach().log_softmax(0), path


def reversed_penalty(r: Tensor, log_prior: Tensor, beta: float) -> Tensor:
    """log of the maximiser of E_q[r] - beta KL(p0||q), which is beta p0/(c - r); c by bisection."""
    top = float(r.max())  # at c = top the mass is infinite, at c = top + beta at most 1
    c = bisect(lambda c: float((beta * log_prior.exp() / (c - r)).sum()) - 1, top, top + beta, xtol=1e-15)
    return (beta * log_prior.exp() / (c - r)).log()


def study(found: Findings) -> None:
    """Two programs: climb J, then move away from the top."""
    for program, beta in ((review, 0.5), (ramble, 0.8)):
        oracle, name = Oracle(program, beta), program.__name__
        best = beta * oracle.log_evidence
        (r,) = oracle.rewards.values()
        found.equal(f"{name}: J(p*) = beta log Z", objective(oracle, beta, oracle.log_target), best)
        rarest = oracle.log_prior == oracle.log_prior.min()
        starts = {
            "the prior": oracle.log_prior,
            "a random policy": 2 * torch.randn_like(oracle.log_prior),
            "one text": torch.where(rarest, 12.0, 0.0).double(),
        }
        for label, start in starts.items():
            policy, path = climb(oracle, beta, start, natural=True)
            found.equal(f"{name}: ascent from {label}, KL(q||p*)", oracle.reverse_kl(policy), 0.0)
            _, slow_path = climb(oracle, beta, start, natural=False)
            found.data[f"{name}, {label}"] = [[best - j for j in p] for p in (path, slow_path)]
        gone = best - slow_path[0]  # the start from one text is the last of them
        found.greater(f"{name}: plain gradient from there lacks over 9/10", best - slow_path[-1], 0.9 * gone)
        trained = SVI(guide="table").run(program, beta, seed=found.seed).guide
        away: dict[str, Any] = {
            "the prior": oracle.log_prior,
            "the uniform law": torch.zeros_like(oracle.log_prior).log_softmax(0),
            "the best text alone": torch.where(oracle.log_target == oracle.log_target.max(), 0.0, -torch.inf),
            "60 steps of SVI": oracle.log_q(trained).detach(),
        }
        for label, q in away.items():
            lost = best - objective(oracle, beta, q)
            found.equal(f"{name}: J lost by {label} = beta KL(q||p*)", lost, beta * oracle.reverse_kl(q))
        cloud = (oracle.log_target + torch.randn(300, len(oracle.log_target)) * torch.rand(300, 1) * 3).log_softmax(1)
        errors = [best - objective(oracle, beta, q) - beta * oracle.reverse_kl(q) for q in cloud]
        found.equal(f"{name}: 300 random q, worst error of the same", torch.stack(errors).abs().max(), 0.0)
        left = [oracle.reverse_kl(away[label]) for label in ("60 steps of SVI", "the prior")]
        found.less(f"{name}: SVI (sampled gradients) cuts the KL to a half", left[0], left[1] / 2, run=True)
        other = reversed_penalty(r, oracle.log_prior, beta)
        found.equal(f"{name}: beta p0/(c - r) sums to", other.exp().sum(), 1.0)
        gain = [oracle.mean(r, q) - beta * kl_divergence(oracle.log_prior, q) for q in (oracle.log_target, other)]
        found.greater(f"{name}: with KL(p0||q) it beats p*", gain[1], gain[0])
        found.less(f"{name}: with KL(q||p0) it does not", objective(oracle, beta, other), best)
        entropic = (r / beta).log_softmax(0)
        found.less(f"{name}: nor does exp(r/beta), uniform prior", objective(oracle, beta, entropic), best)
        found.data[f"plane of {name}"] = plane(oracle, r, beta, cloud)


def plane(oracle: Oracle, r: Tensor, beta: float, cloud: Tensor) -> dict[str, Any]:
    """Reward against distance from the prior: of random policies, and of the posteriors at every beta."""
    frontier = [(oracle.log_prior + scale * r).log_softmax(0) for scale in torch.linspace(0, 12, 200).tolist()]
    return {
        "beta": beta,
        "top": beta * oracle.log_evidence,
        "target": spot(oracle.log_target, oracle.log_prior, r),
        "cloud": [spot(q, oracle.log_prior, r) for q in cloud],
        "frontier": [spot(q, oracle.log_prior, r) for q in frontier],
    }


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """The climb, and the geometry of J."""
    seen = found.data["plane of ramble"]
    paths = {name.split(", ")[1]: pair for name, pair in found.data.items() if name.startswith("ramble, ")}
    for colour, (start, (natural, plain)) in zip(PALETTE, paths.items(), strict=False):
        left.semilogy([gap for gap in natural if gap > 1e-14], color=colour, lw=1.8, label=f"from {start}")
        left.semilogy(plain, color=colour, lw=1.2, ls="--")
    left.set_ylim(1e-14, 1e2)
    caption(left, "Natural gradient ascent ends at beta log Z", "step (dashed: plain gradient)")
    left.set_ylabel("beta log Z - J(q)   [reward units]")
    left.legend(loc="lower right")
    right.scatter(*zip(*seen["cloud"], strict=True), s=9, color=GREY, alpha=0.6, lw=0)
    right.plot(*zip(*seen["frontier"], strict=True), color=PALETTE[0], lw=2)
    kl, gain = seen["target"]
    edge = max(x for x, _ in seen["frontier"])
    right.plot([0, edge], [seen["top"], seen["top"] + seen["beta"] * edge], color=PALETTE[1], lw=1.2, ls="--")
    right.scatter([kl], [gain], s=46, color=PALETTE[1], zorder=3)
    notes = {
        "p*": ((kl, gain), (-12, 8), PALETTE[1]),
        "height beta log Z, slope beta": ((edge, seen["top"] + seen["beta"] * edge), (8, -2), PALETTE[1]),
        "posteriors at every beta": (max(seen["frontier"]), (8, -2), PALETTE[0]),
        "300 random policies": (max(seen["cloud"]), (-90, -24), GREY),
    }
    for text, (at, offset, colour) in notes.items():
        note(right, text, at, offset, colour)
    right.set_xlim(left=0)
    caption(right, "p* is where a line of slope beta touches the best", "KL(q||p0)   [nats]", "E_q[r]   [reward units]")
