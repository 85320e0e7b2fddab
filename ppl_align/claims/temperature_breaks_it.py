"""Sampling at any temperature but 1 turns training on own samples into a force that does not rest.

Own samples move nothing in expectation only if they are samples of p itself. Draw them at temperature T instead, from
`p_T(v) = p(v)^(1/T) / sum_u p(u)^(1/T)`, and the expected gradient in the logits of p is `E_{x~p_T}[grad log p(x)] =
p_T - p`: below 1 the likely tokens are pushed up, above 1 the rare ones. The step is zero only where p_T = p, that is
where p is uniform on its support. Refit fully, and temper again, and exponents multiply: after k rounds the model is
`p^(1/T^k)`. At T < 1 that runs into the most likely token, and what the others have left vanishes doubly exponentially
in k: its logarithm falls like -T^-k. At T > 1 it runs into noise, and the distance from uniform falls like T^-k, a
single exponential. Top-k and top-p do the same harm more abruptly: what is cut off in one round has probability zero in
all later ones.

In Bayes' terms a colder model is not the prior but a posterior, with the model's own log-probability as the reward:
`p0^(1/T) = p0 exp((1/T - 1) log p0)`. That sharpens what the model believes already and knows nothing else.

It is only half true that "sampling at T" means `p0(x)^(1/T)` for a text x. A sampler tempers token by token and
normalises after each prefix, so `p_T(x) = p0(x)^(1/T) / prod_t Z(x_<t)`, where `Z(x_<t) = sum_v p0(v|x_<t)^(1/T)`
depends on the prefix: `log Z = -(1/T - 1) H(x_<t)`, H the Renyi entropy of order 1/T of the next token. Below 1 the
token sampler thus overrates texts that pass through uncertain prefixes; it is the posterior for the reward
`log p0(x) + sum_t H(x_<t)`. The two agree if H is the same for all: independent tokens at a fixed length, say.

The cure is bookkeeping. Weigh each sample by `p(x)/p_T(x)` and the expected gradient is zero again, as it must be:
temperature is a proposal, and importance weights correct proposals. Nothing corrects top-k and top-p, since a text
that is never drawn has no weight.

**In practice.** Declare the temperature: either it is part of the policy that is being trained, in sampling *and*
scoring, or the draws need weights. Rollouts at temperature 0.7 whose log-probabilities are computed at temperature 1
are off-policy, and without any reward they sharpen the model. The same goes for top-p in the sampler of a trainer.

Source: Huang et al. 2024 on sharpening as self-improvement (arXiv:2412.01951); Holtzman et al. 2019 on truncation
(arXiv:1904.09751).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppl_align import LM, ImportanceSampling, MarkovLM, completion, reward
from ppl_align.claims._gradients import flat
from ppl_align.claims._toys import CRITIC, RAMBLER, speaker
from ppl_align.claims.drawing import PALETTE, Axes, caption, note, panels
from ppl_align.claims.findings import Findings
from ppl_align.core.estimate import of_draws
from ppl_align.guides.table import TableGuide
from ppl_align.testing import Oracle
from ppl_align.testing.oracle import entropy, kl_divergence


def speak(lm: Any, length: int = 1, prompt: str = "", **warp: Any) -> None:
    """A model saying something; nobody judges it. ``warp``: temperature, top_k, top_p of the sampler."""
    completion("x", lm, prompt, max_new_tokens=length, **warp)


def sharpen(lm: Any, length: int, temperature: float) -> None:
    """The posterior whose reward is the model's own log-probability: p0 exp((1/T - 1) log p0), normalised once."""
    x = completion("x", lm, "", max_new_tokens=length)
    reward("own_log_prob", lm.completion("", length).log_prob, x.tokens, weight=1 / temperature - 1)


def wander(length: int, temperature: float) -> None:
    """The same with a bonus for every uncertain prefix on the way: this is what a token sampler draws from."""
    x = completion("x", CRITIC, "", max_new_tokens=length)
    reward("own_log_prob", CRITIC.completion("", length).log_prob, x.tokens, weight=1 / temperature - 1)
    reward("uncertainty", lambda tokens: renyi(tokens, 1 / temperature), x.tokens, weight=1 / temperature - 1)


