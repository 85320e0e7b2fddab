"""One written target, many engines, one answer: what is wanted and how it is found are separate.

A trainer usually tangles two questions: which distribution over texts do we want, and how do we get draws from it?
Written as a program, the first has an answer before anybody trains: the joint probability of everything in it, prior
times likelihood, is a number for every text, and normalised over all texts it *is* the target. An engine only has to
come near. It may list all texts, draw from the prior and reject or weigh, grow particles, or train a guide; what it
returns are draws with weights that are *proper*: for every function f,

    E[(1/N) sum_i omega_i f(x_i)] = Z E_p*[f],     omega_i = p(x_i, data) / q(x_i)

With f = 1 that is an unbiased estimate of Z, and the ratio of the two is the posterior mean. So all engines answer the
same questions in the same units, each with an error of its own, and disagreement beyond those errors is a mistake in
one of them, or a target that one of them cannot see.

What is only half true. The ratio of two unbiased estimates is biased, by O(1/N), and log Zhat is too small in the mean:
agreement within errors is a statement for N large enough that the bias is small beside the error, as it is here. The
errors are estimates as well, from the draws that were made; a mode that no draw has visited is in none of them. And
agreement is about the target as written: all engines agree on a bad reward just as well.

**In practice.** Change the engine, never the program. Before trusting one engine on a long problem, let two that fail
differently (one that starts from the prior, one that learns) answer a short one that can be enumerated. And use the
weights: the draws of an engine without them are draws of its proposal, and off by many standard errors.

Source: Naesseth, Lindsten & Schon 2019 (arXiv:1903.04797) on proper weighting; Owen 2013, Monte Carlo theory, ch. 9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from ppl_align import SMC, SVI, Engine, Enumeration, ImportanceSampling, Rejection, choose, completion, reward
from ppl_align.claims._toys import CRITIC, RAMBLER, praise
from ppl_align.claims.drawing import GREY, PALETTE, Axes, caption, panels
from ppl_align.claims.findings import Findings
from ppl_align.core.estimate import of_draws
from ppl_align.posterior import evidence

ENGINES: dict[str, Engine] = {
    "exact": Enumeration(),
    "importance": ImportanceSampling(200, 40),
    "smc": SMC(200, 40, twist="prefix", ess_threshold=0.9),
    "svi": SVI(num_steps=20, num_particles=64, num_replicates=125, guide="table"),
    "rejection": Rejection(25, 40),
}
"""Every engine of the library: a new one is one more line."""


def review() -> None:
    """A text that ends when it wants to, and a reward."""
    text = completion("text", CRITIC, "", max_new_tokens=3)
    reward("praise", praise, text, beta=1.5, upper=3.0)


def reviewer() -> None:
    """A latent upstream: the reviewer's mood shapes the opening and the stars; three of four stars were seen."""
    mood = pyro.sample("mood", dist.Categorical(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)))
    text = completion("text", CRITIC, choose(mood, [" dull", " very", " fine"]), max_new_tokens=3)
    stars = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.2, 0.3, 0.3, 0.2], [0.05, 0.15, 0.5, 0.3]], dtype=torch.float64)
    pyro.sample("stars", dist.Categorical(stars[mood]), obs=torch.tensor(2))
    reward("praise", praise, text, beta=2.0, upper=3.0)


def gap() -> None:
    """A missing middle: what came before and after is known, the language model's own score is the likelihood."""
    middle = completion("text", RAMBLER, [2, 0], max_new_tokens=3)
    completion("ending", RAMBLER, ([2, 0], middle), starts_with=[2, 2])


def words(length: int, vocab: int) -> Tensor:
    """Everything that could be written, [V^T, T]; what goes on after EOS has probability zero."""
    return torch.cartesian_prod(*[torch.arange(vocab)] * length)


class Target(NamedTuple):
    """A program, all values of its latents, and what is asked: of a posterior, and of the values themselves."""

    program: Callable[[], None]
    support: dict[str, Tensor]
    asked: dict[str, tuple[Any, Callable[[dict[str, Tensor]], Tensor]]]


def praised(values: dict[str, Tensor]) -> Tensor:
    """The reward again, without the library's calling convention."""
    return torch.tensor(praise([CRITIC.decode(row) for row in values["text"].tolist()]), dtype=torch.float64)


