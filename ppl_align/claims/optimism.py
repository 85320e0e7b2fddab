"""Conditioning on reward is optimistic where the world is random; fixed-dynamics inference is not.

A choice has an outcome that the agent does not control: a tool that may fail, a user, a market. Write the outcome as
a site of the program, put `exp(r/beta)` on the result and condition. Bayes' rule then explains the reward by all that
was random, the environment included:

    p*(a, o) = p0(a) p(o|a) exp(r/beta) / Z    so    p*(a)   ∝ p0(a) E_o[exp(r/beta)]
                                                     p*(o|a) ∝ p(o|a) exp(r/beta)

The second law is not that of the world. Whoever acts by the first expects the posterior mean `E_p*[r]` and gets less,
the executed mean. An agent that can choose only the action maximises `J(pi) = E[r] - beta KL(pi||p0)` with the world
held fixed. In variational terms: a guide `q(a, o) = pi(a) p(o|a)` whose environment site *is* the prior. The mean over
o then goes into the exponent, in place of a mean of exponentials, and the optimum is

    pi(a) ∝ p0(a) exp(E_o[r]/beta)

Write `bonus(a) = log E_o exp((r - E_o r)/beta)`, about `Var_o(r)/(2 beta^2)`. Between two actions the log-odds of the
two policies differ by the difference of the actions' bonuses: a taste for gambles, stronger the smaller beta. What it
costs is exact, `J(pi) - J(conditioned) = beta KL(conditioned||pi)`, and no policy reaches `beta log Z`: that is the
score of somebody who also rewrites the world.

What is only half true. Conditioning is not wrong, it answers another question: "I know that it went well; what had I
done?" And for a language model on its own there is no gap at all, since appending a token has one outcome. It
comes back with tools, users and simulators, and with a *judge that is random*: averaging `exp(r/beta)` over noisy
scores of one text tilts the judge as well.

**In practice.** Where something random stands between the text and the reward, let the reward be its mean,
`reward("r", expected, text)`: average several outcomes, or several calls of a noisy judge, *before* the exponential. If
the outcome has to be a site of the program, train with `SVI` and a guide that repeats the sites of the world unchanged.
Whoever imitates successful episodes (return-conditioned models, fine-tuning on the best of n traces) is conditioning,
and inherits its optimism.

Source: Levine 2018 (arXiv:1805.00909); O'Donoghue, Osband & Ionescu 2020 (arXiv:2001.00805).
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_align import LM, SVI, CallableLM, Completion, ImportanceSampling, completion, reward
from ppl_align.claims._turns import Turns, climb
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, panels
from ppl_align.claims.findings import Findings
from ppl_align.testing.oracle import Oracle, kl_divergence


def exact(rows: Any) -> Tensor:
    """In float64."""
    return torch.tensor(rows, dtype=torch.float64)


PAY = exact([[1.0, 1.0], [0.0, 4.0]])
"""[action, outcome]: "safe" pays 1 whatever happens, "risky" pays 4 with luck."""
LUCK = exact([[0.9, 0.1], [0.9, 0.1]]).log()
"""log P(outcome | action)"""


def chooser(log_prior: Tensor, name: str = "chooser") -> CallableLM:
    """A language model that says one word."""
    return CallableLM(len(log_prior), lambda prefix: log_prior.expand(len(prefix), -1), name=name)


def play(lm: LM, luck: Tensor) -> tuple[Completion, Tensor]:
    """One choice, one outcome."""
    action = completion("action", lm, [], max_new_tokens=1)
    outcome = pyro.sample("outcome", dist.Categorical(logits=luck[action.tokens[..., 0]]))
    return action, outcome


def game(beta: float, lm: LM, luck: Tensor = LUCK, pay: Tensor = PAY) -> None:
    """A choice whose outcome is random, conditioned on what it pays."""
    action, outcome = play(lm, luck)
    reward("pay", lambda tokens: pay[tokens[..., 0], outcome], action.tokens, beta=beta)


def sober(beta: float, lm: LM, luck: Tensor = LUCK, pay: Tensor = PAY) -> None:
    """The same, except that the likelihood sees the mean over outcomes."""
    action = completion("action", lm, [], max_new_tokens=1)
    mean = (luck.exp() * pay).sum(-1)
    reward("expected pay", lambda tokens: mean[tokens[..., 0]], action.tokens, beta=beta)


def agent(beta: float, lm: LM, luck: Tensor = LUCK, pay: Tensor = PAY) -> None:
    """A guide that chooses and cannot change the world: ``luck`` is what it is."""
    play(learner(lm), luck)


def dreamer(beta: float, lm: LM, luck: Tensor = LUCK, pay: Tensor = PAY) -> None:
    """A guide that learns the world as well."""
    play(learner(lm), pyro.param("luck", torch.zeros_like(luck)))


def learner(lm: LM) -> LM:
    return chooser(pyro.param("choice", torch.zeros(lm.vocab_size, dtype=torch.float64)), "learner")


COIN = chooser(torch.zeros(2, dtype=torch.float64))
STATED = {  # beta: conditioned P(risky), P(win|risky), posterior and executed mean; agent's P(risky), executed mean
    1.0: ("0.700567", "0.858486", "2.705", "0.579660", "0.354344", "0.787394"),
    0.5: ("0.975883", None, None, None, "0.231475", None),
}


def study(found: Findings) -> None:
    for beta, figures in STATED.items():
        name, oracle = f"beta={beta:g}", Oracle(game, beta, COIN)
        turns = Turns(oracle, ["action"])
        conditioned = turns.play(turns.policy_of(oracle.log_target))
        trained = climb(oracle, agent)[1]
        risky = oracle.values["action"][:, 0].double()
        lucky = risky * oracle.values["outcome"]
        seen = (
            ("conditioning: P(risky)", oracle.mean(risky)),
            ("conditioning: P(win|risky) by p* (true .1)", oracle.mean(lucky) / oracle.mean(risky)),
            ("conditioning: posterior mean of the pay", oracle.mean("pay")),
            ("conditioning: executed mean of the pay", oracle.mean("pay", conditioned)),
            ("fixed dynamics: P(risky)", oracle.mean(risky, trained)),
            ("fixed dynamics: executed mean of the pay", oracle.mean("pay", trained)),
        )
        for (what, value), figure in zip(seen, figures, strict=True):
            if figure is not None:
                found.rounds_to(f"{name}, {what}", float(value), figure)
        policy, best = turns.soft_bellman()
        gap = beta * (best - oracle.elbo(conditioned))
        if beta == 1:
            found.rounds_to(f"{name}, J(agent) - J(conditioning)", float(gap), "0.247445")
            found.data["agent"] = float(oracle.mean(risky, trained))
        apart = kl_divergence(conditioned, turns.play(policy))
        found.equal(f"{name}, J gap = beta KL(conditioning||agent)", gap, beta * apart)
    sampled(found)
    for trial in range(3):
        general(found, trial)
    found.data |= sweep()


def sampled(found: Findings) -> None:
    """The same answers from engines that draw."""
    oracle = Oracle(game, 1.0, COIN)
    risky = oracle.values["action"][:, 0].double()
    run = ImportanceSampling(num_particles=4000).run(game, 1.0, COIN, seed=found.seed)
    chose = run.mean(lambda particles: particles["action"].tokens[..., 0] == 1)
    found.agrees("ImportanceSampling conditions: P(risky)", *chose, oracle.mean(risky))
    found.agrees("ImportanceSampling: posterior mean of the pay", *run.mean("pay"), oracle.mean("pay"))
    svi = SVI(guide=agent, num_steps=120, num_particles=32, learning_rate=0.05)
    trained = oracle.log_q(svi.run(game, 1.0, COIN, seed=found.seed).guide).detach()
    best = Turns(oracle, ["action"]).soft_bellman()[1]
    found.less("SVI, guide with the true world: J it leaves", best - oracle.elbo(trained), 0.1 * 0.247445, run=True)


def general(found: Findings, trial: int) -> None:
    """Random worlds: four actions, three outcomes, no two alike."""
    name, beta = f"random world {trial + 1}", (0.5, 1.0, 2.0)[trial]
    lm, pay = chooser(torch.randn(4, dtype=torch.float64)), torch.randn(4, 3, dtype=torch.float64)
    luck = torch.randn(4, 3, dtype=torch.float64).log_softmax(-1)
    oracle = Oracle(game, beta, lm, luck, pay)
    turns = Turns(oracle, ["action"])
    conditioning = turns.policy_of(oracle.log_target)
    conditioned, trained = turns.play(conditioning), climb(oracle, agent)[1]
    policy, best = turns.soft_bellman()
    found.equal(f"{name}: KL(trained||backward induction)", kl_divergence(trained, turns.play(policy)), 0.0)
    averaged = Oracle(sober, beta, lm, luck, pay)
    found.equal(f"{name}: Enumeration, mean reward: its log Z", averaged.log_evidence, best)
    agents = policy["action"].reshape(4, 3)[:, 0]
    found.equal(f"{name}: Enumeration, mean reward: KL to the agent", kl_divergence(averaged.log_target, agents), 0.0)
    r, p = pay / beta, luck.exp()
    bonus = torch.logsumexp(luck + r - (p * r).sum(-1, keepdim=True), -1)
    odds = (conditioning["action"] - policy["action"]).reshape(4, 3)[:, 0]
    found.equal(
        f"{name}: log-odds shift of two actions = difference of bonuses", odds[1] - odds[0], bonus[1] - bonus[0]
    )
    gap = best - oracle.elbo(conditioned)
    found.equal(f"{name}: J gap = beta KL", beta * gap, beta * kl_divergence(conditioned, turns.play(policy)))
    found.less(f"{name}: the best J / beta is below log Z", best, oracle.log_evidence)
    found.equal(f"{name}: a guide that bends the world: KL to p*", oracle.reverse_kl(climb(oracle, dreamer)[1]), 0.0)
    certain = torch.full((4, 3), -torch.inf, dtype=torch.float64).scatter(1, luck.argmax(-1, keepdim=True), 0.0)
    fixed = Oracle(game, beta, lm, certain, pay)
    policy, best = Turns(fixed, ["action"]).soft_bellman()
    found.equal(f"{name}, made deterministic: best J / beta = log Z", best, fixed.log_evidence)
    played = Turns(fixed, ["action"]).play(policy)
    found.equal(f"{name}, made deterministic: KL(p*||agent)", kl_divergence(fixed.log_target, played), 0.0)


def sweep() -> dict[str, Any]:
    """P(risky) when the same mean pay of .4 comes with more and more luck; pay against beta."""
    chances, betas = torch.logspace(-1.7, 0, 40).tolist(), torch.logspace(-1, 1, 40).tolist()
    gamble, pays = [], []
    for chance in chances:
        luck = exact([[1 - chance, chance]] * 2).log()
        oracle = Oracle(game, 1.0, COIN, luck, exact([[1.0, 1.0], [0.0, 0.4 / chance]]))
        gamble.append(float(oracle.mean(oracle.values["action"][:, 0])))
    for beta in betas:
        oracle = Oracle(game, beta, COIN)
        turns = Turns(oracle, ["action"])
        conditioned, best = turns.play(turns.policy_of(oracle.log_target)), turns.play(turns.soft_bellman()[0])
        pays.append([float(oracle.mean("pay", q)) for q in (oracle.log_target, conditioned, best)])
    return {"chances": chances, "gamble": gamble, "betas": betas, "pays": pays}


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    data = found.data
    left.semilogx(data["chances"], data["gamble"], color=PALETTE[1], lw=2)
    left.axhline(data["agent"], color=PALETTE[0], lw=2)
    left.annotate("conditioning", (0.07, 0.94), color=PALETTE[1])
    left.annotate("fixed dynamics: only the mean matters", (0.05, 0.30), color=PALETTE[0])
    left.set_ylim(0, 1.02)
    caption(
        left, "Same mean, rarer luck: conditioning gambles", "P(win); a win pays .4 / P(win), safe pays 1", "P(risky)"
    )
    labels = ("conditioning: posterior mean", "conditioning: executed mean", "fixed dynamics: executed mean")
    spots = ((0.85, 3.3), (1.2, 0.42), (0.12, 1.12))
    for i, (label, spot, colour) in enumerate(zip(labels, spots, (GREY, PALETTE[1], PALETTE[0]), strict=True)):
        right.semilogx(data["betas"], [pay[i] for pay in data["pays"]], color=colour, lw=2)
        right.annotate(label, spot, color=colour)
    caption(right, "Posterior mean and executed mean", "beta   [reward units]", "pay   [reward units]")
