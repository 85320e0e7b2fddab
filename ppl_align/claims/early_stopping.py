"""Early stopping is a KL penalty: the number of steps sets beta, exactly so for natural gradients.

Maximise `E_q[r]` alone, start at the prior, and stop early. For a table with one logit per text the gradient is
`q (r - E_q r)`, and the natural gradient, that is F^-1 times it with the Fisher matrix `F = diag(q) - q q^T`, is r up
to a constant. So a step of size eta adds `eta r` to the logits, and k steps from p0 give `p0 exp(k eta r) / Z`: the
posterior at `beta = 1/(k eta)`. Nobody wrote a KL term. The step count did its work, and only the sum of the step sizes
counts. The same law read backwards: train twice as long and beta is halved; never stop and the optimum is one text.

What is only half true. The identity is about logits of whole texts. Per token the natural gradient adds
`eta A(x_<t, x_t)`, an advantage, where the posterior needs a difference of soft values; the two agree in the limit of
small steps, with a KL that falls like `eta^2` at fixed `k eta`. Vanilla gradients are not on the
path of posteriors at all: they move a text in proportion to its probability, so they spend KL on what is likely and
good and neglect what is rare and better. The posterior earns the most reward among all policies of its KL, hence at
matched KL the vanilla policy earns less. Stopped early, it is regularised, but not by this penalty.

PPO's clipping is no substitute. The surrogate `E_old[min(rho A, clip(rho, 1-eps, 1+eps) A)]` takes away the reason to
push the ratio rho beyond the clip, so one step stays small however often it is optimised. (It does not
even bound rho: the normalisation moves texts whose own term is clipped.) But the reference is the policy of the last
step, not p0. Small steps add up, nothing pulls back, and the policy collapses as it would without a clip. The same
loop with `- beta log(q/p0)` in the reward settles near the posterior instead.

**In practice.** A run "without KL penalty" has one: learning rate times steps. Report KL from the initial model and
compare runs at equal KL, not at equal steps. Whatever rescales rewards rescales this beta: dividing a
prompt's rewards by their standard deviation gives every prompt a beta of its own.

Source: Kakade 2001 (natural policy gradient); Schulman et al. 2017, PPO (arXiv:1707.06347); Wang, He & Tan 2019, Truly
PPO, on what clipping does not bound (arXiv:1903.07940).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_align import completion, reward
from ppl_align.claims._gradients import fisher, vanilla
from ppl_align.claims._toys import CRITIC, matched, praise, ramble, spot
from ppl_align.claims.drawing import PALETTE, Axes, caption, panels
from ppl_align.claims.findings import Findings
from ppl_align.guides.table import TableGuide
from ppl_align.testing import Oracle
from ppl_align.testing.oracle import entropy, kl_divergence

LENGTH = 3


def review(beta: float, length: int) -> None:
    """A review that may end early; "very" costs a little."""
    text = completion("review", CRITIC, "", max_new_tokens=length)
    reward("praise", praise, text, beta=beta)
    reward("brevity", lambda texts: [-0.3 * t.count("very") for t in texts], text, beta=beta)


def study(found: Findings) -> None:
    """Natural gradients by text and by token; vanilla gradients and PPO beside the posterior at their KL."""
    for program in (ramble, review):
        name, oracle = program.__name__, Oracle(program, 1.0, LENGTH)
        p0, r = oracle.log_prior, sum(oracle.rewards.values(), torch.zeros_like(oracle.log_prior))
        uneven = torch.rand(20, dtype=torch.float64)
        for label, sizes in (
            ("20 steps of 0.05", [0.05] * 20),
            ("40 steps of 0.1", [0.1] * 40),
            ("20 uneven steps, in all 2", (2 * uneven / uneven.sum()).tolist()),
        ):
            beta = 1 / sum(sizes)
            apart = (by_text(p0, r, sizes).exp() - Oracle(program, beta, LENGTH).log_target.exp()).abs().max()
            found.equal(f"{name}: {label} = p* at beta={beta:.2g}, |q - p*|", apart, 0.0)
        gaps = [Oracle(program, 0.5, LENGTH).reverse_kl(by_token(oracle, r, 2 / k, k)).detach() for k in (8, 32, 64)]
        found.greater(f"{name}: natural steps per token, 8 of 1/4: KL(q||p*) > 0", gaps[0], 1e-4)
        found.equal(f"{name}: 32 steps / 64 half as large: ratio of KLs", gaps[1] / gaps[2], 4.0, 0.2)

        path, data = vanilla_path(p0, r, 400), found.data.setdefault(name, {})
        for step in (25, 100, 400):
            report(found, f"{name}: vanilla after {step} steps", path[step - 1], p0, r)
        plain, kept = ppo(p0, r, 0.0), ppo(p0, r, 0.5)
        for step in (5, 20):
            report(found, f"{name}: PPO after {step} steps", plain[step - 1], p0, r)
        clipped, free = (ppo(p0, r, 0.0, outer=1, inner=1000, clip=clip)[0] for clip in (0.2, 1e9))
        first, unclipped = kl_divergence(clipped, p0), kl_divergence(free, p0)
        found.greater(f"{name}: one step of 1000 epochs: KL unclipped, above 10 x PPO's", unclipped, 10 * first)
        found.greater(f"{name}: yet PPO's largest ratio there exceeds 1.2", (clipped - p0).exp().max(), 1.2)
        hops = torch.stack([kl_divergence(new, old) for old, new in zip([p0, *plain], plain, strict=False)])
        far, top = kl_divergence(plain[-1], p0), plain[-1].argmax()
        found.greater(f"{name}: PPO, KL from p0 at the end, above 10 x the largest step's", far, 10 * hops.max())
        found.equal(f"{name}: PPO, KL from p0 ends at -log p0(one text)", far, -p0[top], 0.02)
        found.less(f"{name}: PPO, its entropy at the end", entropy(plain[-1]), 0.01)
        target = Oracle(program, 0.5, LENGTH)
        near, away = (target.reverse_kl(log_q[-1]) for log_q in (kept, plain))
        found.less(f"{name}: PPO with the KL term (0.5): KL(q||p*)", near, 0.02)
        found.greater(f"{name}: PPO without it, the same, above 10 times that", away, 10 * near)

        tilts = torch.linspace(0, 25, 400, dtype=torch.float64)[:, None]
        data["posterior"] = plane((p0 + tilts * r).log_softmax(-1), p0, r)
        data["natural"] = plane(torch.stack([by_text(p0, r, [0.25] * k) for k in range(13)]), p0, r)
        data["vanilla"], data["PPO"] = plane(torch.stack([p0, *path]), p0, r), plane(torch.stack([p0, *plain]), p0, r)
        data["PPO with KL term"], data["hops"] = plane(torch.stack([p0, *kept]), p0, r), hops
        data["target"] = float(kl_divergence(target.log_target, p0))


def by_text(p0: Tensor, r: Tensor, sizes: list[float]) -> Tensor:
    """Natural policy gradient on E_q[r] from p0, one logit per text: each step solves F x = gradient."""
    logits = p0.clone()
    for size in sizes:
        log_q = logits.log_softmax(0)
        # F has the null vector 1 (a shift of all logits); adding 1/S to F picks the solution that sums to zero
        logits = logits + size * torch.linalg.solve(fisher(log_q) + 1 / len(r), vanilla(log_q, r))
    return logits.log_softmax(0)


def by_token(oracle: Oracle, r: Tensor, size: float, steps: int) -> TableGuide:
    """The same with one logit per (prefix, token): F = E_q[s s^T], s = grad log q, from the guide's own gradients."""
    guide = TableGuide(oracle.source())
    guide.prepare(oracle.source())
    (table,) = guide.parameters()
    for _ in range(steps):
        log_q = oracle.log_q(guide)
        every = torch.eye(len(r), dtype=torch.float64)
        (scores,) = torch.autograd.grad(log_q, table, grad_outputs=every, is_grads_batched=True)
        scores, q = scores.reshape(len(r), -1), log_q.detach().exp()
        information, slope = scores.T @ (q[:, None] * scores), scores.T @ (q * r)
        with torch.no_grad():
            table.add_((torch.linalg.pinv(information, hermitian=True) @ slope).reshape(table.shape), alpha=size)
    return guide


