"""The posterior over texts is a token-by-token policy: the prior tilted by differences of soft values.

The target is written about whole texts, but a language model writes one token at a time. Nothing is lost. Call
`V(x_<=t) = log E_p0[exp(r/beta) | x_<=t]` the soft value of a prefix: the log of what its continuations are worth on
average *under the prior*, in nats. A prefix has posterior probability `p0(x_<=t) exp(V(x_<=t)) / Z`, the sum over its
continuations. Divide by the same for `x_<t`:

    p*(x_t | x_<t) = p0(x_t | x_<t) exp(V(x_<=t) - V(x_<t)),     V(empty) = log Z,     V(whole text) = r/beta

The right side sums to one by itself, since `exp V(x_<t) = sum_v p0(v | x_<t) exp V(x_<t v)`: a Bellman equation with
log-sum-exp where the usual one has a maximum. The best policy therefore needs no planning at decoding time, only V.

What is only half true. Two cheap stand-ins look like this formula. Mean-value guidance puts `E_p0[r | x_<=t]/beta` for
V, the average outside of the exp; greedy tilting puts the reward of the text so far. Neither is the posterior. For
large beta they come close (the KL of the first falls like beta^-4, of the second like beta^-2); for small beta, where
alignment happens, they are led astray by words that pay early, and their KL from the posterior grows, in a real trap
like 1/beta. Do not test such a method on independent tokens with an additive reward: there all three coincide. And
where the reward is a yes-or-no constraint, the chance of success *is* `exp V`: then steering by it (FUDGE) is exact.

**In practice.** The value head of PPO is not V: it is a mean, of the reward under the current policy. A learned V need
not be right to be useful: used as a proposal or a twist *with weights*, its errors cost variance, not bias; without
weights they are the answer. The log-ratio of a well-trained policy to its prior is an estimate of V's increments.

Source: Levine 2018 (arXiv:1805.00909); Yang & Klein 2021, FUDGE (arXiv:2104.05218); Mudgal et al. 2023
(arXiv:2310.17022); Rafailov et al. 2024 (arXiv:2404.12358).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ppl_align import LM, CallableLM, ImportanceSampling, completion, reward
from ppl_align.claims._toys import CRITIC, RAMBLER, WORDS, pattern, ramble
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, panels
from ppl_align.claims.findings import Findings
from ppl_align.core.estimate import of_draws
from ppl_align.lm.decoding import Rows
from ppl_align.lm.warp import log_normalise
from ppl_align.testing.oracle import Oracle

# -- values of prefixes by recursion, and decoders that are steered by them --------------------------------------------


Ids = tuple[int, ...]
Score = Callable[[Ids], float]
"""What a text or a prefix is worth, given as ids."""


def backward(lm: LM, prompt: Ids, length: int, last: Score, soft: bool, prefix: Ids = ()) -> dict[Ids, float]:
    """The values of all prefixes by the Bellman equation, soft (log-sum-exp) or of means.

    ``last`` values whole texts: the recursion runs from the ends of the texts to their beginning."""
    if len(prefix) == length or prefix[-1:] == (lm.eos_id,):
        return {prefix: last(prefix)}
    log_p = lm.start([prompt + prefix]).log_probs[0]
    values: dict[Ids, float] = {}
    for v in range(lm.vocab_size):
        values |= backward(lm, prompt, length, last, soft, (*prefix, v))
    following = torch.tensor([values[*prefix, v] for v in range(lm.vocab_size)], dtype=torch.float64)
    here = torch.logsumexp(log_p + following, 0) if soft else (log_p.exp() * following).sum()
    return values | {prefix: float(here)}


def steered(score: Score, normalise: bool = True) -> Callable[[Rows], Tensor]:
    """A decoder, as engines take them: q(v | prefix) ∝ p0(v | prefix) exp score(prefix v).

    ``normalise=False`` divides by ``exp score(prefix)`` instead, which is the same for soft values only."""

    def proposal(rows: Rows) -> Tensor:
        prefixes = [tuple(prefix) for prefix in rows.prefixes.tolist()]
        scores = [[score((*prefix, v)) for v in range(rows.log_probs.shape[1])] for prefix in prefixes]
        tilted = rows.log_probs + torch.tensor(scores, dtype=torch.float64)
        if normalise:
            return log_normalise(tilted)
        return tilted - torch.tensor([[score(prefix)] for prefix in prefixes], dtype=torch.float64)

    return proposal


def divided(f: Score, beta: float) -> Score:
    """Reward units to nats."""
    return lambda ids: f(ids) / beta


DICE = CallableLM(3, lambda prefix: torch.tensor([[0.2, -0.5, 0.4]], dtype=torch.float64).repeat(len(prefix), 1))
BETAS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
LENGTH = 4


def turn(text: str) -> float:
    """Two for a review that begins dull and ends fine; else 0.4 for each "fine"."""
    return 2.0 if text.startswith(" dull") and text.endswith(" fine") else 0.4 * text.count("fine")


def story(beta: float) -> None:
    """A reward that the first words do not show."""
    text = completion("text", CRITIC, "", max_new_tokens=LENGTH)
    reward("turn", lambda texts: [turn(t) for t in texts], text, beta=beta)


def dice(beta: float) -> None:
    """Independent tokens and a reward that adds up."""
    x = completion("text", DICE, [], max_new_tokens=LENGTH)
    reward("ones", lambda tokens: (tokens == 1).double().sum(-1), x.tokens, beta=beta)


def happy_end() -> None:
    """A constraint: yes or no."""
    text = completion("text", CRITIC, "", max_new_tokens=LENGTH)
    reward("ends well", lambda texts: [0.0 if t.endswith(" fine") else -math.inf for t in texts], text)


CASES: dict[str, tuple[Callable[[float], None], LM, Ids, Score]] = {
    "story": (story, CRITIC, (), lambda ids: turn(CRITIC.decode(ids))),
    "ramble": (ramble, RAMBLER, (2,), lambda ids: float(pattern(torch.tensor(ids, dtype=torch.long)))),
    "dice": (dice, DICE, (), lambda ids: float(ids.count(1))),
}
"""Program, language model, prompt, and the reward of a text that is given as ids."""


def study(found: Findings) -> None:
    """Soft values by recursion against the posterior by enumeration; then what is put in their place."""
    for name in CASES:
        factorises(found, name)
        stand_ins(found, name)
    constraint(found)


def factorises(found: Findings, name: str) -> None:
    """V by recursion is V by definition; the policy made of it is p*; with it an engine has no variance."""
    program, lm, prompt, r = CASES[name]
    off = []
    for beta in BETAS:
        exact, soft = Oracle(program, beta), backward(lm, prompt, LENGTH, divided(r, beta), soft=True)
        policy = steered(lambda ids, soft=soft: soft.get(ids, 0.0), normalise=False)  # type: ignore[misc]
        run = ImportanceSampling(100, 1, proposal=policy).run(program, beta, seed=found.seed)
        by_definition = torch.tensor([value - exact.soft_value(prefix) for prefix, value in soft.items()])
        start = torch.tensor(soft[()] - exact.log_evidence)
        errors = (start, by_definition, exact.log_q(policy) - exact.log_target, run.log_weight - exact.log_evidence)
        off.append([float(error.abs().max()) for error in errors])
    worst = torch.tensor(off).amax(0)
    at = f"{name}, {len(BETAS)} betas"
    found.equal(f"{at}: V(empty) = log Z, off by", worst[0], 0.0)
    found.equal(f"{at}: Bellman = definition, {len(soft)} prefixes", worst[1], 0.0)
    found.equal(f"{at}: log of the product of tilts = log p*", worst[2], 0.0)
    found.equal(f"{at}: draws of it all have log-weight log Z", worst[3], 0.0)


def stand_ins(found: Findings, name: str) -> None:
    """KL(q||p*) of mean-value guidance and of greedy tilting, over beta."""
    program, lm, prompt, r = CASES[name]
    means = backward(lm, prompt, LENGTH, r, soft=False)
    scores: dict[str, Score] = {"mean value": lambda ids: means.get(ids, 0.0), "greedy": r}
    betas = (0.001, 0.002, *BETAS, 100.0, 200.0)
    exact = {beta: Oracle(program, beta) for beta in betas}
    for rule, order in (("mean value", 4), ("greedy", 2)):
        kl = {b: float(exact[b].reverse_kl(steered(divided(scores[rule], b)))) for b in betas}
        if name == "dice":
            found.equal(f"dice, {rule}: is the posterior, KL at most", max(kl.values()), 0.0)
            continue
        seen = [kl[b] for b in BETAS]
        grows = all(small > large for small, large in itertools.pairwise(seen))
        found.holds(f"{name}, {rule}: KL(q||p*) grows as beta falls", grows, f"{seen[-1]:.2g} to {seen[0]:.2g}")
        found.equal(f"{name}, {rule}: power of 1/beta, beta large", math.log2(kl[100.0] / kl[200.0]), order, 0.1)
        if name == "story":
            found.equal(f"{name}, {rule}: power of 1/beta, beta small", math.log2(kl[0.001] / kl[0.002]), 1, 0.1)
        found.data[f"{name}, {rule}"] = seen
    if name == "story":
        rules = {rule: steered(divided(score, 0.5)) for rule, score in scores.items()}
        weights_matter(found, exact[0.5], rules["mean value"])
        first = exact[0.5].values["text"][:, 0]
        laws = {"p0": exact[0.5].log_prior, "p*": exact[0.5].log_target}
        laws |= {rule: exact[0.5].log_q(q) for rule, q in rules.items()}
        found.data["first"] = {
            rule: [float(q[first == v].exp().sum()) for v in range(len(WORDS))] for rule, q in laws.items()
        }


def weights_matter(found: Findings, exact: Oracle, rule: Callable[[Rows], Tensor]) -> None:
    """A wrong value function as a proposal: right with weights, wrong without."""
    run = ImportanceSampling(200, 100, proposal=rule).run(story, *exact.args, seed=found.seed)
    ratio = of_draws((run.log_evidence - exact.log_evidence).exp())
    found.agrees("story: E[Zhat]/Z, mean value as a proposal", *ratio, 1.0)
    found.agrees("story: E[r] of its draws with weights", *run.mean("turn"), exact.mean("turn"))
    found.less("story: E[r] of its draws without weights", exact.mean("turn", rule), exact.mean("turn"))


def constraint(found: Findings) -> None:
    """Yes or no: the chance of success is all one needs."""
    exact = Oracle(happy_end)
    chance = backward(CRITIC, (), LENGTH, lambda ids: float(CRITIC.decode(ids).endswith(" fine")), soft=False)
    found.equal("constraint: log P(success) = log Z", math.log(chance[()]), exact.log_evidence)
    logs = {prefix: math.log(p) if p > 0 else -math.inf for prefix, p in chance.items()}
    fudge, squared = (steered(lambda ids, k=k: k * logs.get(ids, 0.0)) for k in (1, 2))  # type: ignore[misc]
    found.equal("constraint: steering by P(success | prefix), KL(q||p*)", exact.reverse_kl(fudge), 0.0)
    found.greater("constraint: steering by its square, KL(q||p*) above", exact.reverse_kl(squared), 0.0)


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """KL of the stand-ins over beta; the first word of a story."""
    for name, style in (("story", "-"), ("ramble", "--")):
        for rule, colour in (("mean value", PALETTE[0]), ("greedy", PALETTE[1])):
            left.loglog(BETAS, found.data[f"{name}, {rule}"], style, color=colour, marker="o", ms=3)
    left.annotate("greedy", (1.1, 0.2), color=PALETTE[1])
    left.annotate("mean value", (0.55, 4e-4), color=PALETTE[0])
    left.set_xticks(BETAS, map(str, BETAS))
    left.minorticks_off()
    caption(left, "Not the soft value, not the posterior", "beta   [reward units] (line: story, dashes: ramble)")
    left.set_ylabel("KL(q||p*)   [nats]")
    colours = dict(zip(found.data["first"], (GREY, PALETTE[2], PALETTE[0], PALETTE[1]), strict=True))
    for i, (rule, chances) in enumerate(found.data["first"].items()):
        places = [v + 0.2 * (i - 1.5) for v in range(len(WORDS))]
        right.bar(places, chances, width=0.19, color=colours[rule], label=rule)
    right.set_xticks(range(len(WORDS)), ["(end)", *(word.strip() for word in WORDS[1:])])
    caption(right, 'Only p* knows that "dull" can end "fine"', "", "probability of the first word, beta = 0.5")
    right.legend()
