"""Only the reward can tell a model something new; its own opinion of its texts cannot.

Consider a loop that generates, labels and refits. If each text counts with weight `exp(r(x)/beta)`, the refitted model
is `p0 exp(r/beta) / Z`, the posterior. Its next round starts from there, so after k rounds it is
`p0 exp(k r/beta) / Z_k`: k rounds of reward-weighted refitting are exactly one posterior at `beta/k`. Everything that
changed came in through r.

Now let the model imagine the reward. A return-conditioned sequence model is a joint law `p(x, s) = p(x) p(s|x)` over
texts and scores. Trained on its own pairs (x, imagined s) it is trained on its own unfiltered samples, and the lemma of
self-training applies to the pair: the expected gradient is zero, for p(x), for p(s|x), and so for `p(x|s=high)` too.
Imagined rewards do move the model once they are used, as weights or by conditioning on a high score and keeping
what comes out. They move it to `p0 exp(r_hat/beta)` or to `p0(x) p(high|x)`: posteriors of a belief, not of the truth.
Along the way, at the start, the true reward changes at the rate `Cov_p0(r, r_hat)` per unit of 1/beta.

So it is only half true that self-reward is empty. If r_hat covaries with r the model does improve: it turns knowledge
that it had, but did not act on, into behaviour. It gets no further than r_hat reaches, `E_p0[r | r_hat = max]` in the
end, and with a wrong belief every round makes it worse. A verifier, a compiler, a user or a proof checker is access to
the reward; a second prompt to the same model is access to r_hat. And "new" has a limit of its own: reweighting never
gives probability to a text that p0 cannot write, whatever it is worth. With n samples a round the same holds for texts
that did not come up.

**In practice.** For every loop of self-improvement ask where the labels come from, and count those calls. If an online
decision transformer relabels rollouts with returns from the environment it learns; if it relabels them with its own
predictions it stands still. k rounds at beta are not milder than one round at beta/k: report the product.

Source: Peng et al. 2019, advantage-weighted regression (arXiv:1910.00177); Chen et al. 2021 (arXiv:2106.01345); Zheng
et al. 2022, online decision transformers (arXiv:2202.05607).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_align import LM, SVI, CallableLM, ImportanceSampling, completion, reward
from ppl_align.claims._gradients import flat
from ppl_align.claims._toys import CRITIC, RAMBLER, pattern, spot
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, note, panels
from ppl_align.claims.findings import Findings
from ppl_align.lm.decoding import Rows
from ppl_align.testing import Oracle
from ppl_align.testing.oracle import kl_divergence

LENGTH = 3


def truth(lm: LM, beta: float) -> None:
    """What the world pays for a text."""
    x = completion("x", lm, "", max_new_tokens=LENGTH)
    reward("r", pattern, x.tokens, beta=beta)


def belief(tokens: Tensor) -> Tensor:
    """What the model thinks a text is worth, ids [..., t] -> [...]: it likes twos."""
    return 0.9 * (tokens == 2).double().sum(-1)


def inkling(tokens: Tensor) -> Tensor:
    """A belief that is right as far as it goes: texts that end with a one are better."""
    return (tokens[..., -1] == 1).double()


def hope(lm: LM, judge: Callable[[Tensor], Tensor], beta: float) -> None:
    """The same prior, with an imagined reward for a likelihood."""
    x = completion("x", lm, "", max_new_tokens=LENGTH)
    reward("r_hat", judge, x.tokens, beta=beta)


def scores(tokens: Tensor, judge: Callable[[Tensor], Tensor]) -> dist.Categorical:
    """p(s | x) of a score 0 (low), 1 or 2 (high), by somebody who thinks that the text is worth ``judge(x)``."""
    levels = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    return dist.Categorical(logits=-2 * (judge(tokens)[..., None] - levels) ** 2)


def pairs(lm: LM, judge: Callable[[Tensor], Tensor], wanted: float = 0.0) -> None:
    """A return-conditioned sequence model: the joint law of a text and its score."""
    x = completion("x", lm, "", max_new_tokens=LENGTH)
    s = pyro.sample("s", scores(x.tokens, judge))
    reward("score", lambda score: wanted * score.double(), s)


def learned(oracle: Oracle) -> CallableLM:
    """The language model that writes the posterior: what infinitely many weighted samples teach."""
    lm = oracle.source().lm

    def logits(prefix: Tensor) -> Tensor:
        return oracle.proposal(Rows(torch.zeros(len(prefix), lm.vocab_size), None, [()] * len(prefix), prefix))

    return CallableLM(lm.vocab_size, logits, lm.eos_id, name=f"{lm.name}+")


SCALES = torch.logspace(-1.5, 2, 32, dtype=torch.float64).tolist()


def study(found: Findings) -> None:
    """Rounds with the reward; pairs with an imagined one; what a belief is worth; what cannot be reached."""
    toys: tuple[LM, ...] = (RAMBLER, CRITIC)
    for prior in toys:
        name, start = prior.name, Oracle(truth, prior, 1.0)
        p0, r = start.log_prior, start.rewards["r"]
        found.data[name] = {"rounds": rounds(found, start, prior)}

        joint = Oracle(pairs, prior, belief)
        model = SVI(num_steps=30, guide="table").run(pairs, prior, belief, 1.0, seed=found.seed).guide
        log_q = joint.log_q(model).detach()
        found.equal(f"{name}: trained on own (x, imagined s), |E grad|", step(joint, model, log_q).norm(), 0.0)
        truly = texts_only(joint, log_q) + scores(joint.values["x"], pattern).log_prob(joint.values["s"])
        found.greater(f"{name}: trained on own (x, true s), it is > 0", step(joint, model, truly).norm(), 0.01)

        kept = {"imagined": keep_high(found, prior, belief), "true": keep_high(found, prior, pattern)}
        found.less(
            f"{name}: E[r], only texts of high imagined s kept", start.mean("r", kept["imagined"]), start.mean(r, p0)
        )
        found.greater(
            f"{name}: E[r], only texts of high true s kept, above p0's",
            start.mean("r", kept["true"]),
            start.mean(r, p0),
        )

        for label, judge in (("wrong", belief), ("half right", inkling)):
            r_hat = judge(start.values["x"])
            tilt = torch.zeros((), dtype=torch.float64, requires_grad=True)
            (slope,) = torch.autograd.grad(start.mean(r, (p0 + tilt * r_hat).log_softmax(0)), tilt)
            covariance = start.mean(r * r_hat, p0) - start.mean(r, p0) * start.mean(r_hat, p0)
            found.equal(f"{name}: {label} r_hat, slope of E[r] = Cov(r, r_hat)", slope, covariance)
            path = [Oracle(hope, prior, judge, 1 / scale) for scale in SCALES]
            found.data[name][label] = [spot(o.log_target, p0, r) for o in path]
            curve = torch.tensor([gain for _, gain in found.data[name][label]], dtype=torch.float64)
            if label == "wrong":
                found.less(f"{name}: wrong r_hat, largest change of E[r]", curve.diff().max(), 1e-9)
            else:
                at_best = torch.where(r_hat == r_hat.max(), p0, -torch.inf).log_softmax(0)
                found.equal(f"{name}: half right, E[r] ends at E[r|r_hat = max]", curve[-1], start.mean(r, at_best))
                found.greater(f"{name}: which is more than E_p0[r]", curve[-1], start.mean(r, p0))
                found.less(f"{name}: and less than the best text", curve[-1], r.max())
        path = [Oracle(truth, prior, 1 / scale) for scale in SCALES]
        found.data[name]["true"] = [spot(o.log_target, p0, r) for o in path]

    never = torch.tensor([0.0, -torch.inf, 0.0])
    mute = CallableLM(3, lambda prefix: RAMBLER.fn(prefix) + never, name="mute")
    reached = Oracle(truth, learned(Oracle(truth, learned(Oracle(truth, mute, 0.02)), 0.02)), 0.02)
    found.less("a model that never writes 1: E[r] after 3 rounds, beta=0.02", reached.mean("r"), 1.2)
    found.greater("the best text, which it cannot write, is worth", Oracle(truth, RAMBLER, 1.0).rewards["r"].max(), 1.7)


def rounds(found: Findings, start: Oracle, prior: LM) -> list[tuple[float, float]]:
    """Refit, weighted with the true reward, four times: (KL from p0, E[r]) after each."""
    name, lm, seen = prior.name, prior, [(0.0, float(start.mean("r", start.log_prior)))]
    for k in (1, 2, 3, 4):
        before, lm = lm, learned(Oracle(truth, lm, 1.0))
        now, once = Oracle(truth, lm, 1.0).log_prior, Oracle(truth, prior, 1 / k).log_target
        found.equal(f"{name}: {k} rounds = posterior at beta/{k}, KL", kl_divergence(now, once), 0.0)
        seen.append(spot(now, start.log_prior, start.rewards["r"]))
        found.greater(f"{name}: E[r] grows in round {k}", seen[-1][1], seen[-2][1])
    drawn = ImportanceSampling(num_particles=1000).run(truth, before, 1.0, seed=found.seed)
    found.agrees(f"{name}: E[r] of round 4 from 4000 weighted samples", *drawn.mean("r"), seen[-1][1])
    return seen


def keep_high(found: Findings, prior: LM, judge: Callable[[Tensor], Tensor]) -> Tensor:
    """log p(x | s = high) of the joint law, which is a posterior too, [S]."""
    both = Oracle(pairs, prior, judge)
    kept = both.log_prior[both.values["s"] == 2].log_softmax(0)
    target = Oracle(hope, prior, lambda tokens: scores(tokens, judge).logits[..., 2], 1.0)
    assert torch.equal(both.values["x"][both.values["s"] == 2], target.values["x"]), "the same order of texts"
    label = "imagined" if judge is belief else "true"
    found.equal(f"{prior.name}: high {label} s kept = p0 p(high|x)/Z, KL", kl_divergence(kept, target.log_target), 0.0)
    return kept


def texts_only(joint: Oracle, log_q: Tensor) -> Tensor:
    """log q(x) of the text of each pair, [S]."""
    _, text = torch.unique(joint.values["x"], dim=0, return_inverse=True)
    return torch.zeros_like(log_q).index_add(0, text, log_q.exp())[text].log()


def step(joint: Oracle, model: Any, log_data: Tensor) -> Tensor:
    """The expected gradient of log q(x, s) over pairs of that law, flat."""
    return flat(joint.gradient(lambda log_q: (log_data.exp() * log_q).sum(), model).values())


@panels()
def figure(found: Findings, *axes: Axes) -> None:
    """Reward against distance from the prior, for rounds with the truth and with two beliefs."""
    for axis, name in zip(axes, ("rambler", "critic"), strict=True):
        data = found.data[name]
        places = {"true": (PALETTE[0], (-20, 4), "right"), "half right": (PALETTE[2], (6, -3), "left"),
                  "wrong": (PALETTE[1], (-24, -4), "right")}  # fmt: skip
        for label, (colour, shift, side) in places.items():
            axis.plot(*zip(*data[label], strict=True), color=colour, lw=2)
            note(axis, f"{label} reward", data[label][-1], shift, colour, ha=side)
        axis.scatter(*zip(*data["rounds"], strict=True), color=PALETTE[0], s=28, zorder=3)
        note(axis, "p0; own samples, scored or not", data["rounds"][0], (8, -12), GREY)
        caption(axis, f"{name}: four rounds (dots) walk the posteriors", "KL(q||p0)   [nats]")
        axis.set_ylabel("E_q[r], the true reward   [reward units]")
