"""``compare``: several engines on one target, side by side."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ppl_align.core.errors import InputError
from ppl_align.core.files import made_folder
from ppl_align.core.printed import jsonable
from ppl_align.diagnostics import decisions, exact_draws
from ppl_align.diagnostics.advisor import Advice, advise, best_run
from ppl_align.diagnostics.columns import COLUMNS, Column, guide_column, is_missing, reward_column
from ppl_align.lm.completions import tensor_of
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.prior import best_view_of_prior, prior_mean
from ppl_align.posterior.run_summary import summary_of
from ppl_align.program.provenance import differences

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = Mapping[str, Posterior | str | Path] | Iterable[Posterior | str | Path]


@dataclass(frozen=True, repr=False)
class Comparison:
    """What :func:`compare` found. Printing it shows tables of at most 80 columns that end in the advice.

    ``runs``       the posteriors, by name
    ``table``      pandas, one row per run; NaN where a number has no meaning. ``columns`` explains each
    ``reference``  what all runs are held against: best run, its log Z, entropy of its completions, prior means of the
                   rewards; with exact draws among the runs, two-sided bounds on log Z
    ``advice``     a verdict and its reasons
    """

    runs: Mapping[str, Posterior]
    table: pd.DataFrame
    reference: Mapping[str, Any]
    advice: Advice

    @property
    def rewards(self) -> list[str]:
        """Names of the rewards."""
        return list(next(iter(self.runs.values())).rewards)

    @property
    def columns(self) -> list[Column]:
        """What is printed, in order: rewards first, columns without any number left out."""
        targets = next(iter(self.runs.values())).targets
        of_rewards = [c for name in self.rewards for c in (reward_column(name, targets.get(name)), guide_column(name))]
        every = [*of_rewards, *COLUMNS]
        rows = self.rows
        shown = [c for c in every if any(not is_missing(row.get(c.key)) for row in rows.values())]
        rare = ("scored_tokens", "environment_calls")  # left out where nobody paid for them
        return [c for c in shown if c.key not in rare or bool((self.table[c.key] > 0).any())]

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The table as plain dictionaries, by run."""
        return {str(name): {str(k): v for k, v in row.items()} for name, row in self.table.iterrows()}

    @property
    def chains(self) -> dict[str, dict[str, dict[str, float]]]:
        """Of runs of Markov chains, by number (rewards, latents, log p0, lengths): mean, mcse, rhat, ess_bulk and
        ess_tail; NaN where nothing can be told."""
        found = {name: summary_of(run).chain_rows for name, run in self.runs.items()}
        return {name: rows for name, rows in found.items() if rows}

    def __str__(self) -> str:
        return str(self.__rich__())

    __repr__ = __str__

    def __rich__(self) -> Any:
        from ppl_align.report.terminal import comparison

        return comparison(self)

    def _repr_html_(self) -> str:
        from ppl_align.report.notebook import comparison_html

        return comparison_html(self)

    def to_json(self) -> str:
        """Table, reference and advice as JSON; null where a number has no meaning."""
        content = {
            "advice": self.advice,
            "reference": self.reference,
            "runs": {
                name: row
                | {"config": dict(run.config), "seed": run.seed, "cost": run.cost.as_dict()}
                | {"provenance": None if run.provenance is None else run.provenance.as_dict()}
                for (name, row), run in zip(self.rows.items(), self.runs.values(), strict=True)
            },
            "chains": self.chains,
            "columns": {c.key: c.meaning for c in self.columns},
        }
        return json.dumps(jsonable(content), indent=2, ensure_ascii=False)

    def figures(self) -> dict[str, Figure]:
        """The plots of the report, matplotlib figures by name."""
        from ppl_align.report.plots import figures

        return figures(self)

    def plots(self, directory: str | Path) -> list[Path]:
        """Write every plot as ``DIRECTORY/<name>.png``; returns the paths."""
        folder = made_folder(directory)
        paths = []
        for name, figure in self.figures().items():
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=150)
        return paths

    def save(self, directory: str | Path) -> list[Path]:
        """Write ``comparison.csv``, ``comparison.json`` and the self-contained ``report.html``; returns the paths."""
        from ppl_align.report.html import render

        folder = made_folder(directory)
        csv, text, html = (folder / name for name in ("comparison.csv", "comparison.json", "report.html"))
        self.table.to_csv(csv)
        text.write_text(self.to_json(), encoding="utf-8")
        html.write_text(render(self), encoding="utf-8")
        return [csv, text, html]


