"""The prior caps the damage of a wrong reward: the best 1/beta for the gold reward is finite.

A reward that is wrong can still be used with care. Along the posteriors `p_lambda ∝ p0 exp(lambda r)`, lambda = 1/beta,
any other quantity g moves by its covariance with the reward:

    d E[g]/d lambda = Cov(g, r),   taken under p_lambda itself

At lambda = 0 that is the covariance on the model's own texts, which is what a reward model is validated on. If it is
positive, some optimisation pays, so the best 1/beta is not zero. If the reward is wrong somewhere, the posterior gets
there as lambda grows, the covariance falls through zero, and that is the best lambda: where, on the texts that the
policy writes *now*, proxy and gold no longer go together.

The prior caps the damage because it costs nats to leave it. Among all policies within K nats of p0 the worst is the
tilt against gold, `p0 exp(-t g)`, and no reward, however wrong, can push the posterior below it. A wrong reward without
a prior (an entropy bonus, `exp(r/beta)` alone) starts from all texts alike and finds its mistakes at once.

What is only half true. "Finite" depends on how the reward is wrong. If it is calibrated, gold never falls, and the best
lambda is infinite. If the covariance is not positive under the prior already, the first step is a loss. And the best
lambda is best within a range. In the mixture (see overoptimisation) gold turns up *again* far out, because once every
text is a strange one the tilt buys real quality among them; take "KL <= 6" away and the statement is false. The cap
itself is in nats and not in harm: what the prior writes once in e^K texts can be had for K nats.

**In practice.** Beta cannot be chosen by looking at the proxy. Label a few hundred texts of the *current* policy with
gold and look at the covariance with the proxy; when it is gone, stop, whatever the reward curve says. A ladder of beta
costs one run: weigh the draws of `ImportanceSampling` by `exp(r/beta)` for each.

Source: Stiennon et al. 2020 (arXiv:2009.01325); Gao, Schulman & Hilton 2022 (arXiv:2210.10760).
"""

from __future__ import annotations

import torch
from scipy.optimize import brentq
from torch import Tensor

from ppl_align import Enumeration, ImportanceSampling, completion, reward
from ppl_align.claims._mixture import JUDGE, Judge, Support
from ppl_align.claims._toys import CRITIC, praise, spot
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, note, panels
from ppl_align.claims.findings import Findings
from ppl_align.testing.oracle import Oracle

CAP = 6.0


def review(beta: float, exploit: float) -> None:
    """A film review under a reward model that pays ``exploit`` for every "very very"; the gold reward charges 2."""
    text = completion("review", CRITIC, "", max_new_tokens=6)
    reward("praise", praise, text, beta=beta)
    reward("very very", doubled, text.tokens, beta=beta, weight=exploit)


def doubled(tokens: Tensor) -> Tensor:
    """How often "very" follows "very"."""
    return ((tokens[..., :-1] == 3) & (tokens[..., 1:] == 3)).double().sum(-1)


class Path:
    """The posteriors p0 exp(scale r)/Z of one reward, and a gold reward beside it; [S] vectors."""

    def __init__(self, log_prior: Tensor, r: Tensor, gold: Tensor) -> None:
        self.log_prior, self.r, self.gold = log_prior, r, gold

    def law(self, scale: float | Tensor) -> Tensor:
        """log q [S]"""
        return (self.log_prior + scale * self.r).log_softmax(0)

    def seen(self, scale: float) -> tuple[float, float]:
        """KL(q||p0) in nats, E_q[gold]."""
        return spot(self.law(scale), self.log_prior, self.gold)

    def covariance(self, scale: float) -> float:
        """Cov(gold, r) under the policy."""
        q = self.law(scale).exp()
        return float((q * self.gold * self.r).sum() - (q * self.gold).sum() * (q * self.r).sum())

    def slope(self, scale: float) -> float:
        """d E[gold]/d scale, by automatic differentiation."""
        at = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad((self.law(at).exp() * self.gold).sum(), at)
        return float(found)

    def best(self, cap: float) -> float:
        """The scale of the highest gold within ``cap`` nats: a grid, then a root of the covariance."""
        scales = [k / 100 for k in range(400)]
        top = max((k for k in scales if self.seen(k)[0] <= cap), key=lambda k: self.seen(k)[1])
        low, high = max(top - 0.01, 0.0), top + 0.01
        if not self.covariance(low) > 0 > self.covariance(high):
            return top  # at the edge of the range
        return float(brentq(self.covariance, low, high, xtol=1e-14))


def study(found: Findings) -> None:
    texts = Support()
    raw = Path(texts.log_prior, texts.score, texts.gold)
    best = raw.best(CAP)
    found.rounds_to("mixture, KL <= 6: best 1/beta", best, "0.6505")
    found.rounds_to("mixture, KL <= 6: gold at the best beta", raw.seen(best)[1], "0.3275")
    found.rounds_to("mixture: gold of the prior alone", raw.seen(0.0)[1], "-0.2")
    crossing = next(k / 1e4 for k in range(7000, 20000) if raw.seen(k / 1e4)[1] < 0)
    found.rounds_to("mixture: KL from which gold is negative", raw.seen(crossing)[0], "3.0")
    bottom = min((raw.seen(k / 100) for k in range(70, 200)), key=lambda point: point[1])
    found.greater("mixture: KL at the bottom, beyond the cap", bottom[0], CAP)
    found.greater("mixture: gold at 1/beta = 2.4, it has turned up again", raw.seen(2.4)[1], bottom[1])
    found.greater("mixture: and is above that of the best beta", raw.seen(2.4)[1], raw.seen(best)[1])
    covariance(found, "mixture", raw, best)
    floor(found, "mixture", raw, 2.2)
    calibration(found)
    reviews(found)
    found.data["raw"] = [raw.seen(k / 100) for k in range(241)]
    found.data["best"] = raw.seen(best)


