"""What one came for: completions of equal weight of each row's posterior, as lines of a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow
import torch
from torch import Tensor

from ppl_align.core.seeds import generator
from ppl_align.diagnostics.advisor import Advice
from ppl_align.jobs.plan import Target
from ppl_align.jobs.rows import Rows
from ppl_align.lm.completions import Completion
from ppl_align.lm.stopping import sequence_ends
from ppl_align.posterior import Posterior
from ppl_align.posterior.prior import best_view_of_prior, log_likelihood, log_prior, prior_log_weight
from ppl_align.posterior.run_summary import summary_of
from ppl_align.posterior.table import site_texts

Line = dict[str, Any]

KINDS = ("completion.", "latent.", "reward.")
OWN = {"_number": pyarrow.int64(), "_prior": pyarrow.bool_(), "_psi": pyarrow.float64()}
"""What a part knows of a line and nobody is delivered: the number of its row, whether it is a draw of the prior (for
preferences), and the sum of all its log-factors, nats."""
FIRST = {
    "row": pyarrow.string(),
    "engine": pyarrow.string(),
    "draw": pyarrow.int32(),
    "prompt": pyarrow.string(),
    "completion": pyarrow.string(),
}
LAST = {
    "tokens": pyarrow.int32(),
    "finish_reason": pyarrow.string(),
    "log_p0": pyarrow.float64(),
    "standing": pyarrow.string(),
    "effective_draws": pyarrow.float64(),
    "log_z": pyarrow.float64(),
    "log_z_error": pyarrow.float64(),
    "seed": pyarrow.int64(),
}
"""Columns that every job has. Between them are those of its program: ``completion.SITE`` of all completions but the
first, ``latent.SITE``, ``reward.NAME``.

``row``: its key; ``draw``: 0, 1, ... of those of the row; ``prompt``, ``completion``: text of the first completion (in
a plate: its texts, a line each); ``tokens``: of all completions of the draw; ``finish_reason``: "stop", or "length"
where ``max_new_tokens`` cut one off; ``log_p0``: log p of all latents, nats; ``standing``: how far to trust the row;
``effective_draws``: of the run; ``log_z``, ``log_z_error``: its log evidence, nats; null where there is none."""


def best_of(runs: Mapping[str, Posterior], advice: Advice) -> str:
    """The run to draw from: the one that the verdict names, else the one with the most effective draws."""
    if advice.use is not None:
        return advice.use
    return max(runs, key=lambda name: summary_of(runs[name]).effective_draws)


def lines_of(target: Target, engine: str, run: Posterior, advice: Advice, draws: int) -> list[Line]:
    """``draws`` independent draws of equal weight from a run, with the row's seed."""
    return _lines(target, engine, run, advice, draw_by_gumbel(run.log_weight, draws, target.seed, "delivered"), False)


def lines_of_prior(target: Target, runs: Mapping[str, Posterior], advice: Advice, draws: int) -> list[Line]:
    """As many draws of the prior, from the run that represents it best; none where no run does."""
    run = best_view_of_prior(runs.values())
    if run is None:
        return []
    index = draw_by_gumbel(prior_log_weight(run), draws, target.seed, "prior")
    return _lines(target, "", run, advice, index, True)


def _lines(target: Target, engine: str, run: Posterior, advice: Advice, index: Tensor, prior: bool) -> list[Line]:
    draws, picked = len(index), run.take(index[None])
    sites = picked.completions
    (first, *others) = sites or [""]
    summary = summary_of(run)
    error = summary.log_z.standard_error if summary.log_z.stated else math.nan
    columns: dict[str, Sequence[Any]] = {
        "prompt": _prompts(sites[first], draws) if sites else [None] * draws,
        "completion": site_texts(picked, first) if sites else [None] * draws,
        **{f"completion.{name}": site_texts(picked, name) for name in others},
        **{f"latent.{name}": _values(z, draws) for name, z in picked.latents.items()},
        **{f"reward.{name}": r.reshape(-1).double().tolist() for name, r in picked.rewards.items()},
        "tokens": sum(
            (_each(site.lengths, draws).sum(-1) for site in sites.values()), torch.zeros(draws, dtype=torch.long)
        ).tolist(),
        "finish_reason": _finish_reasons(sites.values(), draws),
        "log_p0": log_prior(picked).reshape(-1).tolist(),
        "_psi": log_likelihood(picked).reshape(-1).tolist(),
    }
    same = {
        "_prior": prior,
        "row": target.key,
        "engine": engine,
        "standing": advice.standing,
        "effective_draws": _finite(summary.effective_draws),
        "log_z": _finite(summary.log_z.value),
        "log_z_error": _finite(error),
        "seed": target.seed,
    }
    return [{**same, "draw": i, **{name: _finite(values[i]) for name, values in columns.items()}} for i in range(draws)]