def compare(runs: Runs) -> Comparison:
    """Set several posteriors of *one* target beside each other.

    ``runs``: ``{"is": posterior, "smc": "out/smc.nc"}``, or a sequence of posteriors and paths of saved ones (named by
    engine, or by file). Weight ESS, k-hat, largest weight, ancestors and distinct completions are per replicate,
    averaged over replicates; expectations and log Z pool replicates in proportion to Zhat_r.

    Raises ``InputError`` for no runs, an unreadable file, or runs whose targets differ (model, LM, reward scales or
    prompt): their log Z and E[r] could not be compared. Of a program with ``environment(...)``, runs that condition and
    runs that decide may stand side by side: the first have log Z, the second J.
    """
    named = _named(runs)
    _no_retained_draws(named)
    _same_target(named)
    differ = differences({name: run.provenance for name, run in named.items()})
    if differ is not None:
        warnings.warn(differ, UserWarning, stacklevel=3)
    conditioned, _ = decisions.split(named)
    best = best_run(named)
    top, told = best_log_evidence(named.values()), summary_of(named[best])
    rewards = list(named[best].rewards)
    prior = best_view_of_prior(named.values())
    reference: dict[str, Any] = {
        "best_run": best,
        "best_log_evidence": top,
        "posterior_entropy": told.posterior_entropy,
        "posterior_entropy_is_lower_bound": told.posterior_entropy_is_lower_bound,
        "prior_mean": {} if prior is None else {name: prior_mean(prior, prior.rewards[name]) for name in rewards},
        "evidence_bounds": _evidence_bounds(conditioned),
        "differ": differ,
        "optimism": None if named[best].optimism is None else str(named[best].optimism),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": named[best].model,
        "lm": named[best].lm,
        "prompts": sorted(_prompts(named[best]))[:8],
    }
    own = {
        "entropy_posterior": told.attainable_entropy,
        "distinct2_posterior": told.distinct_ngrams,
    }
    rows = {}
    for name, run in named.items():
        told, of_posterior = summary_of(run), run.kind.of_posterior
        rows[name] = told.row() | (own if of_posterior else dict.fromkeys(own))
        rows[name]["elbo_gap"] = None if told.elbo is None else top - told.elbo
        rows[name]["unseen"] = _unseen(run, conditioned) if of_posterior else None
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "run"
    numbers = table.columns.drop(["engine", "kl_is_lower_bound"])
    table[numbers] = table[numbers].astype(float)
    return Comparison(named, table, reference, advise(named, best))


def best_log_evidence(runs: Iterable[Posterior]) -> float:
    """The exact log Z if one run has it, else the highest estimate: each is a lower bound in expectation.

    NaN where no run estimates it."""
    known = [run for run in runs if run.kind.has_evidence]
    standing = [run for run in known if run.exact][:1] or known
    return max((summary_of(run).log_evidence for run in standing), default=math.nan)


def _unseen(run: Posterior, named: Mapping[str, Posterior]) -> float | None:
    """None where no run has exact draws, and for those that have."""
    source = exact_draws.source(named)
    if source is None or run.exact or run.draws_are_exact:
        return None
    return exact_draws.unseen(run, named[source]).share


