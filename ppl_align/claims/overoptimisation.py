"""Optimising a proxy first raises the gold reward, then lowers it; a calibrated proxy has no such gap.

A reward model scores `s = gold + error`. On texts like those it was trained on the error is small; one text in ten is
strange, worse than it looks, and there the error is large. Nobody is malicious, the error has mean zero. Now tilt the
prior by `exp(lambda s)`, lambda = 1/beta. Within a kind of text everything is Gaussian, and the tilt raises the mean of
the gold reward by `lambda`, whatever the error. What goes wrong is the mix of kinds, each weighed by its mean of
`exp(lambda s)`:

    share(kind) ∝ p0(kind) exp(lambda m + lambda^2 (1 + error^2)/2)

The variance of the error sits in the exponent, beside the variance of quality, and grows with the square of lambda.
Soon the tilt prefers the kind about which least is known.

A calibrated proxy is `r = E[gold | all that the reward model sees]`. Any policy that looks at nothing else has
`E_q[r] = E_q[gold]` (tower rule): the two curves are one. And since `d E_q[r]/d lambda = Var_q(r) >= 0` along the
tilts, it only rises. Calibration under the *prior* is enough, because such a policy does not change how gold is
distributed given what is seen.

What is only half true. "Given all that it sees": hide the kind and the calibrated reward is still honest, but weak, it
cannot tell a brilliant text from a strange one. Nor does optimisation turn against you because the proxy is noisy. With
independent Gaussian noise nothing turns: gold stays a fixed share of the proxy. With heavy tails best-of-n turns, since
the winner is in the end the luckiest. The posterior does *not* turn even then: `exp(lambda (gold + error))` factorises
and gold rises with lambda as if there were no noise. It stalls instead, because the KL goes into the noise.

**In practice.** Plot the gold reward (held-out judges, humans) against KL, not against steps, and look for the turn. If
the reward model can tell that a text is unlike its training data, let it shrink its score there; a number that is right
on average is worth more than a penalty on KL. Raw scores of a model that is equally bold everywhere are not calibrated.

Source: Gao, Schulman & Hilton 2022 (arXiv:2210.10760); Kwa, Thomas & Garriga-Alonso 2024 (arXiv:2407.14503).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_align import CallableLM, Enumeration, ImportanceSampling, Posterior, completion, reward
from ppl_align.claims._mixture import JUDGE, SCORES, Judge, Potential, Support, answer, closed_form, graded
from ppl_align.claims._toys import matched
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, panels
from ppl_align.claims.findings import Findings
from ppl_align.testing.oracle import Oracle

CAP = 6.0
"""Nats from the prior at which policies are compared."""


def study(found: Findings) -> None:
    texts, perfect = Support(), Support(Judge(0.0, 0.0))  # a judge without error scores gold itself
    error, unsure = JUDGE.error[texts.kind] ** 2, JUDGE.gold_sd(texts.kind) ** 2
    hidden = without_kind(texts)
    arms: dict[str, tuple[Support, Potential, str]] = {
        "raw proxy": (texts, lambda k: k * texts.score, "-0.361"),
        "marginalised, N(proxy, s^2)": (texts, lambda k: k * texts.score + k**2 * error / 2, "-1.014"),
        "pessimistic": (texts, lambda k: k * texts.score - k**2 * error / 2, "3.068"),
        "posterior mean": (texts, lambda k: k * texts.gold, "3.071"),
        "marginalised, calibrated": (texts, lambda k: k * texts.gold + k**2 * unsure / 2, "3.071"),
        "oracle": (perfect, lambda k: k * perfect.gold, "3.434"),
    }
    for name, (support, potential, stated) in arms.items():
        scale = support.at_kl(potential, CAP)
        found.rounds_to(f"{name}: gold at KL = 6", support.seen(potential(scale))[1], stated)
        found.data[name] = [support.seen(potential(k * scale)) for k in torch.linspace(0, 1, 120).tolist()]
    found.data["kind hidden"] = [texts.seen(k * hidden) for k in torch.linspace(0, 66, 200).tolist()]
    scale = texts.at_kl(lambda k: k * hidden, 4.18, high=66)
    found.rounds_to("posterior mean, kind hidden: gold at KL = 4.18", texts.seen(scale * hidden)[1], "1.465")
    path = [texts.seen(k * texts.score) for k in torch.linspace(0, 1.119, 2000).tolist()]
    kl, gold = max(path, key=lambda point: point[1])
    found.rounds_to("raw proxy, KL <= 6: best gold", gold, "0.327")
    found.rounds_to("raw proxy, KL <= 6: KL at the best gold", kl, "0.58")
    check_engines(found, texts)
    check_gap(found, texts, hidden)
    noise_alone(found)


def without_kind(texts: Support) -> Tensor:
    """E[gold | score] where the reward model cannot see the kind, [S]."""
    law, gold = texts.log_prior.reshape(2, len(SCORES)).softmax(0), texts.gold.reshape(2, len(SCORES))
    return (law * gold).sum(0).repeat(2)


def check_engines(found: Findings, texts: Support) -> None:
    """The grid against formulas, and against draws from the continuous program."""
    everywhere = 1 + JUDGE.error**2
    for scale in (0.3, 1.0):
        run = Enumeration().run(answer, 1 / scale)
        kl, gold = closed_form(scale, torch.ones(2), everywhere)
        found.equal(f"raw, beta={1 / scale:.3g}: Enumeration, E[gold] = closed form", _gold(run), gold)
        found.equal(f"raw, beta={1 / scale:.3g}: KL = closed form", texts.seen(scale * texts.score)[0], kl)
    run = ImportanceSampling(4000).run(graded, 1 / 0.3, seed=found.seed)
    found.agrees("raw, beta=3.33: ImportanceSampling, E[gold]", *run.mean("gold"), texts.seen(0.3 * texts.score)[1])


def _gold(run: Posterior) -> float:
    particles = run.particles
    score = SCORES[particles["text"].tokens[..., 0]]  # type: ignore[union-attr]
    return run.mean(lambda _: JUDGE.gold_mean(particles["kind"], score)).value  # type: ignore[arg-type]


def check_gap(found: Findings, texts: Support, hidden: Tensor) -> None:
    """Proxy against gold along each path of tilts: equal if calibrated, and rising."""
    run = ImportanceSampling(4000).run(graded, 1 / 1.5, JUDGE.gold_mean, seed=found.seed)
    gap = run.mean(lambda particles: run.rewards["proxy"] - particles["gold"])
    found.agrees("posterior mean, drawn: proxy - gold", *gap, 0.0)
    run = ImportanceSampling(4000).run(graded, 1 / 0.3, seed=found.seed)
    value, error = run.mean(lambda particles: run.rewards["proxy"] - particles["gold"])
    found.greater("raw, drawn: proxy - gold is not zero", value, 0.0, error)
    for name, r, last in (("posterior mean", texts.gold, 4.0), ("kind hidden", hidden, 66.0)):
        laws = [texts.tilted(scale * r).exp() for scale in torch.linspace(0, last, 100).tolist()]
        gold = torch.stack([(q * texts.gold).sum() for q in laws])
        proxy = torch.stack([(q * r).sum() for q in laws])
        found.equal(f"{name}: largest |E[proxy] - E[gold]|", (proxy - gold).abs().max(), 0.0)
        found.holds(f"{name}: gold never falls", bool((gold.diff() > -1e-12).all()))


GOLD = torch.arange(-18, 19, dtype=torch.float64) / 2
NOISE = torch.arange(-300, 301, dtype=torch.float64) / 2


def noisy_text(tails: str) -> None:
    """Two tokens: how good the text is, N(0, 1), and how it is misjudged: "gaussian", N(0, 1), or "heavy", t(2).

    The noise is cut off at 150: beyond any bound, t(2) has no moment generating function and Z is infinite."""
    log_noise = -(NOISE**2) / 2 if tails == "gaussian" else -1.5 * (1 + NOISE**2 / 2).log()
    never = torch.full((len(NOISE) - len(GOLD),), -torch.inf, dtype=torch.float64)
    log_gold = torch.cat([-(GOLD**2) / 2, never])
    writer = CallableLM(len(NOISE), lambda x: (log_noise if x.shape[1] else log_gold).expand(len(x), -1))
    text = completion("text", writer, [], max_new_tokens=2)
    reward("proxy", lambda t: GOLD[t[..., 0]] + NOISE[t[..., 1]], text.tokens)


def best_of(n: int, oracle: Oracle, r: Tensor) -> Tensor:
    """The law of the best of n draws of the prior, [S]; ties are split by the prior."""
    values, where = torch.unique(r, return_inverse=True)
    mass = torch.zeros_like(values).index_add(0, where, oracle.log_prior.exp())
    below = torch.cat([torch.zeros(1, dtype=torch.float64), mass.cumsum(0)])
    return oracle.log_prior.exp() * torch.where(mass > 0, below.pow(n).diff() / mass, 0.0)[where]


def noise_alone(found: Findings) -> None:
    """One kind of text, independent noise: which method turns, and which only stalls."""
    draws = [2**k for k in range(11)]
    for tails in ("gaussian", "heavy"):
        oracle = Oracle(noisy_text, tails)
        r, tokens = oracle.rewards["proxy"], oracle.values["text"]
        gold = GOLD[tokens[:, 0].clamp(max=len(GOLD) - 1)]
        best = [best_of(n, oracle, r) for n in draws]
        rise = [float((q * gold).sum()) for q in best]
        found.data[f"best of n, {tails}"] = (draws, rise)
        law = (oracle.log_prior + 0.4 * r).log_softmax(0)
        found.equal(f"{tails} noise, posterior at beta=2.5: gold = 1/beta", oracle.mean(gold, law), 0.4)
        reached = float(oracle.mean(gold, matched(CAP, r, oracle.log_prior)[1]))
        if tails == "gaussian":
            found.holds("gaussian noise, best of n: gold never falls", rise == sorted(rise), "n = 1, 2, 4 ... 1024")
            share = max(abs(rise[k] / float((best[k] * r).sum()) - 0.5) for k in range(1, len(draws)))
            found.equal("gaussian noise, best of n: |gold/proxy - 1/2|", share, 0.0)
            found.equal("gaussian noise, posterior: gold at KL = 6", reached, CAP**0.5)
        else:
            peak = rise.index(max(rise))
            found.less(f"heavy tails, best of 1024: gold < best of {draws[peak]}", rise[-1], 0.5 * rise[peak])
            found.less("heavy tails, posterior: gold at KL = 6", reached, 0.1 * CAP**0.5)


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    labels = {
        "raw proxy": (PALETTE[1], (2.1, 0.3)),
        "marginalised, N(proxy, s^2)": (PALETTE[4], (3.0, -0.62)),
        "posterior mean": (PALETTE[0], (3.8, 2.1)),
        "kind hidden": (PALETTE[3], (4.4, 1.5)),
        "oracle": (GREY, (3.0, 2.75)),
    }
    for name, (colour, spot) in labels.items():
        left.plot(*zip(*found.data[name], strict=True), color=colour, lw=2)
        left.annotate(name, spot, color=colour)
    caption(left, "A raw proxy turns, a calibrated one does not", "KL(q||p0)   [nats]", "E_q[gold]   [reward units]")
    for (tails, colour), spot in zip(
        (("gaussian", PALETTE[0]), ("heavy", PALETTE[1])), ((12, 1.75), (40, 0.75)), strict=True
    ):
        draws, gold = found.data[f"best of n, {tails}"]
        right.semilogx(draws, gold, "o-", ms=3.5, color=colour, lw=2)
        right.annotate(f"{tails} noise" if tails == "gaussian" else "heavy tails", spot, color=colour)
    caption(right, "Noise alone: only heavy tails turn best-of-n", "n", "E[gold] of the best of n   [reward units]")
