"""Training on one's own unfiltered samples changes nothing in expectation, and forgets all the same.

Draw x from the model p and raise log p(x). The expected gradient of that step is
`E_{x~p}[grad log p(x)] = sum_x grad p(x) = grad 1 = 0`, for every model, every parameter, every prompt. Text that
nobody has selected carries no information about what text should be like. (This is also why a constant may be taken
off a reward without changing the policy gradient.)

The lemma hides two things. It is about the expectation of one step, and it says nothing about spread. Refit a table of
probabilities on n of its own samples: the new table is p on average, but it is a random table, and the next one starts
from there. This is the Wright-Fisher chain of population genetics. With `H = 1 - sum p^2`, the chance that two draws
differ, counting with variance `p(1-p)/n` gives `E[H_1] = H_0 (1 - 1/n)`, so after k rounds `E[H_k] = H_0 (1 - 1/n)^k`.
The mean stands still while almost every single run ends with one token, token i with probability p_i: averaged over
runs nothing is lost, in each run everything is. What never comes up in n draws is gone for good.

How fast depends on how much is replaced. With a step of size a, `p <- (1-a) p + a (counts/n)`, a round costs only
`1 - a^2/n`. Keep the old data and add to it, and a becomes `1/(k+1)` in round k: the product of these factors
converges, and most of H survives for ever. The law is that of a table. A network shares parameters between texts, so
that refitting it is biased as well as noisy; the lemma still holds for its first step.

The first step is checked on a real model too, along random directions and along one that matters: the
direction in which samples at temperature 0.7 push. Own samples at temperature 1 do not push there.

**In practice.** A loop of generate, refit, generate needs something from outside: a filter, a reward, a verifier, fresh
data. Without it the best case is a random walk. Keep the original data in the mix, and watch the diversity of single
runs, not averages over seeds. And draw at temperature 1 with nothing cut off, or the lemma does not apply at all.

Source: Shumailov et al. 2023 (arXiv:2305.17493); Gerstgrasser et al. 2024, accumulating data (arXiv:2404.01413).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_align import SVI
from ppl_align.claims._gradients import flat
from ppl_align.claims._toys import ramble, review, speaker
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, panels
from ppl_align.claims.findings import Findings
from ppl_align.core.estimate import of_draws
from ppl_align.guides.lora import LoRAGuide
from ppl_align.testing import Oracle


def refit(p: Tensor, n: int) -> Tensor:
    """The maximum-likelihood table for n samples of the speaker itself, [V] -> [V]."""
    words = speaker(p).completion("", max_new_tokens=1).expand([n]).sample()[:, 0]
    return torch.bincount(words, minlength=len(p)).double() / n


P, N, ROUNDS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 20, 50


def study(found: Findings) -> None:
    """The lemma; the chain that it hides, exactly and by refitting; what slows it down."""
    for program in (review, ramble):
        oracle, name = Oracle(program, 1.0, 3), program.__name__
        guide = (
            SVI(num_steps=30, guide="table").run(program, 1.0, 3, seed=found.seed).guide
        )  # some model, not the prior
        (r,) = oracle.rewards.values()
        samples = {"all of its own samples": torch.ones_like(r), "those with r > 0": (r > 0).double()}
        norms = [slope(oracle, guide, kept).abs().max() for kept in samples.values()]
        found.equal(f"{name}: largest |E grad log q|, {next(iter(samples))}", norms[0], 0.0)
        found.greater(f"{name}: only {list(samples)[1]}", norms[1], 0.01)

    chain = WrightFisher(P, N, ROUNDS)
    for k, stated in ((0, "0.62"), (1, "0.589"), (10, "0.3712"), (50, "0.0477")):
        found.rounds_to(f"(.5,.3,.2), n=20: H after {k} rounds", chain.diversity[k], stated)
    law = diversity(P) * (1 - 1 / N) ** torch.arange(ROUNDS + 1).double()
    found.equal("its distance from H_0 (1-1/n)^k, k <= 50", (chain.diversity - law).abs().max(), 0.0)
    found.equal("distance of the mean from p, k <= 50", (chain.mean - P).abs().max(), 0.0)
    found.greater("P(one token is left after 50 rounds) > 1/2", chain.fixed[-1], 0.5)
    found.equal("P(the last token is token 0) is p_0", chain.last_token()[0], P[0])

    runs = []
    for _ in range(40):
        run = [P]
        while len(run) <= ROUNDS:
            run.append(refit(run[-1], N))
        runs.append(torch.stack(run))
    shares = torch.stack(runs)  # [runs, rounds + 1, tokens]
    for k in (1, 10, 20):
        check(found, f"40 runs of refit(p, 20): H after {k} rounds", diversity(shares[:, k]), chain.diversity[k])
    check(found, "their share of token 0 after 50 rounds", shares[:, -1, 0], P[0])

    texts = Oracle(ramble, 1.0, 3).log_prior.exp()
    whole = walk(texts, N, 10, lambda k: 1.0)
    check(found, "whole texts of ramble: H after 10 rounds", whole[:, 10], diversity(texts) * (1 - 1 / N) ** 10)
    slow = walk(P, N, ROUNDS, lambda k: 0.2)
    check(found, "steps a = 0.2: H_0 (1-a^2/n)^50", slow[:, -1], diversity(P) * (1 - 0.04 / N) ** ROUNDS)
    hoard = walk(P, N, ROUNDS, lambda k: 1 / (k + 1))
    survives = math.prod(1 - 1 / (N * (k + 1) ** 2) for k in range(1, ROUNDS + 1))
    check(found, "old data kept: H_0 prod(1-1/(n(k+1)^2))", hoard[:, -1], diversity(P) * survives)
    limit = math.exp(sum(math.log1p(-1 / (N * (k + 1) ** 2)) for k in range(1, 100_000)))
    found.greater("of which for ever survives more than 95%", limit, 0.95)
    found.data.update(shares=shares, law=law, hoard=hoard.mean(0))


PROMPT, LENGTH, SIZE = "The movie was", 8, 8  # SIZE: samples to a batch


def study_lm(found: Findings, lm: Any) -> None:
    """Projected LoRA gradients, batch by batch: own samples at temperature 1, and at 0.7."""
    guide = LoRAGuide(lm.completion(PROMPT, LENGTH), rank=4)
    own, cold = steps(guide, lm, 1.0, batches=24), steps(guide, lm, 0.7, batches=16)
    directions = torch.cat([torch.randn(4, own.shape[1]), pull(guide, lm, 0.7, batches=4)[None]])
    directions /= directions.norm(dim=1, keepdim=True)
    for i, direction in enumerate(directions):
        label = f"random direction {i + 1}" if i < 4 else "where colder samples push"
        check(found, f"SmolLM2: E grad log p, {label}", own @ direction, 0.0)
    here, there = own @ directions[-1], cold @ directions[-1]
    (mean, error), (colder, its_error) = of_draws(here), of_draws(there)
    found.greater("SmolLM2: the same there at temperature 0.7", colder, 0.0, its_error)
    found.less("SmolLM2: the draws suffice to tell them apart", mean, colder, math.hypot(error, its_error))


def steps(guide: LoRAGuide, lm: Any, temperature: float, batches: int) -> Tensor:
    """The mean gradient of log q over each batch of samples drawn at that temperature, [batches, d]."""
    prior = lm.completion(PROMPT, LENGTH)
    drawn = lm.completion(PROMPT, LENGTH, temperature=temperature).expand([batches * SIZE]).sample()
    means = (guide.log_prob(prior.expand([SIZE]), tokens).mean() for tokens in drawn.split(SIZE))
    return torch.stack([by_adapter(guide, mean) for mean in means])


def pull(guide: LoRAGuide, lm: Any, temperature: float, batches: int) -> Tensor:
    """The expected gradient at that temperature, less noisily: draws of the prefix, a sum over the next token, [d].

    From draws of its own: a direction must not be tested on the samples that it came from."""
    prior, total = lm.completion(PROMPT, LENGTH, temperature=temperature), torch.zeros(())
    for tokens in prior.expand([batches * SIZE]).sample().split(SIZE):
        logits, _ = guide.lm.teacher_forced([prior.prompts[0]] * SIZE, tokens)
        each = ((logits.detach() / temperature).softmax(-1) * logits.log_softmax(-1)).sum(-1)
        total = total + by_adapter(guide, each.masked_fill(prior.ended_before(tokens), 0.0).sum())
    return total


def by_adapter(guide: LoRAGuide, value: Tensor) -> Tensor:
    """The gradient of ``value`` by LoRA's B, flat (by A it is zero as long as B is)."""
    trained = [p for name, p in guide.named_parameters() if "lora_B" in name]
    return flat(torch.autograd.grad(value, trained))


