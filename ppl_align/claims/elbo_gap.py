"""What the ELBO lacks of log Z is the distance KL(q||p*) of the proposal from the posterior.

Draw x from any q that the posterior covers, and look at its log-weight, `log omega(x) = log p0(x) + r(x)/beta -
log q(x)`. By Bayes' rule the first two terms are `log Z + log p*(x)`. Take the mean over q:

    ELBO(q) = E_q[log omega] = log Z + E_q[log p*(x) - log q(x)] = log Z - KL(q||p*)

So a number that every engine reports anyway, the mean log-weight of its draws, says how far its proposal is from the
target, in nats, if only log Z is known. It holds for whatever q one has: the language model itself, the same one at
another temperature, a decoder that tilts each token, a trained guide; with latents beside the text as without. For RL
with a KL penalty it is the objective: `beta ELBO(q) = E_q[r] - beta KL(q||p0)`.

What is only half true. Log Z has to come from somewhere else. Estimated from the *same* draws it is too small in the
mean, by Jensen's inequality, and exactly where q is bad: with one draw `log Zhat` *is* the log-weight and the gap is
zero for every q. Nor does a small gap mean that nothing is missing. It is the KL with q in front: a q that has lost
half of the posterior's mass and is perfect on the rest pays `log 2`, no more, and its draws cannot show what it lost.

**In practice.** Judge a trained policy by its ELBO against the best log Z of *other* runs (of SMC, of importance
sampling with many more draws, of an exact upper bound), never against its own. On a real language model the truth is
within reach for one token (49,152 texts, one forward of SmolLM2) or for two with top-k: small, but the network, the
tokenizer, the reward and every engine are the ones that will be used at full length.

Source: Jordan et al. 1999 (doi:10.1023/A:1007665907178); Burda, Grosse & Salakhutdinov 2016 (arXiv:1509.00519).
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_align import LM, SMC, SVI, ImportanceSampling, Posterior, choose, completion, reward
from ppl_align.claims._toys import CRITIC, praise, review
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, note, panels
from ppl_align.claims.findings import Findings
from ppl_align.core.estimate import of_draws
from ppl_align.lm.decoding import Rows
from ppl_align.lm.warp import log_normalise
from ppl_align.particles.weights import log_mean_exp
from ppl_align.rewards import Vader
from ppl_align.testing.oracle import Oracle

BETA = 1.0


def mood() -> None:
    """A film review after an opening that depends on the reviewer's mood."""
    good = pyro.sample("good", dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)))
    text = completion("review", CRITIC, choose(good.long(), [" dull", " very"]), max_new_tokens=3)
    reward("praise", praise, text, beta=BETA)


def words(lm: LM, length: int, temperature: float = 1.0) -> None:
    """The next word or two of a real language model: small enough to weigh every text it can write."""
    top_k = None if length == 1 else 50
    text = completion("text", lm, "The movie was", max_new_tokens=length, top_k=top_k, temperature=temperature)
    reward("sentiment", Vader(), text, beta=0.2)


def tempered(rows: Rows) -> Tensor:
    """The prior at temperature 2."""
    return log_normalise(rows.log_probs / 2)


def local_product(rows: Rows) -> Tensor:
    """Each token tilted by what the reward says of the text so far: constrained decoding, greedy steering."""
    tokens = range(CRITIC.vocab_size)
    seen = [[praise([CRITIC.decode([*prefix, v])])[0] for v in tokens] for prefix in rows.prefixes.tolist()]
    return log_normalise(rows.log_probs + torch.tensor(seen, dtype=torch.float64) / BETA)


def check(found: Findings, name: str, exact: Oracle, q: Tensor, run: Posterior, tolerance: float = 1e-9) -> None:
    """The identity by enumeration, ``q`` [S] the log-probability of each text; and as an engine's draws see it."""
    kl = exact.reverse_kl(q)
    found.equal(f"{name}: log Z - ELBO(q) = KL(q||p*)", exact.log_evidence - exact.elbo(q), kl, tolerance)
    gap = of_draws(exact.log_evidence - run.log_weight.flatten())
    found.agrees(f"{name}: from draws of q", *gap, kl)
    unbiased(found, name, exact, run)
    found.data.setdefault("gaps", []).append((name, float(kl), gap.value))


def unbiased(found: Findings, name: str, exact: Oracle, run: Posterior) -> None:
    """E[Zhat] = Z, over the replicates of a run."""
    found.agrees(f"{name}: E[Zhat] / Z", *of_draws((run.log_evidence - exact.log_evidence).exp()), 1.0)


