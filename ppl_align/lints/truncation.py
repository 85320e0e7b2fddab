"""Mass lost to truncation: texts that are cut off at ``max_new_tokens`` before the language model has ended them.

It is part of the prior as it was declared, and normal for the prompts of a base model. It hurts where a reward or a
constraint wants an ending: then the mass of all longer texts is thrown away. A finished run says so as well
(:mod:`ppl_align.posterior.truncation`).
"""

from __future__ import annotations

from collections.abc import Iterator

from ppl_align.lints.finding import Finding
from ppl_align.lints.prior_sample import PriorSample
from ppl_align.posterior.truncation import cut_off, turned_down

MANY = 0.5
"""Share of the draws that are cut off, from which it is worth a line."""


def truncation(sample: PriorSample) -> Iterator[Finding]:
    """How many draws are cut off, and whether they are turned down for it."""
    run = sample.particles
    for site, prior in sample.completions.items():
        if not prior.can_end:
            continue  # texts have a fixed length: there is no end to be missed
        cut = cut_off(sample.values[site], prior)
        share = float(cut.double().mean())
        said = turned_down(site, prior, cut, run.factors, run.rewards)
        if said is not None:
            yield Finding("truncation", "warning", said, "raise max_new_tokens, or give a stop=")
        elif share > MANY:
            limit = f"max_new_tokens={prior.max_new_tokens}"
            yield Finding(
                "truncation", "note", f"{100 * share:.0f}% of the draws of {site!r} are cut off at {limit}, unfinished"
            )
