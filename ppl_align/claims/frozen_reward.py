"""A reward model that is frozen is overoptimised; one refreshed on the policy's own texts is not.

A reward model is fitted to comparisons, `P(a preferred to b) = sigmoid(r(a) - r(b))` with `r = w . features`
(Bradley-Terry). With a Gaussian prior on w its belief is, by Laplace's method, again Gaussian:

    mean m = argmax_w  sum log sigmoid(w . d) - |w|^2/2       d: features of the preferred minus those of the other
    precision H = 1 + sum p (1 - p) d d^T                     p = sigmoid(w . d) at m

The comparisons say something about w only along directions in which the compared texts differ. Here readers like facts,
and stop liking a summary that is longer than six words, but the writer of before hardly ever wrote one. So the belief
about "too long" stays near its prior, with mean about 0, and the model extrapolates: facts are good, more facts are
better. The tilt `p0 exp(lambda m . features)` walks straight to where nobody has looked. Gold rises, then falls.

Refreshing means to ask for preferences between texts of the *current* policy, refit, tilt the prior by the new reward,
and go on. The new `d d^T` lie where the policy is, so a direction that is exploited is one that is measured. The arms
below get the same number of labels; only where they are spent differs.

What is only half true. Freezing is not the fault as such. If the gold weights are drawn from the belief's own prior,
the frozen posterior mean is calibrated and does not hump, on average (see overoptimisation): what humps is the unspoken
belief that an unseen feature is probably harmless, when it is not. Pessimism (`m . x - sd(x)`) knows what it does not
know and does better, but it only delays: it charges a fixed number of standard deviations, and the truth here is
further out. And at small KL the refreshed arm is behind, since most of its labels are still to come.

**In practice.** Spend labels where the policy is, in rounds, and refit on all of them. After each refit start again
from p0: the target is `p0 exp(r_new/beta)`, and a policy trained on the old reward is at best a proposal for it. A
reward that changes while one run is going on is no likelihood at all.

Source: Stiennon et al. 2020 (arXiv:2009.01325); Bai et al. 2022 (arXiv:2204.05862).
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_align import Enumeration, ImportanceSampling, MarkovLM, completion, reward
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, panels
from ppl_align.claims.findings import Findings
from ppl_align.core.estimate import standard_error
from ppl_align.guides import ProgramGuide
from ppl_align.testing.oracle import Oracle

SEEDS, LABELS, FIRST = 200, 40, 10
RUNGS = torch.arange(1, 11, dtype=torch.float64)
"""KL of the policies from the prior, in nats; the refreshed arm gets new labels at each."""
GOLD, STRICTER = torch.tensor([[1.0, 0.3, -2.0], [1.0, 0.3, -3.0]], dtype=torch.float64)
"""What readers like: facts, fillers, words beyond the sixth."""
START = torch.tensor([0.0, 0.78, 0.22], dtype=torch.float64).log()
AFTER = torch.tensor([[0.55, 0.35, 0.10]] * 3, dtype=torch.float64).log()
WRITER = MarkovLM(AFTER, START, eos_id=0, tokens=[".", " fact", " filler"], name="summariser")


def features(tokens: Tensor) -> Tensor:
    """Facts, fillers, and words beyond the sixth, [..., 3]."""
    facts, fillers = (tokens == 1).double().sum(-1), (tokens == 2).double().sum(-1)
    return torch.stack([facts, fillers, (facts + fillers - 6).clamp(min=0)], -1)


def summary(beta: float, weights: Tensor) -> None:
    """A summary of at most ten words, tilted by a linear reward model."""
    text = completion("summary", WRITER, [], max_new_tokens=10)
    reward("preference", lambda tokens: features(tokens) @ weights, text.tokens, beta=beta)


def belief(differences: Tensor) -> None:
    """What is known of the weights from comparisons: ``differences [n, 3]``, preferred minus other."""
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
    preferred = dist.Bernoulli(logits=(differences * weights[..., None, :]).sum(-1)).to_event(1)
    pyro.sample("preferred", preferred, obs=torch.ones(len(differences), dtype=torch.float64))


def laplace(differences: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [R, 3] and covariance [R, 3, 3] of the Gaussian belief after ``differences [R, n, 3]`` (Newton's method)."""
    w, eye = torch.zeros(len(differences), 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    for _ in range(15):
        p = torch.sigmoid((differences * w[:, None]).sum(-1))[..., None]
        slope = (differences * (1 - p)).sum(1) - w
        precision = (differences * p * (1 - p)).transpose(1, 2) @ differences + eye
        w = w + torch.linalg.solve(precision, slope)
    return w, torch.linalg.inv(precision)


class Summaries:
    """Texts with the same features are one to every reward here: ``x [S, 3]`` and ``log_prior [S]`` of each kind."""

    def __init__(self) -> None:
        oracle = Oracle(summary, 1.0, GOLD)
        self.x, kind = torch.unique(features(oracle.values["summary"]), dim=0, return_inverse=True)
        mass = torch.zeros(len(self.x), dtype=torch.float64).index_add(0, kind, oracle.log_prior.exp())
        self.log_prior = mass.log()
        self.centred = self.x - (mass[:, None] * self.x).sum(
            0
        )  # a constant reward cannot be learned, nor does it matter

    def tilt(self, r: Tensor, kl: float) -> tuple[Tensor, Tensor]:
        """log q [R, S] and 1/beta [R, 1] of the tilts by ``r [R, S]`` that are ``kl`` nats from the prior."""
        low, high = torch.zeros(len(r), 1).double(), torch.full((len(r), 1), 100.0).double()
        for _ in range(50):
            scale = (low + high) / 2
            q = (self.log_prior + scale * r).log_softmax(-1)
            near = (q.exp() * (q - self.log_prior)).sum(-1, keepdim=True) < kl
            low, high = torch.where(near, scale, low), torch.where(near, high, scale)
        return (self.log_prior + high * r).log_softmax(-1), high

    def compare(self, log_q: Tensor, n: int, gold: Tensor) -> Tensor:
        """n comparisons of two draws of ``log_q [R, S]`` by readers with ``gold [R, 3]``: differences [R, n, 3]."""
        drawn = torch.multinomial(log_q.exp().expand(len(gold), -1), 2 * n, replacement=True)
        pairs = self.x[drawn].reshape(len(gold), n, 2, 3)
        d = pairs[:, :, 0] - pairs[:, :, 1]
        first = torch.rand(len(gold), n) < torch.sigmoid((d * gold[:, None]).sum(-1))
        return torch.where(first[..., None], d, -d)


def arms(texts: Summaries, gold: Tensor) -> dict[str, Tensor]:
    """E[gold] at every rung, [R, rungs], for each arm; ``gold [R, 3]``: the readers' weights, by seed."""
    frozen = texts.compare(texts.log_prior, LABELS, gold)
    m, cov = laplace(frozen)
    sd = torch.einsum("si,rij,sj->rs", texts.centred, cov, texts.centred).sqrt()
    fresh = frozen[:, :FIRST]
    found: dict[str, list[Tensor]] = {"frozen mean": [], "frozen pessimistic": [], "refreshed": [], "oracle": []}
    for kl in RUNGS.tolist():
        rewards = {
            "frozen mean": m @ texts.x.T,
            "frozen pessimistic": m @ texts.x.T - sd,
            "refreshed": laplace(fresh)[0] @ texts.x.T,
            "oracle": gold @ texts.x.T,
        }
        for name, r in rewards.items():
            log_q, _ = texts.tilt(r, kl)
            found[name].append((log_q.exp() * (gold @ texts.x.T)).sum(-1))
            if name == "refreshed":
                fresh = torch.cat([fresh, texts.compare(log_q, (LABELS - FIRST) // len(RUNGS), gold)], 1)
    return {name: torch.stack(values, -1) for name, values in found.items()}


def study(found: Findings) -> None:
    texts = Summaries()
    check_parts(found, texts)
    for name, weights in (("readers", GOLD), ("stricter readers", STRICTER)):
        gold = arms(texts, weights.expand(SEEDS, 3))
        orderings(found, name, gold)
        curves = {arm: (v.mean(0).tolist(), (v.std(0) / SEEDS**0.5).tolist()) for arm, v in gold.items()}
        found.data[name] = curves
    calibrated = arms(texts, torch.randn(SEEDS, 3, dtype=torch.float64))["frozen mean"]
    found.data["calibrated"] = calibrated.mean(0).tolist()
    below(found, "readers drawn from the belief: gold at KL = 3 < 10", calibrated[:, 2], calibrated[:, 9])
    found.holds("the same, frozen mean: never falls on average", bool((calibrated.mean(0).diff() > 0).all()))


def orderings(found: Findings, name: str, gold: dict[str, Tensor]) -> None:
    """Who humps, and who is above whom; each arm [R, rungs]."""
    frozen, pessimistic, refreshed = gold["frozen mean"], gold["frozen pessimistic"], gold["refreshed"]
    below(found, f"{name}, frozen mean: gold at KL = 10 < at KL = 3", frozen[:, 9], frozen[:, 2])
    below(found, f"{name}, pessimistic: gold at KL = 10 < at KL = 5", pessimistic[:, 9], pessimistic[:, 4])
    below(found, f"{name}, refreshed: gold at KL = 3 < at KL = 10", refreshed[:, 2], refreshed[:, 9])
    average = refreshed.mean(0)
    found.less(f"{name}, refreshed: fall from its best to the last", average.max() - average[9], 0.1, run=True)
    below(found, f"{name}, KL = 10: frozen mean < pessimistic", frozen[:, 9], pessimistic[:, 9])
    below(found, f"{name}, KL = 10: pessimistic < refreshed", pessimistic[:, 9], refreshed[:, 9])
    below(found, f"{name}, KL = 1: refreshed < pessimistic", refreshed[:, 0], pessimistic[:, 0])
    share = float((refreshed[:, 9] > frozen[:, 9]).double().mean())
    found.greater(f"{name}, KL = 10: seeds where refreshed > frozen", share, 0.5, (0.25 / SEEDS) ** 0.5)


def below(found: Findings, what: str, smaller: Tensor, larger: Tensor) -> None:
    """One arm below another, by the paired differences over seeds."""
    gap = larger - smaller
    found.less(what, smaller.mean(), larger.mean(), standard_error(gap))


def check_parts(found: Findings, texts: Summaries) -> None:
    """The pieces against the library: the tilt against Enumeration, Laplace against importance sampling."""
    gold = GOLD.expand(1, 3)
    d = texts.compare(texts.log_prior, LABELS, gold)
    m, cov = laplace(d)
    log_q, scale = texts.tilt(m @ texts.x.T, 4.0)
    run = Enumeration().run(summary, 1 / float(scale), m[0])
    value = run.mean(lambda particles: features(particles["summary"].tokens) @ GOLD).value
    found.equal("tilt at KL = 4 by its features: Enumeration, E[gold]", (log_q.exp() * (texts.x @ GOLD)).sum(), value)

    def gaussian(differences: Tensor) -> None:
        pyro.sample("weights", dist.MultivariateNormal(m[0], cov[0]))

    drawn = ImportanceSampling(2000, proposal=ProgramGuide(gaussian)).run(belief, d[0], seed=found.seed)
    exact = (drawn.weights[..., None] * drawn.latents["weights"]).sum((0, 1))
    off = (exact - m[0]).abs() / cov[0].diagonal().sqrt()
    found.less("Laplace's mean off the exact belief's, in its sd", off.max(), 0.5, run=True)


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    kl = RUNGS.tolist()
    colours = {
        "oracle": (GREY, (3.6, 5.7)),
        "refreshed": (PALETTE[0], (7.5, 5.3)),
        "frozen pessimistic": (PALETTE[2], (7.2, 4.6)),
        "frozen mean": (PALETTE[1], (6.5, 2.7)),
    }
    for name, (colour, spot) in colours.items():
        mean, error = found.data["readers"][name]
        left.errorbar(kl, mean, [2 * e for e in error], color=colour, lw=2, capsize=2)
        left.annotate(name, spot, color=colour)
    caption(left, f"{LABELS} labels, frozen or refreshed", "KL(q||p0)   [nats]", "E_q[gold]   [reward units]")
    right.plot(kl, found.data["calibrated"], color=PALETTE[3], lw=2)
    right.annotate("frozen mean", (kl[5], found.data["calibrated"][4]), color=PALETTE[3])
    caption(right, "Gold drawn from the belief's prior: no hump", "KL(q||p0)   [nats]", "E_q[gold]   [reward units]")
