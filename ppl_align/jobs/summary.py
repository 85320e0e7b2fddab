"""A row in a few words: what a top page and the end of a job say of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppl_align.core.printed import jsonable
from ppl_align.diagnostics.comparison import Comparison
from ppl_align.posterior.run_summary import summary_of
from ppl_align.report.job_page import STANDINGS

LONGEST = 400
"""Characters that are kept of a text."""


def summary(compared: Comparison, best: str, times: int = 1) -> dict[str, Any]:
    """What ``best``, the run that completions are drawn from, says of the row's target. JSON-able, without any clock.

    ``times``: how many times the particles that engines are set to it took (``--escalate``);
    ``rewards``: by name, the mean under the prior (None where no run knows it) and under the posterior."""
    run = compared.runs[best]
    before = compared.reference["prior_mean"]
    top = run.table(by="text").iloc[0]
    texts = [str(top[run.columns[site]]) for site in run.completions]
    return jsonable(
        {
            "standing": compared.advice.standing,
            "verdict": compared.advice.verdict,
            "remedy": compared.advice.remedy,
            "engine": best,
            "completion": shortened(texts[0]) if texts else "",
            "rewards": {name: [before.get(name), mean.value] for name, mean in summary_of(run).rewards.items()},
            "effective_draws": summary_of(run).effective_draws,
            "times": times,
            "lm_tokens": sum(one.cost.lm_tokens for one in compared.runs.values()),
        }
    )


def last_words(prompt: Any) -> str:
    """A prompt as a reader knows it: of chat messages, what the last one says."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        return shortened(str(prompt[-1].get("content", "")))
    return shortened(str(prompt))


def shortened(text: str, most: int = LONGEST) -> str:
    """The beginning of a long text."""
    return text if len(text) <= most else text[: most - 3] + "..."


def in_the_middle(text: str, most: int) -> str:
    """A long text without its middle: what is wrong comes first, and what to do about it last.

    >>> in_the_middle("the reward raised, and so on and on: wrap it", 32)
    'the reward ... wrap it'
    """
    if len(text) <= most:
        return text
    kept = most - 5
    head, tail = text[: kept * 3 // 5].rsplit(" ", 1)[0], text[len(text) - kept * 2 // 5 :].split(" ", 1)[-1]
    return f"{head} ... {tail}"


def standing_of(row: dict[str, Any]) -> str:
    """One of :data:`STANDINGS`."""
    return "failed" if "error" in row else str(row["standing"])


def counts(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many rows ended how."""
    return {standing: sum(standing_of(row) == standing for row in rows) for standing in STANDINGS}


def worst(rows: Sequence[dict[str, Any]], most: int = 5) -> list[dict[str, Any]]:
    """Rows to look at first: those that failed, then by standing, then by how few draws they rest on."""
    bad = [row for row in rows if standing_of(row) != "sound"]
    return sorted(bad, key=lambda row: (-STANDINGS.index(standing_of(row)), row.get("effective_draws") or 0.0))[:most]
