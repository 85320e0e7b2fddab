"""A finished run notes what it was made from, in its posterior and in the guide it has trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ppl_align.lm.fingerprint import used_lms
from ppl_align.posterior.result import Posterior
from ppl_align.program.provenance import Provenance


def with_provenance(
    posterior: Posterior, model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Posterior:
    """Inside the run's memory, so that every LM that the program asked is known, and not only those that wrote."""
    wrote = [site.source.lm for site in posterior.completions.values() if site.source is not None]
    provenance = Provenance.of(model, args, kwargs, posterior.seed, [*wrote, *used_lms()])
    if posterior.guide is not None:
        posterior.guide.provenance = provenance
    return replace(posterior, provenance=provenance)
