"""``lint``: every lint on one program.

A run warns too, of what it notices without a further forward or reward call (``posterior/findings.py``): constant
rewards, scale, the temperature of a guide; how it tilts an environment; and what cannot be run is an error. Truncation
can be read off a finished run (:mod:`ppl_align.posterior.truncation`). The rest only shows when asked again. A
run asks about a text once and remembers the answer, so that a state never shows; a text hardly ever comes with two
values of a latent, which would show that a reward reads it; only ``SMC(twist="prefix")`` asks about unfinished text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ppl_align.core.errors import BatchTextError, ModelError
from ppl_align.guides.program import ProgramGuide
from ppl_align.lints.finding import Finding
from ppl_align.lints.hidden_warp import hidden_warp
from ppl_align.lints.marginalised import marginalised_parameter
from ppl_align.lints.partial_text import partial_text
from ppl_align.lints.predicates import no_is_final
from ppl_align.lints.prior_sample import DRAWS, PriorSample
from ppl_align.lints.scale import beta_out_of_scale, constant, nothing_to_infer
from ppl_align.lints.state import stateful
from ppl_align.lints.trailing_space import trailing_space
from ppl_align.lints.truncation import truncation
from ppl_align.lints.world import partially_observed, tilted_environment, undeclared_randomness

CAUSES = (ModelError, BatchTextError)
"""What a program raises that engines cannot run on many particles at once."""
ALONE = 4
"""Particles that are looked at alone: a branch that half of them take is missed once in sixteen times."""


def dynamic(error: Exception) -> Finding:
    """The finding for what a run of the program raised."""
    return Finding("dynamic structure", "error", " ".join(str(error).split()))


def dynamic_structure(sample: PriorSample) -> Iterator[Finding]:
    """A site that a batch has and a particle of it has not, as after ``if (z > 0).any()``, or the other way round."""
    try:
        for i in range(min(ALONE, sample.num_draws)):
            sample.ask(rows=slice(i, i + 1))
    except CAUSES as error:
        yield dynamic(error)


LINTS: tuple[Callable[[PriorSample], Iterator[Finding]], ...] = (
    dynamic_structure,
    nothing_to_infer,
    constant,
    beta_out_of_scale,
    undeclared_randomness,
    stateful,
    tilted_environment,
    partially_observed,
    marginalised_parameter,
    partial_text,
    no_is_final,
    truncation,
    trailing_space,
)
"""Each looks at the same draws; those of a guide or proposal need :func:`lint_proposal`."""
_ORDER = {"error": 0, "warning": 1, "note": 2}


def lint(model: Callable[..., Any], *args: Any, num_draws: int = DRAWS, seed: int = 0, **kwargs: Any) -> list[Finding]:
    """What is legal in ``model(*args, **kwargs)`` but probably not meant, gravest first.

    Runs the program some thirty times on ``num_draws`` draws of its prior, more often where the world answers. What
    makes it impossible to run is a finding too (``error``); a reward that raises is ``RewardError``, as in every
    run."""
    try:
        sample = PriorSample(model, args, kwargs, seed, num_draws)
    except CAUSES as error:
        return [dynamic(error)]
    return lint_draws(sample)


def lint_draws(sample: PriorSample) -> list[Finding]:
    """Every lint on draws that are there already."""
    found: list[Finding] = []
    for one in LINTS:
        try:
            found += one(sample)
        except CAUSES as error:
            found.append(dynamic(error))
    return sorted(dict.fromkeys(found), key=lambda finding: _ORDER[finding.severity])


def lint_proposal(
    proposal: Any, model: Callable[..., Any], *args: Any, num_draws: int = DRAWS, seed: int = 0, **kwargs: Any
) -> list[Finding]:
    """Can ``proposal`` write all that ``model(*args, **kwargs)`` can?

    ``proposal``: what engines take as ``proposal=`` (a trained guide, another LM, ``Rows -> log_q``), or an engine,
    whose ``proposal`` and ``guide`` are looked at."""
    return lint_engine(proposal, PriorSample(model, args, kwargs, seed, num_draws))


def lint_engine(engine: Any, sample: PriorSample) -> list[Finding]:
    """The proposals of an engine (or one proposal by itself) on draws that are there already."""
    proposals = [engine]
    if hasattr(engine, "_infer"):
        guide = getattr(engine, "guide", None)
        given = [getattr(engine, "proposal", None), ProgramGuide(guide) if callable(guide) else None]
        proposals = [one for one in given if one is not None]
    return [finding for one in proposals for finding in hidden_warp(sample, one)]
