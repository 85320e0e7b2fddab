"""The page of the frontier, from what was run: nothing in it is written by hand but the sentences around the tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from frontier import FAR, WANTED, error, reference
from frontier_targets import TARGETS, Answer

from ppl_align.core.files import written_beside

UNREACHED = 1.0
"""Nats: with a larger error nobody knows how it falls with the number of tokens."""

OPENING = """\
# The frontier: which engine reaches what, at what price

*Written by `python benchmarks/frontier.py --page docs/frontier.md`; do not edit.* Every number is of independent
replicates ({toys} on chains, {real} on SmolLM2-135M, one seed); tokens are all positions that the network has read for
one replicate: drawn, scored, prompts, and its share of the pilot of tempered SMC. An error of log Z is a root mean
square over replicates. *Tokens for .1 nat* is tokens x (error / .1)^2, as if the error fell with their square root;
a dash where the error is above 1 nat, for then it does not.

Read it like this: find a target as far away as yours (KL(p* || p0), the nats between prior and posterior: `ppl-align
inspect` foretells it) and of its kind (do beginnings tell how good the whole will be?), and take what is cheapest.
"""


def write(path: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Write the page and its figure beside it."""
    known = {name: found for name, found in rows.items() if found}
    answers = {name: reference(TARGETS[name], found) for name, found in known.items()}
    figure = path.with_name("frontier.png")
    draw(figure, known, answers)
    opening = OPENING.format(toys=TARGETS["bistable"].replicates, real=TARGETS["toxicity"].replicates)
    picture = f"![error of log Z against tokens]({figure.name})\n"
    parts = [opening, picture, summary(known, answers), far(known, answers)]
    parts += ["## Target by target\n", *(table(name, found, answers[name]) for name, found in known.items())]
    with written_beside(path) as temporary:
        temporary.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def summary(rows: dict[str, list[dict[str, Any]]], answers: dict[str, Answer]) -> str:
    """The cheapest engine of each target, nearest first."""
    lines = ["## In short\n", "| target | KL | cheapest | tokens for .1 nat | importance sampling |"]
    lines.append("|---|---|---|---|---|")
    for name in sorted(rows, key=lambda name: answers[name].kl):
        prices = {row["engine"]: price(row, answers[name]) for row in rows[name]}
        best = min(prices, key=lambda engine: prices[engine])
        plain = min(price(row, answers[name]) for row in rows[name] if row["engine"] == "importance")
        cheapest = best if math.isfinite(prices[best]) else "none"
        lines.append(f"| {name} | {answers[name].kl:.1f} | {cheapest} | {tokens(prices[best])} | {tokens(plain)} |")
    return "\n".join([*lines, "", crossover(rows, answers)])


def crossover(rows: dict[str, list[dict[str, Any]]], answers: dict[str, Answer]) -> str:
    """Where tempering begins to pay, on the reviews."""
    reviews = [name for name in rows if name.startswith("sentiment")]
    lines = []
    for name in sorted(reviews, key=lambda name: answers[name].kl):
        prices = {row["engine"]: math.inf for row in rows[name]}
        for row in rows[name]:
            prices[row["engine"]] = min(prices[row["engine"]], price(row, answers[name]))
        ratio = prices["tempered, suffix"] / prices["importance"]
        said = "neither gets there" if math.isnan(ratio) else f"{ratio:.2g} times as many"
        lines.append(f"* {answers[name].kl:.1f} nats ({name}): {said}")
    if not lines:
        return ""
    head = "Tokens that tempered SMC (suffix moves) needs for the same error as importance sampling, on film reviews:\n"
    return "\n".join([head, *lines, ""])


