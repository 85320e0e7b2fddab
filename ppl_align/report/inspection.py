"""An inspection for a terminal, readable at 80 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ppl_align.diagnostics.columns import number, percent
from ppl_align.posterior.estimates import Estimate, with_error
from ppl_align.report.terminal import Printable, _table

if TYPE_CHECKING:
    from ppl_align.inspection import Inspection
    from ppl_align.inspection.predictive import Event

PRINTED = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 2**-0.5, 1.0, 2**0.5, 2.0, 4.0, 8.0, 16.0)
"""Multiples of beta that get a line; the figure and the JSON have all of them."""
SHOWN = 3
"""Rewards whose means fit beside log Z and KL; all are in the JSON."""
_HUGE = 1e6


def tables(found: Inspection) -> Printable:
    """Every table of an inspection, and the recommendation."""
    return Printable(lambda width: _layout(found))


def _layout(found: Inspection) -> RenderableType:
    target = found.model + (f" with {found.lm}" if found.lm else "")
    if found.prompts and found.prompts != ("",):
        target += f", prompt {found.prompts[0]!r}" + (
            f" and {len(found.prompts) - 1} more" if found.prompts[1:] else ""
        )
    about = f"{found.num_draws} draws of the prior, {found.cost.lm_tokens:,} LM tokens, {found.cost.seconds:.1f} s"
    parts: list[RenderableType] = [Text(target, style="bold"), Text(about, style="dim")]
    sections = {
        "Rewards under the prior": _rewards(found),
        "The strength of the rewards: all betas times a factor": _strengths(found),
        "What each factor does, as written": _sensitivities(found),
        "Where along the text the reward acts: nats of KL(p*||p0) paid so far": _profile(found),
        "What happens, before and after": _events(found),
        f"What {found.goal} effective draws would take": _predictions(found),
    }
    for title, table in sections.items():
        if table is not None:
            parts += [Text(), Text(title, style="bold"), table]
            if title.startswith("What each") and found.pool.chosen:
                parts.append(Text(f"(all betas together: d log Z / d log beta = {_shown(found.slope)} nats)"))
    parts += [Text(), *map(Text, _variety(found))]
    first, *others = found.advice
    parts += [Text(), Text(f"=> {first}", style="bold green")]
    return Group(*parts, *(Padding(Text(f"- {line}"), (0, 0, 0, 3)) for line in others))


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, notes: bool = False) -> Table | None:
    """The first ``left`` columns are names, the others numbers; ``notes``: the last is a sentence."""
    if not rows:
        return None
    table = _table()
    for i, name in enumerate(header):
        is_note = notes and i == len(header) - 1
        right = i >= left and not is_note
        table.add_column(Text(name), justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _rewards(found: Inspection) -> Table | None:
    rows = []
    for r in found.rewards:
        quantiles = [_short(q) for q in (r.quantiles[0], r.quantiles[2], r.quantiles[4])]
        shares = [percent(share) for share in (r.applies, r.rejected)]
        rows.append([r.name, _shown(r.mean), _short(r.sd), *quantiles, *shares, _short(r.nats)])
    header = ["reward", "mean", "sd", "5%", "median", "95%", "applies", "rejected", "sd [nats]"]
    if all(r.rejected == 0 and r.applies == 1 for r in found.rewards):
        return _grid(header[:6] + header[8:], [row[:6] + row[8:] for row in rows])
    return _grid(header, rows)


def _strengths(found: Inspection) -> Table | None:
    rows, beta = [], found.beta
    for s in found.strengths:
        if not any(math.isclose(s.factor, factor) for factor in PRINTED):
            continue
        sign = "" if s.enough else ">= "
        row = [f"{s.factor:.3g}" + ("  <-" if s.factor == 1 else "    ")]
        row += [f"{s.factor * beta:.3g}"] if beta else []
        means = [_shown(m) if len(s.rewards) == 1 else _short(m.value) for m in list(s.rewards.values())[:SHOWN]]
        rows.append([*row, sign + _shown(s.log_evidence), sign + _shown(s.kl), *means, f"{s.ess:.0f}"])
    names = [f"E[{r.name[:12]}]" for r in found.rewards[:SHOWN]]
    return _grid(["factor", *(["beta"] if beta else []), "log Z", "KL(p*||p0)", *names, "ESS"], rows, left=0)


def _sensitivities(found: Inspection) -> Table | None:
    rows = []
    for s in found.sensitivities:
        slope = "-" if s.per_log_beta is None else _shown(s.per_log_beta)
        rows.append([s.name, _shown(s.gain), _shown(s.kl_without), _shown(s.log_evidence_without), slope])
    return _grid(["factor", "KL(p*||without)", "KL without", "log Z without", "dE[r]/dlog beta"], rows)


def _profile(found: Inspection) -> Table | None:
    if found.profile is None:
        return None
    rows = []
    total = found.profile.cuts[-1].middle
    for cut in found.profile.cuts:
        share = percent(min(max(cut.middle / total, 0.0), 1.0)) if total > 0 else "-"
        rows.append([cut.site, str(cut.tokens), *(_shown(_positive(side)) for side in (cut.lower, cut.upper)), share])
    return _grid(["after", "tokens", "at least", "at most", "of it"], rows)


def _positive(estimate: Estimate) -> Estimate:
    """A KL is never negative, whatever its bounds say."""
    return Estimate(max(estimate.value, 0.0), estimate.standard_error)


def _events(found: Inspection) -> Table | None:
    rows = []
    for e in found.events:
        rows.append([e.name, str(e.hits), _before(e), _after(e)])
    return _grid(["event", "draws", "prior", "posterior"], rows)


def _before(e: Event) -> str:
    return _shown(e.prior) if e.prior_below is None else f"< {e.prior_below:.2g}"


def _after(e: Event) -> str:
    if e.prior_below is None:
        return _shown(e.posterior)
    return "not seen" if e.posterior_below is None or e.posterior_below >= 1 else f"< {e.posterior_below:.2g}"


def _predictions(found: Inspection) -> Table | None:
    rows = []
    for p in found.predictions:
        sign = ">= " if p.at_least else ""
        possible = p.lm_tokens is not None
        error = p.num_draws.standard_error
        draws = "-"
        if possible:
            draws = f"{sign}{_count(p.num_draws.value)}" + (f" ± {_count(error)}" if error > 0 else "")
        tokens = f"{sign}{_count(p.lm_tokens)}" if p.lm_tokens is not None else "-"
        seconds = f"{sign}{_short(p.seconds, 2)}" if p.seconds is not None else "-"
        rows.append([p.engine, draws, tokens, seconds, p.note])
    return _grid(["engine", "draws", "LM tokens", "seconds", "because"], rows, notes=True)


def _variety(found: Inspection) -> list[str]:
    if found.answers is None:
        return ["The number of distinct answers is not defined: a latent is continuous."]
    before, after = found.answers.prior_entropy, found.answers.posterior_entropy
    seen = f"{found.answers.distinct} of the {found.num_draws} draws differ"
    return [f"Distinct answers, exp(entropy): prior {_answers(before)}, posterior {_answers(after)}; {seen}."]


def _answers(entropy: Estimate) -> str:
    return f"{math.exp(min(entropy.value, 700)):.2g} ({_shown(entropy)} nats)"


def _shown(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "-"
    if math.isnan(estimate.standard_error):
        return _short(estimate.value)
    return with_error(*estimate)


def _short(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else number(digits)(value)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < _HUGE else f"{value:.1e}"