def count(token: int) -> tuple[Any, Callable[[dict[str, Tensor]], Tensor]]:
    """How often a token occurs: asked of the particles of a posterior, and of all values."""
    return lambda seen: (seen["text"].tokens == token).double().sum(-1), lambda v: (v["text"] == token).double().sum(-1)


TARGETS = {
    "reward": Target(review, {"text": words(3, 4)}, {"praise": ("praise", praised), "fine": count(1)}),
    "latent": Target(
        reviewer,
        {"mood": torch.arange(3), "text": words(3, 4)},
        {"praise": ("praise", praised), "mood": ("mood", lambda values: values["mood"].double())},
    ),
    "ending": Target(gap, {"text": words(3, 3)}, {"ones": count(1), "twos": count(2)}),
}


def enumerate_by_pyro(target: Target) -> tuple[Tensor, dict[str, Tensor]]:
    """log joint [S] of every assignment, added up by Pyro's own trace (no engine, no tree of prefixes); the values."""
    places = torch.meshgrid(*(torch.arange(len(each)) for each in target.support.values()), indexing="ij")
    pairs = zip(target.support.items(), places, strict=True)
    values = {name: each[place.flatten()] for (name, each), place in pairs}
    with pyro.plate("everything", places[0].numel()):
        trace = poutine.trace(poutine.condition(target.program, data=values)).get_trace()
    trace.compute_log_prob()
    sites = [site for name, site in trace.nodes.items() if site["type"] == "sample" and name != "everything"]
    return torch.stack([site["log_prob"].double() for site in sites]).sum(0), values


def study(found: Findings) -> None:
    """Every engine on every target, by its own stated error."""
    scores: list[float] = []
    for name, target in TARGETS.items():
        log_joint, values = enumerate_by_pyro(target)
        truth = {f"E[{q}]": torch.softmax(log_joint, 0) @ direct(values) for q, (_, direct) in target.asked.items()}
        truth["log Z"] = torch.logsumexp(log_joint, 0)
        first, shown = next(iter(truth)), {}
        for label, engine in ENGINES.items():
            run = engine.run(target.program, seed=found.seed)
            answers: dict[str, tuple[float, float | None]] = {
                f"E[{question}]": run.mean(what) for question, (what, _) in target.asked.items()
            }
            answers["log Z"] = evidence.log_evidence(run), evidence.standard_error(run)
            shown[label] = answers[first]
            for question, (value, error) in answers.items():
                if run.exact:
                    found.equal(f"{name}: {question} by {label}", value, truth[question])
                else:
                    found.agrees(f"{name}: {question} by {label}", value, error or 0.0, truth[question])
                    scores.append((value - float(truth[question])) / (error or 0.0))
            if label == "importance":  # its draws are draws of p0: what if one forgets the weights?
                what = next(iter(target.asked.values()))[0]
                drawn = of_draws((run.rewards[what] if isinstance(what, str) else what(run.particles)).flatten())
                off = abs(drawn.value - float(truth[first]))
                found.greater(f"{name}: {first} of draws without weights, off by", off, 0.0, drawn.standard_error)
                shown["no weights"] = drawn
        found.data[f"{name}: {first}"] = shown, float(truth[first])
    square = (sum(z**2 for z in scores) / len(scores)) ** 0.5
    found.holds(f"errors are as large as stated: rms of {len(scores)} z", 0.4 < square < 2.0, f"{square:.2f}")


@panels(3, size=(4.2, 2.8))
def figure(found: Findings, *panels: Axes) -> None:
    """One panel for each target: every engine's answer, and the exact one."""
    for axes, (title, (shown, truth)) in zip(panels, found.data.items(), strict=True):
        axes.axvline(truth, color=GREY, lw=1.2, ls="--")
        for i, (label, (value, error)) in enumerate(shown.items()):
            colour = GREY if label == "no weights" else PALETTE[0]
            axes.errorbar([value], [i], xerr=[2 * error], fmt="o", ms=5, color=colour, capsize=3)
        axes.set_yticks(range(len(shown)), list(shown))
        axes.set_ylim(len(shown) - 0.5, -0.5)
        target, asked = title.split(": ")
        caption(axes, f"Target: {target} (dashes: enumerated)", f"{asked}   (± 2 standard errors)")
