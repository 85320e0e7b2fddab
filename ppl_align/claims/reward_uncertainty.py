"""Integrating reward uncertainty inside exp() pays a bonus for being unsure.

A Bayesian does not have a reward but a belief about it: `theta ~ belief`, `reward(theta)`. Written into the program
like that, theta is one more latent, and inference integrates it out where it stands, inside of the exponential:

    p*(x) ∝ p0(x) E[exp(r_theta(x)/beta)] = p0(x) exp(E r(x)/beta) * exp(bonus(x))
    bonus(x) = log E exp((r_theta(x) - E r_theta(x))/beta) >= 0,   s(x)^2 / (2 beta^2) for a Gaussian belief

The right-hand side is the posterior under the *mean* reward times a bonus in nats. It is Jensen's inequality, it has
nothing to do with how well theta is known on the whole, and only its *differences* between texts matter. A constant
bonus cancels in Z.

So there are three ways to use one belief. Marginalise: a bonus for what one is unsure about. The mean reward: the
policy with the largest expected `J(q) = E_q[r] - beta KL(q||p0)`, reward less what leaving the prior costs, whatever
the uncertainty, since `E_q[r]` is linear in r. The mean minus `s^2/(2 beta)`: a malus of the same size, pessimism.

What is only half true. "Integrating over uncertainty is what a Bayesian does", and it is right for predictions. A
policy is a decision: theta is not chosen by the writer, and conditioning on success also infers that theta is kind (see
optimism). Nor is marginalising always bad. If the belief is *calibrated* its bonus restores exactly the variance that
shrinkage took out of the mean, `Var(E[gold|seen]) + E[Var(gold|seen)] = Var(gold)`, so that each kind of text is
weighed as its gold reward would weigh it. The bonus can then be large and the loss is small all the same, and zero
where the uncertainty is uniform. It is ruinous when the belief is bold in the wrong place: unsure about strange texts,
and centred on their raw score. Pessimism is the same mistake with the sign turned round. On a calibrated belief it
loses as well, but what it avoids is the unknown, and so it is forgiving of a belief that is wrong.

**In practice.** Average the ensemble *before* the exponential: `reward("r", mean_of_members, text)`. Do not sample the
member, the judge's temperature or the dropout mask inside of the program, unless the bonus is wanted. Look at its size,
`s^2/(2 beta^2)`: a standard deviation of 3 beta is worth 4.5 nats, as much as a mean reward that is higher by 4.5 beta.

Source: Levine 2018 (arXiv:1805.00909); Coste et al. 2023 (arXiv:2310.02743); Eisenstein et al. 2023 (arXiv:2312.09244).
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_align import ImportanceSampling, MarkovLM, completion, reward
from ppl_align.claims._mixture import JUDGE, Potential, Reading, Support, closed_form, raw, write
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, panels
from ppl_align.claims.findings import Findings
from ppl_align.particles.weights import log_mean_exp
from ppl_align.testing.oracle import Oracle, kl_divergence

CAP = 6.0
QUANTA = torch.arange(-16, 17, dtype=torch.float64) * 0.75
"""A standard normal on a grid: its moment generating function is exact to rounding up to arguments of about 6."""


def unsure(beta: float, mean: Reading, sd: Tensor) -> None:
    """A text, and a Gaussian belief about its reward as a latent of the program: ``theta ~ belief; reward(theta)``."""
    kind, score = write(JUDGE)
    quantum = pyro.sample("quantum", dist.Categorical(logits=-(QUANTA**2) / 2))
    theta = mean(kind, score) + sd[kind] * QUANTA[quantum]
    reward("theta", lambda theta: theta, theta, beta=beta)


TYPIST = MarkovLM(
    torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [1.0, 1.0, 1.0]], dtype=torch.float64).log(),
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log(),
    eos_id=2,
)


def ensemble(beta: float, weights: Tensor) -> None:
    """Reward models that disagree: ``weights [K, 2]``, what each pays for a 0 and for a 1. Each text meets one."""
    member = pyro.sample("member", dist.Categorical(torch.ones(len(weights), dtype=torch.float64)))
    text = completion("text", TYPIST, [], max_new_tokens=4)
    reward("score", lambda tokens: (counts(tokens) * weights[member]).sum(-1), text.tokens, beta=beta)


def averaged(beta: float, weights: Tensor) -> None:
    """The mean of the ensemble: averaged before the exponential."""
    text = completion("text", TYPIST, [], max_new_tokens=4)
    reward("score", lambda tokens: (counts(tokens) @ weights.T).mean(-1), text.tokens, beta=beta)


def counts(tokens: Tensor) -> Tensor:
    """How many 0 and how many 1, [..., 2]."""
    return torch.stack([(tokens == 0).sum(-1), (tokens == 1).sum(-1)], -1).double()


def study(found: Findings) -> None:
    the_bonus(found)
    three_ways(found)


def the_bonus(found: Findings) -> None:
    """Four reward models over texts of up to four tokens; what marginalising them adds to their mean."""
    weights = torch.tensor([[0.2, -0.3], [0.4, 0.9], [0.1, 0.5], [0.5, 0.1]], dtype=torch.float64)
    apart = []
    for beta in (0.25, 0.5, 2.0):
        name, mean, joint = f"ensemble, beta={beta}", Oracle(averaged, beta, weights), Oracle(ensemble, beta, weights)
        law = joint.log_target.reshape(len(weights), -1).logsumexp(0)  # the member summed out: [texts]
        r = counts(mean.values["text"]) @ weights.T / beta
        bonus = log_mean_exp(r - r.mean(-1, keepdim=True))
        boosted = (mean.log_target + bonus).log_softmax(0)
        found.equal(f"{name}: KL(p*||mean's posterior x bonus)", kl_divergence(law, boosted), 0.0)
        found.greater(f"{name}: the bonus differs by up to [nats]", float(bonus.max() - bonus.min()), 0.05)
        apart.append(float(mean.reverse_kl(law)))
        lost = beta * (mean.log_evidence - float(mean.elbo(law)))
        found.equal(f"{name}: expected J lost = beta KL(p*||mean's)", lost, beta * apart[-1])
    found.holds("the smaller beta, the larger that KL", apart == sorted(apart, reverse=True))
    run = ImportanceSampling(3000).run(ensemble, 0.5, weights, seed=found.seed)
    joint = Oracle(ensemble, 0.5, weights)
    exact = joint.mean((joint.values["member"] == 1).double())
    picked = run.mean(lambda particles: particles["member"] == 1)
    found.agrees("ImportanceSampling: P(the most generous member)", *picked, exact)
    found.greater("it was 1/4 before the reward was asked for", float(exact), 0.25)


def three_ways(found: Findings) -> None:
    """Two beliefs about the mixture, each used in three ways."""
    texts = Support()
    calibrated, error = JUDGE.gold_sd(torch.arange(2)), JUDGE.error
    even = torch.full((2,), 0.7, dtype=torch.float64)
    beliefs: dict[str, tuple[Reading, Tensor, tuple[str, str, str | None]]] = {
        "mis-calibrated": (raw, error, ("-1.014", "-0.361", "3.068")),
        "calibrated": (JUDGE.gold_mean, calibrated, ("3.071", "3.071", None)),
    }
    for name, (mean, sd, stated) in beliefs.items():
        arms = potentials(texts, mean, sd)
        for (arm, potential), figure in zip(arms.items(), stated, strict=True):
            scale = texts.at_kl(potential, CAP)
            gold = texts.seen(potential(scale))[1]
            if figure is None:  # no figure is stated: the grid against the closed form
                shrunk = 1 / (1 + error**2)
                want = closed_form(scale, shrunk, shrunk, -((scale * sd) ** 2) / 2)[1]
                found.equal(f"{name}, {arm}: gold at KL = 6", gold, want)
            else:
                found.rounds_to(f"{name}, {arm}: gold at KL = 6", gold, figure)
            found.data[f"{name}, {arm}"] = [texts.seen(potential(k * scale)) for k in torch.linspace(0, 1, 80).tolist()]
            if arm == "marginalised":
                found.equal(
                    f"{name}: theta in the program, KL to the formula", through(texts, potential, scale, mean, sd), 0.0
                )
                extra = (scale * sd) ** 2 / 2
                found.less(f"{name}, KL = 6: bonus, familiar < strange [nats]", float(extra[0]), float(extra[1]))
        best = texts.tilted(arms["mean"](1.0))
        for arm in ("marginalised", "pessimistic"):
            lost = [_j(texts, mean, law) for law in (best, texts.tilted(arms[arm](1.0)))]
            found.less(f"{name}, beta=1: believed J, {arm} < mean", lost[1], lost[0])
    law = potentials(texts, JUDGE.gold_mean, even)["mean"]
    found.equal(
        "evenly unsure: theta in the program, KL to the mean's", through(texts, law, 1.5, JUDGE.gold_mean, even), 0.0
    )
    sweep(found, texts, calibrated)


def potentials(texts: Support, mean: Reading, sd: Tensor) -> dict[str, Potential]:
    """The three ways to use the belief N(mean, sd^2), as functions of 1 / beta."""
    r, variance = mean(texts.kind, texts.score), sd[texts.kind] ** 2
    return {
        "marginalised": lambda k: k * r + k**2 * variance / 2,
        "mean": lambda k: k * r,
        "pessimistic": lambda k: k * r - k**2 * variance / 2,
    }


def through(texts: Support, potential: Potential, scale: float, mean: Reading, sd: Tensor) -> float:
    """KL from the texts of ``theta ~ belief; reward(theta)``, by enumeration, to those of a formula."""
    joint = Oracle(unsure, 1 / scale, mean, sd)
    law = joint.log_target.reshape(-1, len(QUANTA)).logsumexp(-1)
    return float(kl_divergence(law, texts.tilted(potential(scale))))


def _j(texts: Support, mean: Reading, log_q: Tensor) -> float:
    """E[r] - KL(q||p0), at beta = 1, with the mean of the belief for r."""
    r = mean(texts.kind, texts.score)
    return float((log_q.exp() * r).sum() - kl_divergence(log_q, texts.log_prior))


def sweep(found: Findings, texts: Support, calibrated: Tensor) -> None:
    """The right mean, and a standard deviation that is k times too large on strange texts; beta = 1."""
    factors = torch.linspace(0, 4, 41).tolist()
    j: dict[str, list[float]] = {}
    for k in factors:
        sd = calibrated * torch.tensor([1.0, k], dtype=torch.float64)
        for arm, potential in potentials(texts, JUDGE.gold_mean, sd).items():
            j.setdefault(arm, []).append(_j(texts, JUDGE.gold_mean, texts.tilted(potential(1.0))))
    found.data["factors"], found.data["j"] = factors, j
    start = float((texts.log_prior.exp() * texts.gold).sum())
    last = {arm: values[factors.index(3.0)] for arm, values in j.items()}
    found.less("strange sd x 3, beta=1: J, marginalised < the prior's", last["marginalised"], start)
    found.greater("strange sd x 3, beta=1: J, pessimistic > 0.9 of best", last["pessimistic"], 0.9 * last["mean"])


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    colours = {"marginalised": PALETTE[1], "mean": PALETTE[0], "pessimistic": PALETTE[2]}
    spots = {"marginalised": (3.2, -0.55), "mean": (2.6, 0.2), "pessimistic": (4.0, 2.0)}
    beside = {"marginalised": (2.3, -1.5), "mean": (3.5, 0.42), "pessimistic": (1.2, -0.05)}
    for arm, colour in colours.items():
        left.plot(*zip(*found.data[f"mis-calibrated, {arm}"], strict=True), color=colour, lw=2)
        left.annotate("mean (the raw proxy)" if arm == "mean" else arm, spots[arm], color=colour)
        right.plot(found.data["factors"], found.data["j"][arm], color=colour, lw=2)
        right.annotate(arm, beside[arm], color=colour)
    for arm, style in zip(colours, (":", "--", "-."), strict=True):
        left.plot(*zip(*found.data[f"calibrated, {arm}"], strict=True), color=GREY, lw=2, ls=style)
    left.annotate("calibrated belief, all three ways", (1.2, 2.9), color=GREY)
    caption(left, "One belief, three ways to use it", "KL(q||p0)   [nats]", "E_q[gold]   [reward units]")
    right.set_ylim(top=0.8)
    right.axvline(1, color=GREY, lw=1, ls="--")
    right.annotate("calibrated", (0.95, -3.0), color=GREY, ha="right")
    caption(right, "J at beta = 1: too unsure in the wrong place", "believed / right standard deviation, strange texts")
    right.set_ylabel("E_q[gold] - KL(q||p0)   [reward units]")
