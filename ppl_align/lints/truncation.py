"""Mass lost to truncation: texts that are cut off at ``max_new_tokens`` before the language model has ended them.

It is part of the prior as it was declared, and normal for the prompts of a base model. It hurts where a reward or a
constraint wants an ending: then the mass of all longer texts is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ppl_align.lints.finding import Finding
from ppl_align.lints.glance import Glance
from ppl_align.lm.distribution import CompletionDistribution

MANY = 0.5
"""Share of the draws that are cut off, from which it is worth a line."""
NEEDS = 0.5
"""A reward needs endings if it rejects this share more of what is cut off than of what is whole."""


def truncation(glance: Glance) -> Iterator[Finding]:
    """How many draws are cut off, and whether they are turned down for it."""
    for site, source in glance.completions.items():
        if not source.terminal:
            continue  # texts have a fixed length: there is no end to be missed
        cut = cut_off(glance.values[site], source)
        share = float(cut.double().mean())
        limit = f"max_new_tokens={source.max_new_tokens}"
        blamed = [name for name, factor in glance.execution.factors.items() if _wants_ending(factor, cut, glance, name)]
        if blamed:
            yield Finding(
                "truncation",
                "warning",
                f"{100 * share:.0f}% of the draws of {site!r} are cut off at {limit}; {blamed[0]!r} turns them down",
                "raise max_new_tokens, or give a stop=",
            )
        elif share > MANY:
            yield Finding(
                "truncation", "note", f"{100 * share:.0f}% of the draws of {site!r} are cut off at {limit}, unfinished"
            )


def cut_off(tokens: Tensor, source: CompletionDistribution) -> Tensor:
    """Which draws have a completion that fills the limit and does not end there: [P, plates..., T] -> bool [P]."""
    ends = torch.isin(tokens, torch.tensor(source.terminal, device=tokens.device))
    return (~ends.any(-1)).reshape(len(tokens), -1).any(-1).cpu()


def _wants_ending(factor: Tensor, cut: Tensor, glance: Glance, name: str) -> bool:
    refused = factor.isneginf()
    if name in glance.execution.rewards:
        refused = refused | glance.execution.rewards[name].isnan()
    if not bool(cut.any()) or bool(cut.all()):
        return False  # nothing to compare with
    return float(refused[cut].double().mean() - refused[~cut].double().mean()) > NEEDS