def study(found: Findings) -> None:
    """Four proposals of a text, three of a text and a latent; then the two ways to be misled."""
    exact = Oracle(review)
    proposals: dict[str, Any] = {"prior": None, "tempered": tempered, "local product": local_product}
    for k, (name, proposal) in enumerate(proposals.items()):
        run = ImportanceSampling(64, 200, proposal=proposal).run(review, seed=found.seed + k)
        q = exact.log_prior if proposal is None else exact.log_q(proposal)
        check(found, name, exact, q, run)
        own_log_z(found, name, run, exact.reverse_kl(q))
    run = SVI(num_steps=20, num_particles=64, num_replicates=200, guide="table").run(review, seed=found.seed)
    q = exact.log_q(run.guide).detach()
    check(found, "guide", exact, q, run)
    own_log_z(found, "guide", run, exact.reverse_kl(q))

    exact = Oracle(mood)
    run = ImportanceSampling(64, 200).run(mood, seed=found.seed)
    check(found, "mood, prior", exact, exact.log_prior, run)
    for steps in (3, 20):
        run = SVI(num_steps=steps, num_particles=64, num_replicates=200, guide="table").run(mood, seed=found.seed)
        check(found, f"mood, guide of {steps} steps", exact, exact.log_q(run.guide).detach(), run)

    best = exact.log_target == exact.log_target.max()
    lost = float(exact.log_target[best].exp().sum())
    without = torch.where(best, -torch.inf, exact.log_target).log_softmax(0)
    gap = exact.log_evidence - exact.elbo(without)
    found.equal("p* without its best text: the gap is only -log(1 - p)", gap, -math.log1p(-lost))
    found.holds("p* without its best text: KL(p*||q) is infinite", math.isinf(exact.forward_kl(without)), "inf")


def own_log_z(found: Findings, name: str, run: Posterior, kl: Tensor) -> None:
    """log Zhat_N - ELBO where both come from the same N draws: means over groups of N, and standard errors."""
    omega, gaps = run.log_weight.flatten(), []
    for n in (1, 2, 4, 8, 16, 32, 64):
        group = omega.reshape(-1, n)
        gaps.append((n, *of_draws(log_mean_exp(group) - group.mean(1))))
    found.less(f"{name}: to its own log Zhat of 8 draws, too small", gaps[3][1], kl, gaps[3][2])
    found.data.setdefault("own", {})[name] = gaps, float(kl)


def study_lm(found: Findings, lm: LM) -> None:
    """SmolLM2, one token (every text of the vocabulary) and two (top-k): log Z by enumeration, engines by draws."""
    float32 = 1e-5  # nats: the network's own rounding
    for length in (1, 2):
        exact = Oracle(words, lm, length)
        warm = Oracle(words, lm, length, temperature=2.0)  # the same texts in the same order, with other chances
        label = f"SmolLM2: {len(exact.log_prior)} texts"
        run = ImportanceSampling(64, 300).run(words, lm, length, seed=found.seed)
        check(found, f"{label}, prior", exact, exact.log_prior, run, float32)
        run = ImportanceSampling(64, 300, proposal=tempered).run(words, lm, length, seed=found.seed)
        check(found, f"{label}, tempered", exact, warm.log_prior, run, float32)
        svi = SVI(num_steps=20, num_particles=32, num_replicates=200, guide="head")
        run = svi.run(words, lm, length, seed=found.seed)
        q = exact.log_q(run.guide).detach()
        check(found, f"{label}, guide", exact, q, run, float32)
        found.less(
            f"{label}: training shrank KL(q||p*)", exact.reverse_kl(q), exact.reverse_kl(exact.log_prior), run=True
        )
    run = SMC(64, 300, twist="prefix", ess_threshold=0.9).run(words, lm, length, seed=found.seed)
    found.holds(f"{label}, SMC: it resampled", bool(run.history["resampled"].any()))
    unbiased(found, f"{label}, SMC", exact, run)


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """KL against the gap, and the gap that a run sees if it judges itself."""
    gaps = found.data["gaps"]
    for i, (name, kl, gap) in enumerate(gaps):
        left.scatter([kl], [i], s=110, marker="|", color=GREY, lw=2)
        left.scatter([gap], [i], s=22, color=PALETTE[1 if name.startswith("SmolLM2") else 0], zorder=3)
    left.set_yticks(range(len(gaps)), [name for name, _, _ in gaps])
    left.set_ylim(len(gaps) - 0.5, -0.5)
    left.set_xlim(left=0)
    caption(left, "The gap is the distance", "nats (bar: KL(q||p*) enumerated, dot: log Z - ELBO from draws)")
    for (name, (gaps, kl)), colour in zip(found.data["own"].items(), PALETTE, strict=False):
        right.plot([n for n, _, _ in gaps], [gap for _, gap, _ in gaps], "o-", ms=4, color=colour)
        right.plot([1, 64], [kl, kl], color=colour, lw=1, ls="--")
        note(right, name, (64, gaps[-1][1]), (8, -3), colour)
    right.set_xscale("log", base=2)
    right.set_xlim(0.9, 180)
    caption(right, "Judged by its own draws, q looks better than it is")
    right.set(xlabel="draws N, used for both (dashes: the true gap)", ylabel="log Zhat - ELBO   [nats]")