def covariance(found: Findings, name: str, path: Path, best: float) -> None:
    """The slope of gold is its covariance with the proxy: positive at first, zero at the best beta."""
    found.equal(f"{name}: d E[gold]/d(1/beta) = Cov at the prior", path.slope(0.0), path.covariance(0.0))
    found.equal(f"{name}: the same at 1/beta = 1", path.slope(1.0), path.covariance(1.0))
    found.greater(f"{name}: Cov(gold, proxy) under the prior", path.covariance(0.0), 0.0)
    found.equal(f"{name}: Cov(gold, proxy) at the best beta", path.covariance(best), 0.0)


def floor(found: Findings, name: str, path: Path, last: float) -> None:
    """No policy is worse, at its KL, than the tilt against gold."""
    against = Path(path.log_prior, -path.gold, path.gold)
    worst = [against.seen(k / 50) for k in range(400)]
    spare = []
    for scale in torch.linspace(0.01, last, 60).tolist():
        kl, gold = path.seen(scale)
        spare.append(gold - min(g for distance, g in worst if distance <= kl))
    found.greater(f"{name}: least gold above the worst at that KL", min(spare), 0.0)
    found.data[f"{name}, worst"] = worst


def calibration(found: Findings) -> None:
    """The bolder the judge on strange texts, the sooner one has to stop."""
    errors, best = (1.5, 2.0, 3.0, 4.0, 6.0), []
    for error in errors:
        texts = Support(Judge(strange=error))
        path = Path(texts.log_prior, texts.score, texts.gold)
        best.append(path.best(CAP))
        found.data[f"error {error:g}"] = [path.seen(k / 50) for k in range(125)]
    shown = ", ".join(f"{k:.3f}" for k in best)
    found.holds("best 1/beta falls with the strange texts' error", best == sorted(best, reverse=True), shown)
    texts = Support()
    shrunk = Path(texts.log_prior, JUDGE.gold_mean(texts.kind, texts.score), texts.gold)
    gold = [shrunk.seen(k / 20)[1] for k in range(78)]
    found.holds(
        "calibrated, KL <= 6: the best is at the edge", gold == sorted(gold), f"{gold[0]:.2f} .. {gold[-1]:.2f}"
    )


def reviews(found: Findings) -> None:
    """A reward model with an exploit, over every review of up to six words."""
    for exploit in (1.5, 2.0):
        name, oracle = f"reviews, exploit {exploit:g}", Oracle(review, 1.0, exploit)
        fine, very = oracle.rewards["praise"], oracle.rewards["very very"]
        path = Path(oracle.log_prior, fine + exploit * very, fine - 2 * very)
        best = path.best(CAP)
        covariance(found, name, path, best)
        floor(found, name, path, 2.0)
        runs = {k: Enumeration().run(review, 1 / k, exploit) for k in (best, 3 * best)}
        gold = {k: run.mean("praise").value - 2 * run.mean("very very").value for k, run in runs.items()}
        found.equal(f"{name}: Enumeration at the best beta, E[gold]", gold[best], path.seen(best)[1])
        found.less(f"{name}: at a third of it, gold < the prior's", gold[3 * best], path.seen(0.0)[1])
        flat = Path(torch.zeros_like(path.log_prior), path.r, path.gold)
        found.less(f"{name}: at a third, without the prior", flat.seen(3 * best)[1], gold[3 * best])
    ladder(found)


def ladder(found: Findings) -> None:
    """Every beta from one set of draws of the prior."""
    run = ImportanceSampling(6000).run(review, 1.0, 1.5, seed=found.seed)
    oracle = Oracle(review, 1.0, 1.5)
    fine, very = (torch.cat(list(run.rewards[name])) for name in ("praise", "very very"))
    exact = Path(oracle.log_prior, oracle.log_potential, oracle.rewards["praise"] - 2 * oracle.rewards["very very"])
    gold = fine - 2 * very
    for scale in (0.25, 0.5):
        w = (scale * (fine + 1.5 * very)).softmax(0)
        value = (w * gold).sum()
        error = ((w * (gold - value)) ** 2).sum().sqrt()
        found.agrees(f"reviews: draws of one run weighed for beta={1 / scale:.3g}", value, error, exact.seen(scale)[1])


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    for i, error in enumerate((1.5, 2.0, 3.0, 4.0)):
        points = [point for point in found.data[f"error {error:g}"] if point[0] <= CAP]
        left.plot(*zip(*points, strict=True), color=PALETTE[i], lw=2)
        top = max(points, key=lambda point: point[1])
        left.scatter(*top, color=PALETTE[i], s=30, zorder=3)
        note(left, f"error {error:g}", top, (8, 4), PALETTE[i])
    caption(left, "The bolder the judge, the sooner to stop", "KL(q||p0)   [nats]", "E_q[gold]   [reward units]")
    right.plot(*zip(*found.data["raw"], strict=True), color=PALETTE[2], lw=2)
    right.plot(*zip(*found.data["mixture, worst"], strict=True), color=GREY, lw=1.5, ls="--")
    right.scatter(*found.data["best"], color=PALETTE[2], s=30, zorder=3)
    right.axvspan(0, CAP, color=GREY, alpha=0.15, lw=0)
    right.annotate("the range that is meant", (0.3, 0.85), color=GREY)
    right.annotate("raw proxy, error 3", (12, -0.85), color=PALETTE[2])
    right.annotate("worst policy at that KL", (8.0, -3.2), color=GREY)
    right.set_xlim(0, 31)
    right.set_ylim(-4, 1.2)
    caption(right, "Far out gold turns up again", "KL(q||p0)   [nats]", "E_q[gold]   [reward units]")