def slope(oracle: Oracle, guide: Any, kept: Tensor) -> Tensor:
    """E_q[kept * grad log q], the expected step of training on own samples, of which only some may be kept."""
    return flat(oracle.gradient(lambda log_q: (log_q.detach().exp() * kept * log_q).sum(), guide).values())


def check(found: Findings, what: str, values: Tensor, expected: Any) -> None:
    """The mean of independent values against what it should be."""
    found.agrees(what, *of_draws(values), expected)


# -- refitting a table of probabilities on n of its own samples, exactly, and by simulation ----------------------------


def diversity(p: Tensor) -> Tensor:
    """H = 1 - sum p^2, the probability that two draws differ, [..., S] -> [...]."""
    return 1 - (p**2).sum(-1)


class WrightFisher:
    """The chain of counts, exactly: ``diversity``, ``fixed`` [rounds + 1] and ``mean`` [rounds + 1, 3]."""

    def __init__(self, p: Tensor, n: int, rounds: int) -> None:
        self.tables = torch.tensor([(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)]).double() / n
        ways = math.lgamma(n + 1) - torch.lgamma(n * self.tables + 1).sum(1)
        start, self.step = (
            (ways + n * torch.xlogy(self.tables, q[:, None]).sum(-1)).exp() for q in (p[None], self.tables)
        )
        laws = [start[0]]
        while len(laws) < rounds:
            laws.append(laws[-1] @ self.step)
        self.law = torch.stack(laws)
        alone = (self.tables == 1).any(1).double()
        self.diversity = torch.cat([diversity(p)[None], self.law @ diversity(self.tables)])
        self.mean = torch.cat([p[None], self.law @ self.tables])
        self.fixed = torch.cat([torch.zeros(1, dtype=torch.float64), self.law @ alone])

    def last_token(self) -> Tensor:
        """Which token is left in the end, [3]."""
        return self.law[-1] @ torch.linalg.matrix_power(self.step, 1000) @ self.tables