def vanilla_path(p0: Tensor, r: Tensor, steps: int, size: float = 0.5) -> list[Tensor]:
    """Plain gradient ascent on E_q[r] in the logits of whole texts: log q after each step."""
    logits, path = p0.clone(), []
    for _ in range(steps):
        logits = logits + size * vanilla(logits.log_softmax(0), r)
        path.append(logits.log_softmax(0))
    return path


def ppo(p0: Tensor, r: Tensor, beta: float, outer: int = 200, inner: int = 10, clip: float = 0.2) -> list[Tensor]:
    """PPO with exact expectations: log q after each outer step, which makes ``inner`` ascents of the clipped surrogate.

    The reward is r - beta log(q_old/p0), the advantage exact: A = reward - E_old[reward]."""
    old, path = p0, []
    for _ in range(outer):
        paid, logits = r - beta * (old - p0), old
        advantage = paid - old.exp() @ paid
        for _ in range(inner):
            logits = logits.detach().requires_grad_()
            ratio = (logits.log_softmax(0) - old).exp()
            terms = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
            (slope,) = torch.autograd.grad(old.exp() @ terms, logits)
            logits = logits + 3.0 * slope
        old = logits.detach().log_softmax(0)
        path.append(old)
    return path


def report(found: Findings, what: str, log_q: Tensor, p0: Tensor, r: Tensor) -> None:
    """A policy earns less than the posterior at its KL."""
    _, best = matched(float(kl_divergence(log_q, p0)), r, p0)
    found.less(f"{what}: E[r], and of p* at its KL", log_q.exp() @ r, best.exp() @ r)


