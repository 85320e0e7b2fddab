"""With an environment in the loop, conditioning and acting well part company turn by turn.

A dialogue: the assistant speaks, the user reacts, the assistant speaks again, the user judges. As a program it has two
completions and, in between and after, sites that are not ours. Two agents can be read off it. Both look at what the
user really said before they speak; they differ in what they think of the turns to come.

The *conditioning* agent takes its conditionals from the posterior of the whole dialogue, `p*(a|h)`. With
`U(h) = log E_p0[exp(r/beta) | h]` that is `p0(a|h) exp(U(h, a) - U(h))`: future reactions of the user are weighed as
if they could be chosen. The *soft Bellman* agent solves the dialogue backwards and takes a plain mean where it is the
user's turn:

    assistant:  V(h) = log E_p0[exp V(h, a)]     pi(a|h) = p0(a|h) exp(V(h, a) - V(h))
    user:       V(h) = E[V(h, o)]

`beta V(start)` is the best `J = E[r] - beta KL` that any agent can have in this world. Any other agent q is worse by a
sum over its own turns. Telescoping V along a dialogue played by q, each turn of q leaves

    E_q[V(h, a) - log q(a|h)/p0(a|h)] = V(h) - KL(q(.|h)||pi(.|h)),   the user's turns leave nothing, so
    J(pi) - J(q) = beta * sum over turns of E_q[KL(q(.|h)||pi(.|h))]

What is only half true. The histories are those that q visits; under the other agent's histories the sum is another
number. A turn after which nothing random happens costs nothing, there the two agents agree: if the verdict is certain
only the first turn loses, if the user is predictable throughout neither does. And the error is one of *planning*: it
is not cured by reading the user's answers, since both agents do that already.

**In practice.** Fine-tuning on successful transcripts (rejection sampling, return-conditioned agents) fits exactly
`p*(a|h)`. Masking the tokens of users and tools out of the loss does not change that: the filter has already chosen
among their answers. SMC over simulated users resamples towards lucky users. Policy gradients on rollouts, or `SVI`
with a guide that repeats the user's sites, have the other target. What can be repaired is the filter: score a turn
by the mean over several continuations, not by the one that went well.

Source: Levine 2018 (arXiv:1805.00909); Paster, McIlraith & Ba 2022 (arXiv:2205.15967).
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_align import LM, CallableLM, ImportanceSampling, completion, reward
from ppl_align.claims._turns import Policy, Turns, climb
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, panels
from ppl_align.claims.findings import Findings
from ppl_align.core.estimate import of_draws
from ppl_align.guides import ProgramGuide
from ppl_align.testing.oracle import Oracle

World = dict[str, Tensor]
"""log-probabilities of the user: ``mood`` given the first word, [V, M]; ``verdict`` after all that, [V, M, V, 3]."""
WORDS = (" ask", " explain", " gamble")
PAY = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
"""The user leaves, is content, is delighted."""


def speaker(first: Tensor, second: Tensor) -> CallableLM:
    """An assistant of one word per turn: logits [V] at first, [V, M, V] after its word and the user's mood."""

    def logits(prefix: Tensor) -> Tensor:
        return second[prefix[:, 0], prefix[:, 1]] if prefix.shape[1] else first.expand(len(prefix), -1)

    return CallableLM(len(first), logits, tokens=WORDS, name="assistant")


def talk(lm: LM, world: World) -> tuple[Tensor, Tensor]:
    """A dialogue of two turns: the last word, and what the user thinks of it all."""
    first = completion("first", lm, [], max_new_tokens=1)
    mood = pyro.sample("mood", dist.Categorical(logits=world["mood"][first.tokens[..., 0]]))
    second = completion("second", lm, (first, mood[..., None]), max_new_tokens=1)
    opinion = world["verdict"][first.tokens[..., 0], mood, second.tokens[..., 0]]
    return second.tokens, pyro.sample("verdict", dist.Categorical(logits=opinion))


def dialogue(beta: float, lm: LM, world: World) -> None:
    """A dialogue, conditioned on how it ends."""
    last, verdict = talk(lm, world)
    reward("pay", lambda tokens: PAY[verdict], last, beta=beta)