def walk(p: Tensor, n: int, rounds: int, size: Callable[[int], float], runs: int = 500) -> Tensor:
    """Many runs of p <- (1 - a) p + a counts/n with a = size(round): H, [runs, rounds + 1]."""
    tables, seen = p.expand(runs, -1), [diversity(p).expand(runs)]
    for k in range(1, rounds + 1):
        counts = torch.zeros_like(tables).scatter_add(
            1, torch.multinomial(tables, n, replacement=True), tables.new_ones(runs, n)
        )
        tables = (1 - size(k)) * tables + size(k) * counts / n
        seen.append(diversity(tables))
    return torch.stack(seen, 1)


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """The shares of one run, and the diversity of many."""
    shares, rounds = found.data["shares"], range(ROUNDS + 1)
    left.stackplot(rounds, shares[0].T.numpy(), colors=PALETTE[:3], alpha=0.85)
    left.set_xlim(0, ROUNDS)
    left.set_ylim(0, 1)
    caption(left, "One run: shares drift until one is left", "round of refitting on 20 own samples")
    left.set_ylabel("share of each of three tokens")
    for run in shares[:20]:
        right.plot(rounds, diversity(run), color=GREY, lw=0.7, alpha=0.6)
    right.plot(rounds, diversity(shares).mean(0), color=PALETTE[0], lw=2)
    right.plot(rounds, found.data["law"], color=PALETTE[1], lw=1.4, ls="--")
    right.plot(rounds, found.data["hoard"], color=PALETTE[2], lw=2)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    right.annotate("mean of 40 runs", (31, 0.24), color=PALETTE[0], bbox=box)
    right.annotate("H0 (1 - 1/n)^k", (39, 0.13), color=PALETTE[1], bbox=box)
    right.annotate("old data kept", (36, 0.63), color=PALETTE[2])
    caption(right, "Many runs: diversity falls by 1/n a round", "round", "P(two draws differ)")