def far(rows: dict[str, list[dict[str, Any]]], answers: dict[str, Answer]) -> str:
    """Beside what importance sampling would take, by the exact variance of its weights."""
    lines = [
        f"## {FAR:.0f} nats and more, where the answer is known\n",
        f"Importance sampling needs (E_p0[w^2] / Z^2 - 1) / {WANTED}^2 draws for an error of {WANTED} nat.\n",
        "| target | KL | importance sampling, tokens | engine | tokens | error of log Z | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        answer = answers[name]
        if answer.relative_variance is None or answer.kl < FAR:
            continue
        length = max(row["tokens"] for row in found if row["engine"] == "importance") / 4096  # of a text
        predicted = answer.relative_variance / WANTED**2 * length
        best = min((row for row in found if row.get("log_evidence")), key=lambda row: price(row, answer))
        needed = price(best, answer)
        off = error(best["log_evidence"], answer.log_evidence)
        lines.append(
            f"| {name} | {answer.kl:.1f} | {predicted:.1e} | {best['engine']} | {best['tokens']:,.0f} | {off:.3f} | "
            f"{needed / predicted:.1e} |"
        )
    return "\n".join([*lines, "", "*share*: its tokens for .1 nat over those of importance sampling.\n"])


def table(name: str, rows: list[dict[str, Any]], answer: Answer) -> str:
    """All engines of one target."""
    target = TARGETS[name]
    known = "exact" if target.answer is not None else "reference: the run that has seen most"
    lines = [
        f"### {name}\n",
        f"{target.says}; log Z = {answer.log_evidence:.2f}, KL(p* || p0) = {answer.kl:.2f} nats ({known}).\n",
        "| engine | tokens | seconds | error of log Z | error of E[r] | tokens for .1 nat |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['engine']} | | {row['seconds']:.0f} | {row['failed'].split(':')[0]} | | - |")
            continue
        log_z, mean = error(row["log_evidence"], answer.log_evidence), error(row["mean"], answer.mean)
        lines.append(
            f"| {row['engine']} | {row['tokens']:,.0f} | {row['seconds']:.0f} | {shown(log_z)} | {shown(mean)} | "
            f"{tokens(price(row, answer))} |"
        )
    return "\n".join([*lines, ""])


def price(row: dict[str, Any], answer: Answer) -> float:
    """Tokens for an error of log Z of ``WANTED``; infinite where that cannot be told."""
    off = error(row.get("log_evidence"), answer.log_evidence)
    return row["tokens"] * (off / WANTED) ** 2 if off < UNREACHED else math.inf


def shown(value: float) -> str:
    return "-" if math.isnan(value) else "dead" if math.isinf(value) else f"{value:.3g}"


def tokens(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) and value < 1e6 else f"{value:.1e}" if math.isfinite(value) else "-"


def draw(path: Path, rows: dict[str, list[dict[str, Any]]], answers: dict[str, Answer]) -> None:
    """One panel for each target: error of log Z against tokens, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = 4
    height = -(-len(rows) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(4.2 * columns, 3.2 * height), squeeze=False)
    labels = list(dict.fromkeys(row["engine"] for found in rows.values() for row in found))
    colours = dict(zip(labels, plt.get_cmap("tab20").colors, strict=False))  # type: ignore[attr-defined]
    for panel, (name, found) in zip(axes.flat, rows.items(), strict=False):
        for label in labels:
            points = [
                (row["tokens"], off)
                for row in found
                if row["engine"] == label
                and math.isfinite(off := error(row.get("log_evidence"), answers[name].log_evidence))
            ]
            if points:
                panel.plot(*zip(*sorted(points), strict=True), "o-", color=colours[label], label=label, markersize=4)
        panel.axhline(WANTED, color="0.7", linewidth=0.8, linestyle=":")
        panel.set(xscale="log", yscale="log", title=f"{name} ({answers[name].kl:.1f} nats)")
        panel.tick_params(labelsize=7)
    for panel in list(axes.flat)[len(rows) :]:
        panel.axis("off")
    drawn = (line for panel in axes.flat for line in panel.get_lines())
    handles = {str(line.get_label()): line for line in drawn if not str(line.get_label()).startswith("_")}
    figure.legend(list(handles.values()), list(handles), loc="lower right", ncol=2, fontsize=8, frameon=False)
    figure.supxlabel("LM tokens of one replicate", fontsize=9)
    figure.supylabel("error of log Z, nats", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