def assistant(beta: float, lm: LM, world: World) -> None:
    """A guide: another assistant, the same user."""
    shape = world["verdict"].shape[:3]
    first = pyro.param("at first", torch.zeros(shape[0], dtype=torch.float64))
    talk(speaker(first, pyro.param("then", torch.zeros(shape, dtype=torch.float64))), world)


def played(policy: Policy, turns: Turns, world: World) -> Any:
    """A policy [S] as a guide that can be drawn from: the same words, by table."""
    values, (size, moods) = turns.oracle.values, world["mood"].shape
    first, second = torch.zeros(size).double(), torch.zeros(size, moods, size).double()
    a, o, b = values["first"][:, 0], values["mood"], values["second"][:, 0]
    first[a], second[a, o, b] = policy["first"], policy["second"]
    return ProgramGuide(lambda *args: talk(speaker(first, second), world))


def hand_made() -> tuple[LM, World]:
    """Asking keeps the user calm; gambling annoys most users, and thrills a few."""
    calm, torn, risky = [0.05, 0.93, 0.02], [0.45, 0.35, 0.20], [0.75, 0.05, 0.20]
    annoyed = [[0.85, 0.14, 0.01], [0.80, 0.19, 0.01], [0.97, 0.02, 0.01]]
    neutral = [[0.40, 0.59, 0.01], [0.10, 0.89, 0.01], [0.90, 0.06, 0.04]]
    thrilled = [[0.30, 0.50, 0.20], [0.10, 0.60, 0.30], [0.55, 0.05, 0.40]]
    verdict = torch.tensor([annoyed, neutral, thrilled], dtype=torch.float64).expand(3, 3, 3, 3)
    mood = torch.tensor([calm, torn, risky], dtype=torch.float64)
    first = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64).log()
    return speaker(first, first.expand(3, 3, 3)), {"mood": mood.log(), "verdict": verdict.log()}


def random() -> tuple[LM, World]:
    """Everything drawn at random."""
    mood, verdict = torch.randn(3, 3).double(), torch.randn(3, 3, 3, 3).double()
    world = {"mood": mood.log_softmax(-1), "verdict": (2 * verdict).log_softmax(-1)}
    return speaker(torch.randn(3).double(), torch.randn(3, 3, 3).double()), world


def certain(log_p: Tensor) -> Tensor:
    """All the mass on the most probable outcome."""
    return torch.full_like(log_p, -torch.inf).scatter(-1, log_p.argmax(-1, keepdim=True), 0.0)


def study(found: Findings) -> None:
    worlds = {"ask or gamble": (1.0, *hand_made())} | {
        f"random user {i + 1}": (beta, *random()) for i, beta in enumerate((0.7, 2.0))
    }
    for name, (beta, lm, world) in worlds.items():
        compare(found, name, beta, lm, world)
    lm, world = hand_made()
    _, (first, second) = gap(1.0, lm, {"mood": world["mood"], "verdict": certain(world["verdict"])})
    found.greater("verdict made certain: beta KL at turn 1 is not zero", first, 1e-4)
    found.equal("verdict made certain: beta KL at turn 2", second, 0.0)
    lost, parts = gap(1.0, lm, {part: certain(law) for part, law in world.items()})
    found.equal("mood made certain too: J gap", lost, 0.0)
    found.equal("mood made certain too: KL at both turns", sum(parts), 0.0)
    betas = torch.logspace(-0.7, 1, 25).tolist()
    found.data["betas"], found.data["gaps"] = betas, [gap(beta, lm, world)[1] for beta in betas]
    found.data["returns"] = [returns(beta, lm, world) for beta in betas]


def agents(beta: float, lm: LM, world: World) -> tuple[Turns, Policy, Policy, float]:
    """The episode, the conditioning agent, the soft Bellman agent and its J / beta."""
    oracle = Oracle(dialogue, beta, lm, world)
    turns = Turns(oracle, ["first", "second"])
    return turns, turns.policy_of(oracle.log_target), *turns.soft_bellman()