def plane(log_q: Tensor, p0: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """(KL(q||p0), E_q[r]) of policies [n, S]."""
    kl, gain = torch.tensor([spot(q, p0, r) for q in log_q], dtype=torch.float64).T
    return kl, gain


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """Reward against distance for three optimisers, and how far PPO's small steps go."""
    data = found.data["ramble"]
    left.plot(*data["posterior"], color=PALETTE[0], lw=2)
    left.scatter(*data["natural"], color=PALETTE[0], s=22, zorder=3)
    left.plot(*data["vanilla"], color=PALETTE[1], lw=2)
    left.plot(*data["PPO"], color=PALETTE[2], lw=1.5, marker=".", ms=4)
    left.annotate("posteriors; natural steps (dots)", (0.9, 1.62), color=PALETTE[0], ha="left")
    left.annotate("vanilla", (1.5, 0.9), color=PALETTE[1])
    left.annotate("PPO", (2.6, 1.3), color=PALETTE[2])
    caption(left, "Only natural steps walk the posteriors (ramble)", "KL(q||p0)   [nats]", "E_q[r]   [reward units]")
    right.plot(data["PPO"][0], color=PALETTE[2], lw=2)
    right.plot(data["PPO with KL term"][0], color=PALETTE[0], lw=2)
    right.plot(data["hops"], color=PALETTE[3], lw=1.3)
    right.axhline(data["target"], color=PALETTE[0], lw=1, ls="--")
    right.annotate("PPO: KL from p0", (110, 4.2), color=PALETTE[2])
    right.annotate("with the KL term (dashed: p*)", (90, 0.78), color=PALETTE[0])
    right.annotate("KL of each step", (110, 0.15), color=PALETTE[3])
    caption(right, "Clipping bounds the step, not the distance", "outer step of PPO", "KL   [nats]")