def _evidence_bounds(named: Mapping[str, Posterior]) -> dict[str, Any]:
    """By run of importance sampling: two-sided bounds on log Z, and whose exact draws they retain."""
    source = exact_draws.source(named)
    if source is None:
        return {}
    found = {name: exact_draws.evidence_bounds(run, named[source]) for name, run in named.items()}
    return {
        name: {
            "lower": bounds.lower.value,
            "lower_error": bounds.lower.standard_error,
            "upper": bounds.upper.value,
            "upper_error": bounds.upper.standard_error,
            "retained": source,
        }
        for name, bounds in found.items()
        if bounds is not None
    }


def _named(runs: Runs) -> dict[str, Posterior]:
    if isinstance(runs, (str, Path, Posterior)):
        runs = [runs]
    if isinstance(runs, Mapping):
        pairs = [(str(name), run) for name, run in runs.items()]
    else:
        pairs = [(run.engine if isinstance(run, Posterior) else Path(run).stem, run) for run in runs]
    named: dict[str, Posterior] = {}
    for name, run in pairs:
        unique, count = name, 2
        while unique in named:
            unique, count = f"{name}-{count}", count + 1
        named[unique] = run if isinstance(run, Posterior) else Posterior.load(run)
    if not named:
        raise InputError("nothing to compare: give at least one posterior")
    return named


def _no_retained_draws(named: Mapping[str, Posterior]) -> None:
    for name, run in named.items():
        if run.kind is Kind.CONDITIONAL:
            raise InputError(
                f"{name!r} is a conditional run: a draw of the posterior was put among its particles, so it bounds "
                "log Z from above and is no run to compare; see evidence_bounds(engine, model, exact=...)"
            )


def _prompts(run: Posterior) -> set[str]:
    """Distinct prompts of all completions, as text."""
    return {text for site in run.completions.values() for text in site.prompt_texts()}


def _same_target(named: Mapping[str, Posterior]) -> None:
    (first_name, first), *others = named.items()
    for name, run in others:
        differs = {
            "models": (first.model, run.model),
            "language models": (first.lm, run.lm),
            "rewards (name: nats per unit)": (_scales(first), _scales(run)),
            "sites": (sorted(first.particles), sorted(run.particles)),
        }
        # A prompt that depends on a latent varies from draw to draw; one fixed prompt must be the same.
        prompts = _prompts(first), _prompts(run)
        if all(len(p) == 1 for p in prompts):
            differs["prompts"] = prompts
        for what, (a, b) in {**differs, **_differing_scales(first, run)}.items():
            if a != b:
                where = f"{what} {a} in {first_name!r}, {b} in {name!r}"
                raise InputError(f"runs of different targets cannot be compared: {where}")


def _scales(run: Posterior) -> dict[str, float | str]:
    """What a unit of each reward is worth, to six digits."""
    found: dict[str, float | str] = {}
    for name, scale in sorted(run.scales.items()):
        first = float(torch.as_tensor(scale).reshape(-1)[0])
        found[name] = "drawn" if name in run.drawn_scales else float(f"{first:.6g}")
    return found


def _differing_scales(one: Posterior, two: Posterior) -> dict[str, tuple[float, float]]:
    """Rewards with a weight that is drawn, and is not the same for a draw that both runs have: the two values."""
    found = {}
    for name in set(one.drawn_scales) & set(two.drawn_scales):
        known = dict(zip(_rows(one), one.scales[name].reshape(-1).tolist(), strict=True))
        for row, scale in zip(_rows(two), two.scales[name].reshape(-1).tolist(), strict=True):
            if not math.isclose(known.get(row, scale), scale, rel_tol=1e-5, abs_tol=1e-9):
                found[f"nats per unit of {name!r} for one draw:"] = known[row], scale
                break
    return found


def _rows(run: Posterior) -> list[tuple[float, ...]]:
    """All that was drawn, one row for each particle."""
    size = run.log_weight.numel()
    parts = [tensor_of(run.particles[name]).reshape(size, -1).double() for name in sorted(run.particles)]
    return [tuple(row) for row in torch.cat(parts, 1).tolist()]