def gap(beta: float, lm: LM, world: World) -> tuple[float, list[float]]:
    """J lost by conditioning, and beta KL at each of its turns; reward units."""
    turns, conditioning, bellman, best = agents(beta, lm, world)
    lost = beta * (best - turns.oracle.elbo(turns.play(conditioning)))
    return float(lost), [beta * float(kl) for kl in turns.divergences(conditioning, bellman).values()]


def returns(beta: float, lm: LM, world: World) -> list[float]:
    """E[r]: posterior mean of conditioning, its executed mean, executed mean of soft Bellman."""
    turns, conditioning, bellman, _ = agents(beta, lm, world)
    laws = (turns.oracle.log_target, turns.play(conditioning), turns.play(bellman))
    return [float(turns.oracle.mean("pay", law)) for law in laws]


def compare(found: Findings, name: str, beta: float, lm: LM, world: World) -> None:
    """The two agents in one world, each judged by the real user."""
    turns, conditioning, bellman, best = agents(beta, lm, world)
    oracle = turns.oracle
    top, _ = climb(oracle, assistant)
    found.equal(f"{name}: J of the trained guide = soft Bellman's", beta * top, beta * best)
    found.equal(f"{name}: its policy, played for real", beta * oracle.elbo(turns.play(bellman)), beta * best)
    lost, parts = gap(beta, lm, world)
    for turn, kl in enumerate(parts, 1):
        found.greater(f"{name}: beta KL at turn {turn} is not zero", kl, 1e-6)
    found.equal(f"{name}: J lost by conditioning = their sum", lost, sum(parts))
    expected, executed, better = returns(beta, lm, world)
    found.less(f"{name}: E[r] of conditioning, executed < posterior", executed, expected)
    found.less(f"{name}: best J < beta log Z, what p* would score", beta * best, beta * oracle.log_evidence)
    if beta == 1:
        other = beta * float(sum(turns.divergences(conditioning, bellman, bellman).values()))
        found.holds(f"{name}: over the other's histories it is not", abs(other / lost - 1) > 0.01, f"{other:.6g}")
        found.less(f"{name}: E[r] of conditioning < of soft Bellman", executed, better)
    for i, (label, policy) in enumerate((("conditioning", conditioning), ("soft Bellman", bellman))):
        rollouts = ImportanceSampling(1500, 4, proposal=played(policy, turns, world))
        run = rollouts.run(dialogue, beta, lm, world, seed=found.seed + i)
        drawn = of_draws(beta * run.log_weight.reshape(-1))  # mean log-weight under q = ELBO of q
        found.agrees(f"{name}: rollouts of {label}: J", *drawn, beta * oracle.elbo(turns.play(policy)))


@panels()
def figure(found: Findings, left: Axes, right: Axes) -> None:
    betas, gaps, got = found.data["betas"], torch.tensor(found.data["gaps"]), found.data["returns"]
    labels = ("conditioning: posterior mean", "conditioning: executed mean", "soft Bellman: executed mean")
    spots = ((1.3, 2.3), (0.2, 0.35), (0.3, 0.98))
    for i, (label, spot, colour) in enumerate(zip(labels, spots, (GREY, PALETTE[1], PALETTE[0]), strict=True)):
        left.semilogx(betas, [values[i] for values in got], color=colour, lw=2)
        left.annotate(label, spot, color=colour)
    left.set_ylim(bottom=0)
    caption(left, "Two agents and one user", "beta   [reward units]", "E[r]   [reward units]")
    right.stackplot(betas, gaps.T, colors=(PALETTE[1], PALETTE[3]), alpha=0.85)
    first, second = gaps[0].tolist()
    right.annotate("beta KL of the first turn", (0.22, first / 2), color="white", va="center")
    right.annotate("of the second", (0.22, first + second / 2), color="white", va="center")
    right.set_xscale("log")
    caption(right, "What conditioning loses, turn by turn", "beta   [reward units]")
    right.set_ylabel("J lost by conditioning   [reward units]")