def renyi(tokens: Tensor, order: float) -> Tensor:
    """Renyi entropies of the critic's next token, added up over the prefixes of a text, nats: [..., t] -> [...]."""
    assert CRITIC.log_initial is not None
    start, rows = ((order * logs).logsumexp(-1) / (1 - order) for logs in (CRITIC.log_initial, CRITIC.log_table))
    before = tokens[..., :-1]
    running = before.eq(CRITIC.eos_id or 0).cumsum(-1) == 0  # its EOS is token 0
    return start + torch.where(running, rows[before], 0.0).sum(-1)


def refit(lm: MarkovLM, temperature: float) -> MarkovLM:
    """What infinitely many samples at that temperature teach: each row of the table, tempered."""
    initial = None if lm.log_initial is None else lm.log_initial / temperature
    return MarkovLM(lm.log_table / temperature, initial, lm.eos_id)


P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
STATED = {0.7: ("0.070736", "-0.024889", "-0.045848"), 1.5: ("-0.056396", "0.015571", "0.040825")}
TEMPERATURES = torch.linspace(0.3, 3.0, 28, dtype=torch.float64).tolist()


def study(found: Findings) -> None:
    """The gradient; the rounds; truncation; tokens against texts; weights."""
    word = speaker(P)
    for temperature, figures in STATED.items():
        warm = Oracle(speak, word, temperature=temperature).log_prior
        step = expected_step(Oracle(speak, word), warm.exp())
        for v, figure in enumerate(figures):
            found.rounds_to(f"T={temperature}: E_pT[d log p / d logit {v}]", step[v], figure)
        found.equal(f"T={temperature}: its distance from p_T - p", (step - (warm.exp() - P)).abs().max(), 0.0)
    even = speaker(torch.full((3,), 1 / 3, dtype=torch.float64))
    step = expected_step(Oracle(speak, even), Oracle(speak, even, temperature=0.7).log_prior.exp())
    found.equal("T=0.7: the step of a uniform model", step.abs().max(), 0.0)

    paths = found.data["paths"] = {}
    for temperature, end in ((0.7, 0.0), (1.5, float(torch.tensor(3.0).log()))):
        lm, path = word, [P]
        for _ in range(16):
            lm = refit(lm, temperature)
            path.append(Oracle(speak, lm).log_prior.exp())
        paths[temperature] = torch.stack(path)
        pace(found, temperature, paths[temperature])
        exponents = temperature ** -torch.arange(17, dtype=torch.float64)[:, None]
        law = (P.log() * exponents).softmax(1)
        found.equal(f"T={temperature}: 16 rounds against p^(1/T^k)", (paths[temperature] - law).abs().max(), 0.0)
        found.equal(f"T={temperature}: entropy after 16 rounds", entropy(path[-1].log()), end, 1e-3)
        lm = refit(refit(refit(CRITIC, temperature), temperature), temperature)
        at_once = Oracle(speak, CRITIC, 3, temperature=temperature**3).log_prior
        apart = kl_divergence(Oracle(speak, lm, 3).log_prior, at_once)
        found.equal(f"critic: 3 rounds at {temperature} = one at {temperature}^3, KL", apart, 0.0)

    once = Oracle(speak, word, top_p=0.6).log_prior.exp()
    found.holds("top_p=0.6, one round: two words are left", len(once) == 2, f"{[round(q, 3) for q in once.tolist()]}")
    twice = Oracle(speak, speaker(torch.cat([once, torch.zeros(1)])), top_p=0.6).log_prior
    found.holds("top_p=0.6, two rounds: one word is left", len(twice) == 1, f"{twice.exp().tolist()}")

    toys: tuple[tuple[LM, int], ...] = ((CRITIC, 4), (RAMBLER, 4))
    for toy, length in toys:
        prior = Oracle(speak, toy, length)
        for temperature in (0.7, 1.5):
            name, cold = f"{toy.name}, T={temperature}", Oracle(speak, toy, length, temperature=temperature).log_prior
            power = Oracle(sharpen, toy, length, temperature).log_target
            by_hand = (prior.log_prior / temperature).log_softmax(0)
            found.equal(f"{name}: reward log p0 gives p0^(1/T), KL", kl_divergence(by_hand, power), 0.0)
            found.greater(f"{name}: KL(token-tempered || p0^(1/T)) > 0", kl_divergence(cold, power), 1e-4)
            step, weighted = (expected_step(prior, cold.exp() * w) for w in (1.0, (prior.log_prior - cold).exp()))
            found.greater(f"{name}: |E grad log p| over its draws", step.norm(), 0.01)
            found.equal(f"{name}: the same with weights p/p_T", weighted.norm(), 0.0)
    for temperature in (0.7, 1.5):
        cold = Oracle(speak, CRITIC, 4, temperature=temperature).log_prior
        apart = kl_divergence(cold, Oracle(wander, 4, temperature).log_target)
        found.equal(f"critic, T={temperature}: with the bonus for uncertainty, KL", apart, 0.0)
    alike = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log().expand(3, 3)
    fixed, ending = (gap(MarkovLM(alike, alike[0], eos_id), 4, 0.7) for eos_id in (None, 0))
    found.equal("independent tokens, fixed length: KL without it", fixed, 0.0)
    found.greater("independent tokens with EOS: it is > 0", ending, 1e-4)

    exact = Oracle(speak, CRITIC, 4)
    long = exact.completions["x"].lengths[0].double()
    colder = refit(CRITIC, 0.7)
    drawn = ImportanceSampling(num_particles=2000, proposal=colder).run(speak, CRITIC, 4, seed=found.seed)
    truth = exact.mean(long, exact.log_prior)
    found.agrees("critic: length, drawn at 0.7 with weights", *drawn.mean("length"), truth)
    raw, error = of_draws(drawn.completions["x"].lengths.double().flatten())
    found.greater("critic: without weights it is off", abs(raw - truth), 0.0, error)
    found.data["apart"] = {toy.name: [gap(toy, length, t) for t in TEMPERATURES] for toy, length in toys}


