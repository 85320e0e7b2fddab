"""The tables of ``make honesty`` as a page of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from ppl_align.testing.honesty.coverage import ESTIMANDS, Cells
from ppl_align.testing.honesty.greens import ALONE, DIAGNOSTICS, STRATA, Greens

_WORDS = """# How often what is stated is true

Written by `{command}`, in
{minutes} CPU minutes. Truth is exact: every problem is a Markov prior whose log Z, E[r] and KL follow from a recursion
(`ppl_align/testing/honesty/problems.py`, which shares no code with the engines).

## Error bars

A nominal 95% interval, `estimate.interval(0.95)`, given that one is stated: six problems a row, KL(p*||p0) from .05 to
5 nats, {seeds} seeds (fewer, on texts of at most {longest} tokens: {fewer}), {each}
particles a replicate. In brackets the 99.9% Clopper-Pearson interval of the coverage; a cell holds if it meets
[.92, .98]. *Stated*: in what share of the runs there is an interval at all; *of 100*: of those runs that have 100
effective draws or more by the exact weights.

`tempered` is TemperedSMC, {pilot} runs to a pilot, which chooses their exponents; `rejuvenated` is SMC whose unfinished
texts are moved (`rejuvenate=SuffixMH()`) every other token. `mcmc` (suffix Metropolis-Hastings) and `gibbs` (particle
Gibbs) are Markov chains: R counts chains, of {states} states after their warmup, begun in
draws of the prior. They estimate no log Z, hence no KL, and their effective draws are those of all chains by
autocorrelation. An interval of theirs says how much chains differ, not how far all of them are from where they go to.
"""

_GREENS = """
## Green lights

`compare(...).advice.standing` is "sound" of a lone run (or of importance and smc, `both`); or a trained guide, `svi`,
with smc beside it, or chains (`mcmc`, `gibbs`: alone and beside another engine, `mcmc+tempered`, `gibbs+smc`), are
among the runs that it calls confirmed; or `inspect` says that importance sampling will do. It is *false* where log Z is
off by more than .3 nats and three stated errors, or by more than 1 nat; or E[r] by more than three errors and 10% of
what conditioning moves it, or by more than 30% of that. Of chains E[r] alone is judged. {replicates} replicates of
{particles} particles (rejection 64, and at most {max_draws:,} draws for ten runs; svi after {svi_steps} steps, ten runs
to a guide; tempered {tempered}, ten runs to a pilot; chains: {chains} states);
random problems of V 5 to 20, T 6 to 40 (at most {longest} for engines that move texts), KL log-uniform from .05 to 20
nats, a third with declared bounds (rejection refuses the others), until a row has {greens} greens or {most} runs
({dear};
a round is finished, so there may be more). `escalated`: `both`, begun with {first} particles a replicate, and with as
many again as there are until it is green or has taken {budget} times as many, all rounds pooled
(`ppl-align run --data FILE --escalate {budget}`).
*At most*: the upper 95% limit of the false share, which has to be 5% or less where there are 59 greens;
of fewer, one may be false. *Kept*: of the runs that are not false and have 100 effective draws by the exact weights (of
chains, all together: by their autocorrelation), the share that is green. How much is told depends on the draws: with a
quarter of them fewer runs near the prior are green, and more of these are false (`--particles 64` prints the tables of
the default size).
"""


def page(
    command: str, coverage: Mapping[tuple[str, str], Cells], greens: Greens, settings: Mapping[str, int | str]
) -> str:
    """Both tables, and what fails in them."""
    lines = [_WORDS.format(command=command, **settings)]
    lines += ["| engine | reward | R | estimand | coverage | | stated | of 100 |", "|---|---|---|---|---|---|---|---|"]
    lines += _coverage(coverage)
    found = [cell.coverage for cells in coverage.values() for cell in cells.cells.values() if cell.stated]
    if found:
        lines += ["", f"Mean over the {len(found)} cells: {sum(found) / len(found):.3f}."]
    lines += [_GREENS.format(**settings)]
    lines += [
        "| runs | reward | KL, nats | runs | green | false | at most | | kept |",
        "|---|---|---|---|---|---|---|---|---|",
        *_greens(greens),
    ]
    each = ", ".join(f"{diagnostic} {greens.kept([diagnostic]):.0%}" for diagnostic in DIAGNOSTICS)
    all_but = [diagnostic for diagnostic in DIAGNOSTICS if diagnostic not in ALONE]
    lines += [
        "",
        f"Kept where problems are as common as the recipe makes them: {each}; over all but chains alone, which nothing "
        f"confirms, {greens.kept(all_but):.0%}.",
    ]
    return "\n".join(lines) + "\n"


def _coverage(coverage: Mapping[tuple[str, str], Cells]) -> Iterator[str]:
    for (engine, kind), cells in coverage.items():
        for size in sorted({size for size, _ in cells.cells}):
            for name in ESTIMANDS:
                cell = cells.cells.get((size, name))
                if cell is None:
                    continue
                start = f"| {engine} | {kind} | {size} | {name} "
                many = f"{cell.many_stated / cell.many:.0%} of {cell.many}" if cell.many else "-"
                share = f"{cell.stated / cell.runs:.0%} of {cell.runs}"
                if not cell.stated:
                    yield f"{start}| - | | {share} | {many} |"
                    continue
                low, high = cell.interval()
                yield (
                    f"{start}| {cell.coverage:.3f} [{low:.3f}, {high:.3f}] | {_said(cell.holds)} | {share} | {many} |"
                )


def _greens(greens: Greens) -> Iterator[str]:
    for (diagnostic, kind, at), s in sorted(greens.strata.items()):
        low, high = STRATA[at]
        where = f"above {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
        limit = f"{s.limit:.1%}" if s.greens else "-"
        kept = f"{s.kept / s.deserving:.0%} of {s.deserving}" if s.deserving else "-"
        counts = f"{s.runs} | {s.greens} | {s.false} | {limit} | {_said(s.holds)} | {kept}"
        yield f"| {diagnostic} | {kind} | {where} | {counts} |"


def _said(holds: bool) -> str:
    return "holds" if holds else "**fails**"