def draw_by_gumbel(log_weight: Tensor, draws: int, seed: int, purpose: str) -> Tensor:
    """``draws`` indices into log-weights of any shape, flat, independent: the largest of log weight + Gumbel noise.

    A particle that another batch or device has moved by rounding changes the draws in proportion to its weight; on a
    CDF it would move the boundaries of all after it."""
    flat = log_weight.reshape(-1)
    uniform = torch.rand(draws, len(flat), generator=generator(seed, purpose), dtype=torch.float64)
    return (flat - uniform.clamp_min(1e-300).log().neg().log()).argmax(-1)


def as_table(lines: Sequence[Line]) -> pyarrow.Table:
    """Lines as an Arrow table; columns of a program that a row has not are null."""
    kinds = {**OWN, **FIRST, **dict.fromkeys(_of_program(name for line in lines for name in line)), **LAST}
    kinds |= {name: pyarrow.float64() for name in kinds if name.startswith("reward.")}
    return pyarrow.table(
        {name: pyarrow.array([line.get(name) for line in lines], kind) for name, kind in kinds.items()}
    )


def with_columns_of(rows: Rows, lines: pyarrow.Table) -> pyarrow.Table:
    """``lines`` with the columns of the data in front, as :func:`renamed` calls them."""
    names = renamed(rows.header.columns)
    columns = {names[name]: cells.take(lines["_number"]) for name, cells in rows.columns.items()}
    return pyarrow.table({**columns, **{name: lines[name] for name in lines.column_names}})


def renamed(columns: Sequence[str]) -> dict[str, str]:
    """What each column of the data is called in what is delivered: one that is called like one of ours is
    ``data.NAME``, with as many ``data.`` as it takes to be told from the others.

    >>> renamed(["prompt", "id"]), renamed(["prompt", "data.prompt"])
    ({'prompt': 'data.prompt', 'id': 'id'}, {'prompt': 'data.data.prompt', 'data.prompt': 'data.prompt'})
    """
    ours, taken = {*OWN, *FIRST, *LAST}, set(columns)
    names: dict[str, str] = {}
    for name in columns:
        new = name
        while new in ours or new.startswith(KINDS) or (new != name and new in taken):
            new = f"data.{new}"
        names[name] = new
        taken.add(new)
    return names


def in_order(table: pyarrow.Table) -> pyarrow.Table:
    """What is delivered, in its order: rows of other programs may have brought more columns than the first."""
    names = table.column_names
    ours = [*FIRST, *_of_program(names), *LAST]
    return table.select([*(name for name in names if name not in {*OWN, *ours}), *ours])


def _of_program(names: Iterable[str]) -> list[str]:
    """The columns among them that a program has of its own, by kind."""
    own = [name for name in dict.fromkeys(names) if name.startswith(KINDS)]
    return sorted(own, key=lambda name: next(i for i, kind in enumerate(KINDS) if name.startswith(kind)))


def _prompts(site: Completion, draws: int) -> list[str | None]:
    """The prompt of each draw, as text; in a plate, of the first of its texts."""
    texts = site.prompt_texts()
    each = len(texts) // draws
    return [texts[i * each] for i in range(draws)] if texts else [None] * draws


def _finish_reasons(sites: Iterable[Completion], draws: int) -> list[str]:
    ended = torch.ones(draws, dtype=torch.bool)
    for site in sites:
        terminal = () if site.source is None else site.source.terminal
        ended &= _each(sequence_ends(site.tokens, terminal)[..., -1:].any(-1), draws).all(-1)
    return ["stop" if one else "length" for one in ended.tolist()]


def _each(value: Tensor, draws: int) -> Tensor:
    """[1, draws, plates...] -> [draws, K] on the CPU."""
    return value.cpu().reshape(draws, -1)


def _values(value: Tensor, draws: int) -> list[Any]:
    rows = value.reshape(draws, -1).tolist()
    return [row[0] if len(row) == 1 else row for row in rows]


def _finite(value: Any) -> Any:
    """Null where a number has no meaning; an infinite one is one (a text that is rejected)."""
    return None if isinstance(value, float) and math.isnan(value) else value