def pace(found: Findings, temperature: float, path: Tensor) -> None:
    """How fast the rounds [k, v] come near their end: token 0 alone below T = 1, the uniform law above."""
    if temperature < 1:
        left = path[:, 1:].sum(1).log()
        what = "log(1 - P(likeliest)), round 16 over 15: 1/T"
        found.equal(f"T={temperature}: {what}", left[16] / left[15], 1 / temperature, 1e-6)
    else:
        off = (path - 1 / 3).abs().amax(1)
        what = "distance from uniform, round 16 over 15: 1/T"
        found.equal(f"T={temperature}: {what}", off[16] / off[15], 1 / temperature, 1e-3)


def study_lm(found: Findings, lm: Any) -> None:
    """Two tokens out of 50 each: every text is enumerated, so the divergence is exact."""
    for length in (1, 2):
        prior = Oracle(speak, lm, length, "The movie was", top_k=50)
        cold = Oracle(speak, lm, length, "The movie was", top_k=50, temperature=0.7)
        apart = kl_divergence(cold.log_prior, (prior.log_prior / 0.7).log_softmax(0))
        if length == 1:
            found.equal("SmolLM2: one token, KL(p_T || p0^(1/T)), T=0.7", apart, 0.0, 1e-5)
        else:
            found.greater("SmolLM2: two tokens, the same is > 0", apart, 1e-3)


def gap(lm: LM, length: int, temperature: float) -> float:
    """KL(token-tempered || p0^(1/T)), nats."""
    cold = Oracle(speak, lm, length, temperature=temperature).log_prior
    return float(kl_divergence(cold, Oracle(sharpen, lm, length, temperature).log_target))


def expected_step(oracle: Oracle, weights: Tensor) -> Tensor:
    """sum_x weights(x) grad log p(x) in the logits of a table that is p itself, flat."""
    table = TableGuide(oracle.source())
    table.prepare(oracle.source())
    return flat(oracle.gradient(lambda log_q: (weights * log_q).sum(), table).values())


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    """Rounds of refitting, and how far token temperature is from a power of the whole text."""
    for (temperature, path), style in zip(found.data["paths"].items(), ("-", "--"), strict=True):
        for v in range(3):
            left.plot(path[:9, v], style, color=PALETTE[v], lw=2)
        left.annotate(f"T={temperature}", (6.5, float(path[6, 0]) + 0.03))
    caption(left, "Below 1 it freezes, above 1 it melts", "round of refitting on own samples")
    left.set_ylabel("probability of each of three tokens")
    for (name, values), colour in zip(found.data["apart"].items(), PALETTE, strict=False):
        right.semilogy(TEMPERATURES, [max(v, 1e-9) for v in values], color=colour, lw=2)
        note(right, name, (TEMPERATURES[-1], values[-1]), (-36, 6), colour)
    right.set_ylim(1e-6, 1)
    caption(right, "Token temperature is not a power of the text", "temperature of the token sampler")
    right.set_ylabel("KL(token-tempered || p0^(1/T))   [nats]")
