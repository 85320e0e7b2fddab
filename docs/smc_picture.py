"""The figure of the SMC section of engines.md: python docs/smc_picture.py writes docs/smc.png.

A word that the prior rarely writes, and a reward for one of its letters: what each twist sees of it on the way."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from ppl_align import SMC, Enumeration, ImportanceSampling, MarkovLM, completion, constrain, reward
from ppl_align.constraints import Contains

LETTERS = ["a", "b", "c", "d", "e"]
LM = MarkovLM(torch.randn(5, 5, generator=torch.Generator().manual_seed(7)), tokens=LETTERS, name="letters")


def rare_word() -> None:
    """The word "cad" somewhere in eight letters, and as many e as there can be beside it."""
    x = completion("x", LM, [0], max_new_tokens=8)
    constrain("word", Contains("cad"), x)
    reward("e", lambda tokens: (tokens == 4).double().sum(-1), x.tokens, beta=0.6)


ENGINES = {
    "importance": ImportanceSampling(64, 40),
    'SMC, twist="prefix"': SMC(64, 40, twist="prefix", ess_threshold=0.9),
    'SMC, twist="lookahead"': SMC(64, 40, twist="lookahead", ess_threshold=0.9),
    "SMC, their sum": SMC(64, 40, twist=("prefix", "lookahead"), ess_threshold=0.9),
}


def main() -> None:
    """ESS on the way, and log Zhat of each replicate."""
    exact = float(Enumeration(max_sequences=10**6).run(rare_word).log_evidence)
    runs = {name: engine.run(rare_word, seed=0) for name, engine in ENGINES.items()}
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    colours = dict(zip(runs, ("C7", "C0", "C1", "C2"), strict=True))
    for name, run in list(runs.items())[1:]:
        steps, ess = run.history["step"], run.history["ess"].mean(-1)
        left.plot(steps, ess, marker="o", color=colours[name], label=name)
    left.set(xlabel="tokens", ylabel="ESS of 64, before resampling", ylim=(0, 66))
    left.legend(frameon=False, fontsize=8)
    for at, (name, run) in enumerate(runs.items()):
        each = run.log_evidence
        right.scatter(
            each, torch.full_like(each, -at) + 0.2 * torch.linspace(-1, 1, len(each)), s=8, color=colours[name]
        )
        right.text(1.02, -at, name, transform=right.get_yaxis_transform(), va="center", fontsize=8)
        print(f"{name:24} spread of log Zhat {float(each.std()):.2f} nats, {run.cost.lm_tokens:,} LM tokens")
    right.axvline(exact, color="black", linewidth=0.8)
    right.set(xlabel="log Zhat of 40 replicates (line: exact), nats", yticks=[])
    figure.savefig(Path(__file__).with_name("smc.png"), dpi=120)


if __name__ == "__main__":
    main()
