"""Without the KL term the optimum is a single text, and perfect exploration ends there as well.

Leave the penalty out of `J(q) = E_q[r] - beta KL(q||p0)` and what is left, `E_q[r]`, is linear in q. A linear function
over distributions is largest at a corner: all mass on the text with the highest reward. The posterior says the same,
as the limit `beta -> 0` of `p0 exp(r/beta) / Z`: its odds for the best text against another grow like
`exp(gap/beta)`. So a loss of diversity under pure reward maximisation is not a failure of the optimiser. It is the
optimum, and a perfect optimiser shows it best: here the gradients are exact and start from the uniform policy, which
has seen every text. They end at the point mass all the same. The KL term changes the destination, exploration does not.

By the standard of J the point mass is often worse than doing nothing. It earns `r_max + beta log p0(best)`, the
untouched prior earns `E_p0[r]`, so the prior wins as soon as `beta > (r_max - E_p0[r]) / (-log p0(best))`.

How fast? With natural gradients exponentially: after k steps of size eta the policy is `q0 exp(k eta r)`. With ordinary
("vanilla") gradients of softmax logits, which shrink as the policy hardens, only like 1/t: among K texts, from the
uniform policy, what is still missing from the best reward tends to `(1 - 1/K) / (eta t)`.

Three things are only half true. If several texts share the highest reward, the limit of the posterior is not a point:
it is the prior restricted to the winners. On the way entropy may rise before it falls, if the prior favours few texts
of middling reward; it is the distance `KL(p*||p0)` that only grows. And "the best text" is where vanilla gradients go
in the end, not where one finds them: from the prior they collapse onto a likely good text first, and once they are
there the best one gets almost no gradient. Two hundred thousand exact steps do not lead out again. Starting uniform
avoids this, so exploration does matter for *which* text is left, not for how many.

**In practice.** If all samples of a prompt become the same answer, ask for the effective beta before blaming sampling
temperature, batch size or entropy bonuses: a penalty that is absent, or whose gradient vanishes in expectation, has
this as its optimum. A collapsed policy with a high reward is not a finished one; compare `J`, not the reward.

Source: Korbak, Perez & Buckley 2022 (arXiv:2205.11275); Mei et al. 2020 on the rate 1/t (arXiv:2005.06392).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_align import completion, reward
from ppl_align.claims._gradients import natural, vanilla
from ppl_align.claims._toys import CRITIC, praise, ramble
from ppl_align.claims.drawing import PALETTE, Axes, caption, note, panels
from ppl_align.claims.findings import Findings
from ppl_align.testing import Oracle
from ppl_align.testing.oracle import entropy, kl_divergence


def modest(texts: list[str]) -> list[float]:
    """Praise, at 0.3 for every "very": no two texts share the highest reward."""
    return [p - 0.3 * text.count("very") for p, text in zip(praise(texts), texts, strict=True)]


def review(beta: float, length: int, taste: Any = modest) -> None:
    """A review that may end early."""
    text = completion("review", CRITIC, "", max_new_tokens=length)
    reward("taste", taste, text, beta=beta)


BETAS = torch.logspace(1, -2.3, 40, dtype=torch.float64).tolist()
STEPS = {"ramble": 200_000, "review": 20_000}
LENGTH, RATE = 3, 0.5


def study(found: Findings) -> None:
    """The limit of the posterior; what J makes of it; how fast gradients get there, and where they get stuck."""
    for program in (ramble, review):
        name, path = program.__name__, [Oracle(program, beta, LENGTH) for beta in BETAS]
        oracle = path[-1]
        (r,) = oracle.rewards.values()
        best, log_prior, nowhere = int(r.argmax()), oracle.log_prior, torch.zeros_like(r)
        hardness = found.data[f"{name}: entropy"] = [float(entropy(o.log_target)) for o in path]
        found.less(f"{name}: entropy of p* at beta=0.005", hardness[-1], 1e-6)
        found.less(f"{name}: 1 - P(best text) at beta=0.005", 1 - oracle.log_target[best].exp(), 1e-6)
        distances = torch.stack([kl_divergence(o.log_target, o.log_prior) for o in path])
        found.holds(f"{name}: KL(p*||p0) grows all the way", bool((distances.diff() > -1e-12).all()))
        found.equal(f"{name}: its limit is -log p0(best)", distances[-1], -log_prior[best], 1e-5)

        point = torch.full_like(r, -torch.inf).index_fill(0, torch.tensor(best), 0.0)
        even = float((r[best] - oracle.mean(r, log_prior)) / -log_prior[best])
        worth = {f: objectives(Oracle(program, f * even, LENGTH), f * even, point) for f in (0.9, 1.0, 1.1)}
        found.equal(f"{name}: J(best text) = J(p0) at beta={even:.3f}", *worth[1.0])
        found.less(f"{name}: 10% lower, J(p0) < J(best text)", worth[0.9][1], worth[0.9][0])
        found.less(f"{name}: 10% higher, J(best text) < J(p0)", *worth[1.1])

        logits = log_prior.clone().requires_grad_()
        (slope,) = torch.autograd.grad(oracle.mean(r, logits.log_softmax(0)), logits)
        found.equal(f"{name}: q (r - E r) against autograd", (vanilla(log_prior, r) - slope).abs().max(), 0.0)
        steps = STEPS[name]
        uniform, prior = climb(r, torch.stack([nowhere, log_prior]), steps)
        found.less(f"{name}: uniform start, {steps:,} steps: 1 - P(best)", 1 - uniform["best"][-1], 1e-4)
        found.equal(f"{name}: eta t (r_max - E r) tends to 1 - 1/K", uniform["rate"][-1], 1 - 1 / len(r), 1e-2)
        found.less(f"{name}: from p0, {steps:,} steps: P(best)", prior["best"][-1], 1e-4)
        found.less(f"{name}: because 1 - P(another text) is", 1 - prior["top"][-1], 1e-3)
        target = Oracle(program, 0.5, LENGTH).log_target
        for label, start in (("uniform start", nowhere), ("from p0", log_prior)):
            end, missing = natural_path(r, start, 0.0, log_prior)
            found.less(f"{name}: {label}, 400 natural steps: 1 - P(best)", missing[-1], 1e-6)
            found.data[f"{name}: dynamics"] = uniform, prior, missing
            end, _ = natural_path(r, start, 0.5, log_prior)
            found.equal(f"{name}: the same with a KL term (0.5): KL(q||p*)", kl_divergence(end, target), 0.0)
        found.greater(f"{name}: whose entropy is not small", entropy(target), 1.0)
        if program is ramble:
            found.greater(f"{name}: on the way entropy exceeds that of p0", max(hardness), entropy(log_prior))

    tied = Oracle(review, 0.01, LENGTH, praise)
    (r,) = tied.rewards.values()
    winners = torch.where(r == r.max(), tied.log_prior, -torch.inf).log_softmax(0)
    number = int((r == r.max()).sum())
    found.equal(f"{number} texts tie: p* at beta=0.01 is p0 among them", kl_divergence(winners, tied.log_target), 0.0)
    found.greater("and its entropy stays above 0.1 nats", entropy(tied.log_target), 0.1)


def objectives(oracle: Oracle, beta: float, policy: Tensor) -> tuple[float, float]:
    """J(policy) and J(p0), reward units."""
    return float(beta * oracle.elbo(policy)), float(beta * oracle.elbo(oracle.log_prior))


def climb(r: Tensor, starts: Tensor, steps: int) -> list[dict[str, Any]]:
    """Vanilla ascent on E_q[r], exact, from logits [2, S]: P(best), the largest P, eta t (r_max - E r) on the way."""
    logits, rewards, best = starts.numpy().copy(), r.numpy(), int(r.argmax())  # numpy: half the overhead of torch
    rows, step = [], 0
    for mark in sorted(set(np.geomspace(1, steps, 80).astype(int).tolist())):
        while step < mark:
            q = np.exp(logits)
            q /= q.sum(1, keepdims=True)
            mean = q @ rewards
            logits += RATE * q * (rewards - mean[:, None])
            step += 1
        rows.append((np.full(2, step), q[:, best], q.max(1), (rewards[best] - mean) * RATE * step))
    return [dict(zip(("step", "best", "top", "rate"), np.array(rows)[..., i].T, strict=True)) for i in range(2)]


def natural_path(r: Tensor, start: Tensor, beta: float, log_prior: Tensor) -> tuple[Tensor, list[float]]:
    """400 natural-gradient steps on E_q[r] - beta KL(q||p0): the end, and 1 - P(best) along the way."""
    log_q, best, missing = start.log_softmax(0), int(r.argmax()), []
    for _ in range(400):
        direction = r - beta * (log_q - log_prior)  # the gradient of J in the logits is q (d - E_q d)
        log_q = (log_q + RATE * natural(direction)).log_softmax(0)
        missing.append(float(1 - log_q[best].exp()))
    return log_q, missing


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """Entropy against beta, and the mass that has not collapsed yet against the step."""
    for name, colour, side in (("ramble", PALETTE[0], (6, 4)), ("review", PALETTE[1], (-40, -8))):
        hardness = found.data[f"{name}: entropy"]
        left.plot(BETAS, hardness, color=colour, lw=2)
        note(left, name, (BETAS[17], hardness[17]), side, colour)
    left.set_xscale("log")
    left.invert_xaxis()
    caption(
        left, "Entropy of the posterior as the KL term goes", "beta   [reward units per nat]", "entropy of p*   [nats]"
    )
    uniform, prior, sprint = found.data["ramble: dynamics"]
    shown = (
        (uniform["step"], 1 - uniform["best"], PALETTE[0], "vanilla, from uniform: 1/t"),
        (prior["step"], 1 - prior["top"], PALETTE[1], "vanilla, from p0: onto another text"),
        (range(1, 401), sprint, PALETTE[2], "natural"),
    )
    for steps, missing, colour, label in shown:
        right.loglog(steps, np.maximum(missing, 1e-9), color=colour, lw=2, label=label)
    right.set_ylim(1e-8, 2)
    caption(right, "Every gradient ends on one text (ramble)", "step", "1 - P(the text it ends on)")
    right.legend(loc="lower left")
