"""An inspection for a terminal, readable at 80 columns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ppl_align.core.printed import with_error
from ppl_align.diagnostics.columns import number, percent
from ppl_align.inspection import Inspection
from ppl_align.posterior.estimates import Estimate
from ppl_align.report.terminal import Printable, empty_table, grids, verdict
from ppl_align.rewards.answers import shorten

PRINTED = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 2**-0.5, 1.0, 2**0.5, 2.0, 4.0, 8.0, 16.0)
"""Multiples of beta that get a line; the figure and the JSON have all of them."""
SHOWN = 3
"""Rewards whose means are shown beside log Z and KL; all are in the JSON."""
ROUNDING = 1e-12
"""A number below it is the rounding of zero."""
NAME, PROMPT = 20, 160
"""Room for the name of a reward, and for a prompt."""
_HUGE = 1e6


def tables(found: Inspection) -> Printable:
    """Every table of an inspection, and the recommendation."""
    return Printable(lambda width: _layout(found, width))


def _layout(found: Inspection, width: int) -> RenderableType:
    target = found.model + (f" with {found.lm}" if found.lm else "")
    if found.prompts and found.prompts != ("",):
        more = f" and {len(found.prompts) - 1} more" if found.prompts[1:] else ""
        target += f", prompt {shorten(found.prompts[0], PROMPT)}{more}"
    about = f"{found.num_draws} draws of the prior, "
    if found.pool.confined:
        within = ", ".join(map(repr, found.pool.constraints))
        about = f"{found.num_draws} draws from within {within}, {found.prior.num_draws} of the prior, "
    about += f"{found.cost.lm_tokens:,} LM tokens, {found.cost.seconds:.1f} s"
    parts: list[RenderableType] = [Text(target, style="bold"), Text(about, style="dim")]
    sections = {
        "Rewards under the prior" + (", given the constraints" if found.pool.confined else ""): _rewards(found),
        "The strength of the rewards: all betas times a factor": _strengths(found),
        "What each factor does, as written": _sensitivities(found),
        "Where along the text the reward acts: nats of KL(p*||p0) paid so far": _profile(found),
        "What happens, before and after": _events(found),
    }
    for title, table in sections.items():
        if table is not None and table.rows:
            parts += [Text(), Text(title, style="bold"), *grids(table.what, table.header, table.rows, width)]
            parts += [Text(note) for note in table.notes]
    parts += [Text(), Text(f"What {found.goal} effective draws would take", style="bold"), _predictions(found)]
    parts += [Text(), *map(Text, _variety(found))]
    first, *others = found.advice
    return Group(*parts, Text(), verdict(first, "green", others))


@dataclass
class _Numbers:
    """A table of numbers: ``rows`` begin with a name, ``what`` these are names of."""

    what: str
    header: list[str]
    rows: list[tuple[str, list[str]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, cells: list[str]) -> None:
        self.rows.append((_name(name), cells))


def _name(name: str, room: int = NAME) -> str:
    return name if len(name) <= room else name[: room - 1] + "…"


def _rewards(found: Inspection) -> _Numbers:
    table = _Numbers("reward", ["mean", "sd", "5%", "median", "95%", "sd [nats]"])
    everywhere = all(r.rejected == 0 and r.applies == 1 for r in found.rewards)
    table.header += [] if everywhere else ["applies", "rejected"]
    for r in found.rewards:
        quantiles = [_short(q) for q in (r.quantiles[0], r.quantiles[2], r.quantiles[4])]
        shares = [] if everywhere else [percent(share) for share in (r.applies, r.rejected)]
        table.add(r.name, [_shown(r.mean), _short(r.sd), *quantiles, _short(r.nats), *shares])
    return table


def _strengths(found: Inspection) -> _Numbers:
    beta, shown = found.beta, found.rewards[:SHOWN]
    means: list[str] = []
    for r in shown:
        header = f"E[{_name(r.name)}]"
        means.append(header if header not in means else f"E[{_name(r.name, NAME - 3)} {len(means) + 1}]")
    table = _Numbers("factor", [*(["beta"] if beta else []), "log Z", "KL(p*||p0)", *means, "ESS"])
    for s in found.strengths:
        if _is_printed(s.factor):
            sign = "" if s.enough else "~ "
            cells = [f"{s.factor * beta:.3g}"] if beta else []
            cells += [sign + _shown(s.log_evidence), sign + _shown(s.kl)]
            cells += [_shown(m) if len(shown) == 1 else _short(m.value) for m in (s.rewards[r.name] for r in shown)]
            table.add(f"{s.factor:.3g}" + ("  <-" if s.factor == 1 else ""), [*cells, f"{s.ess:.0f}"])
    if any(not s.enough for s in found.strengths if _is_printed(s.factor)):
        table.notes.append("(~: too few effective draws to state an error; rather more than this)")
    return table


def _is_printed(factor: float) -> bool:
    """Some multiples between a sixteenth and sixteen; beyond, every second power of two."""
    power = math.log2(factor)
    return any(math.isclose(factor, one) for one in PRINTED) or (abs(power) > 4 and power % 2 == 0)


def _sensitivities(found: Inspection) -> _Numbers:
    table = _Numbers("factor", ["KL(p*||without)", "KL without", "log Z without", "dE[r]/dlog beta"])
    for s in found.sensitivities:
        if math.isnan(s.gain.value) and found.pool.confined:
            continue  # a constraint that all draws meet
        slope = "-" if s.per_log_beta is None else _shown(s.per_log_beta)
        table.add(s.name, [_shown(s.gain), _shown(s.kl_without), _shown(s.log_evidence_without), slope])
    if found.pool.chosen:
        table.notes.append(f"(all betas together: d log Z / d log beta = {_shown(found.slope)} nats)")
    return table


def _profile(found: Inspection) -> _Numbers | None:
    if found.profile is None:
        return None
    table = _Numbers("after", ["tokens", "at least", "at most", "of it"])
    total = found.profile.cuts[-1].middle
    for cut in found.profile.cuts:
        share = percent(min(max(cut.middle / total, 0.0), 1.0)) if total > 0 else "-"
        bounds = [_shown(_positive(side)) for side in (cut.lower, cut.upper)]
        table.add(cut.site, ["-" if cut.tokens is None else str(cut.tokens), *bounds, share])
    if not found.profile.enough:
        table.notes.append("(few draws stand for the posterior: rough, and rather more than this)")
    return table


def _positive(estimate: Estimate) -> Estimate:
    """A KL is never negative, whatever its bounds say."""
    return Estimate(max(estimate.value, 0.0), estimate.standard_error)


def _events(found: Inspection) -> _Numbers:
    table = _Numbers("event", ["draws", "prior", "posterior"])
    for e in found.events:
        sides = (_probability(e.prior, e.prior_bound), _probability(e.posterior, e.posterior_bound))
        table.add(e.name, [str(e.hits), *sides])
    return table


def _probability(estimate: Estimate, bound: float | None) -> str:
    """An estimate; or what draws say in which it never happened, or always did."""
    if bound is None:
        return _shown(estimate)
    if estimate.value == 0:
        return "not seen" if math.isnan(bound) else f"< {bound:.2g}"
    return "no other seen" if math.isnan(bound) else f"> {bound:.3g}"


def _predictions(found: Inspection) -> Table:
    table = empty_table()
    for header in ("engine", "draws", "LM tokens", "seconds", "because"):
        is_number = header not in ("engine", "because")
        table.add_column(Text(header), justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for p in found.predictions:
        sign, error, draws = ">= " if p.at_least else "", p.num_draws.standard_error, "-"
        if p.lm_tokens is not None:
            draws = f"{sign}{_count(p.num_draws.value)}" + (f" ± {_count(error)}" if error > 0 else "")
        tokens = f"{sign}{_count(p.lm_tokens)}" if p.lm_tokens is not None else "-"
        seconds = f"{sign}{_short(p.seconds, 2)}" if p.seconds is not None else "-"
        table.add_row(*map(Text, [p.engine, draws, tokens, seconds, p.note]))
    return table


def _variety(found: Inspection) -> list[str]:
    if found.answers is None:
        return ["The number of distinct answers is not defined: a latent is continuous."]
    before, after = found.answers.prior_entropy, found.answers.posterior_entropy
    seen = f"{found.answers.distinct} of the {found.num_draws} draws differ"
    bound = "at least " if found.answers.at_least else ""
    spans = f"prior {bound}{_answers(before)}, posterior {bound}{_answers(after)}"
    return [f"Distinct answers, exp(entropy): {spans}; {seen}."]


def _answers(entropy: Estimate) -> str:
    return f"{math.exp(min(entropy.value, 700)):.2g} ({_shown(entropy)} nats)"


def _shown(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "-"
    if math.isnan(estimate.standard_error):
        return _short(estimate.value)
    return with_error(*estimate)


def _short(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else number(digits)(0.0 if abs(value) < ROUNDING else value)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < _HUGE else f"{value:.1e}"
