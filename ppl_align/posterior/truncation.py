"""What is cut off at ``max_new_tokens`` before the language model has ended it, and who turns it down for that.

Seen on draws of the prior: by the lint, and for free in a finished run whose particles are such draws.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.posterior.prior import drew_from_prior
from ppl_align.posterior.result import Posterior

SOME = 0.1
"""Share of the draws that are cut off, from which it is worth a warning, if they are turned down for it."""
NEEDS = 0.5
"""A reward needs endings if it rejects this share more of what is cut off than of what is whole."""
STEP = 1.0  # nats that it may take off what is cut off
ENOUGH = 3  # draws on both sides of such a step


def cut_short(posterior: Posterior) -> list[str]:
    """One line for each completion of a finished run whose unfinished draws are turned down; nothing is asked again."""
    if not drew_from_prior(posterior):
        return []
    flat = {name: factor.flatten() for name, factor in posterior.factors.items()}
    raw = {name: r.flatten() for name, r in posterior.rewards.items()}
    lines = []
    for site, drawn in posterior.completions.items():
        if drawn.source is not None and drawn.source.can_end:
            cut = cut_off(drawn.tokens.flatten(0, 1), drawn.source)
            said = turned_down(site, drawn.source, cut, flat, raw)
            lines += [] if said is None else [f"{said}: raise max_new_tokens, or give a stop="]
    return lines


def cut_off(tokens: Tensor, prior: CompletionDistribution) -> Tensor:
    """Which draws have a completion that fills the limit and does not end there: [P, plates..., T] -> bool [P]."""
    return (~prior.ends_within(tokens)).reshape(len(tokens), -1).any(-1).cpu()


def turned_down(
    site: str, prior: CompletionDistribution, cut: Tensor, factors: Mapping[str, Tensor], rewards: Mapping[str, Tensor]
) -> str | None:
    """What the first factor that wants endings does to draws that have none. All tensors [P]."""
    share = float(cut.double().mean())
    if not SOME <= share < 1:
        return None  # too few, or nothing to compare with
    for name, factor in factors.items():
        done = _done_to(factor, rewards.get(name), cut)
        if done is not None:
            limit = f"max_new_tokens={prior.max_new_tokens}"
            return f"{100 * share:.0f}% of the draws of {site!r} are cut off at {limit}; {name!r} {done}"
    return None


def _done_to(factor: Tensor, r: Tensor | None, cut: Tensor) -> str | None:
    """Rejected, or worth less by more than whole texts differ from each other (a reward of short texts is no step)."""
    refused = factor.isneginf() if r is None else factor.isneginf() | r.isnan()
    if float(refused[cut].double().mean() - refused[~cut].double().mean()) > NEEDS:
        return "turns them down"
    low, high = factor[cut & ~refused], factor[~cut & ~refused]
    if min(len(low), len(high)) < ENOUGH:
        return None
    step = float(high.min() - low.max())
    if step > max(STEP, float(high.max() - high.min())):
        return f"gives them {step:.2g} nats less than any that ends"
    return None
