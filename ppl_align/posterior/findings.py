"""What a finished run shows of its program for free: uninformative and over-scaled rewards.

Only runs whose particles are draws of the prior can tell; what an engine has steered no longer says how the prior was.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.printed import with_error
from ppl_align.core.runs import is_top_level
from ppl_align.particles.per_particle import said
from ppl_align.posterior.prior import drew_from_prior, log_likelihood
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.truncation import cut_short

log = logging.getLogger(__name__)
TOO_WEAK = 0.05
"""Nats: a log-factor with a smaller standard deviation moves the posterior by about 0.001 nats of KL."""
TOO_STRONG = 20.0
"""Nats between the 5% and the 95% quantile: the posterior is where r is largest, and hardly anything else."""
ENOUGH = 8  # draws, for a statement on a spread


def findings(posterior: Posterior) -> list[str]:
    """One line each, gravest first; empty where nothing is wrong or nothing can be told."""
    if not drew_from_prior(posterior) or posterior.log_weight.numel() < ENOUGH:
        return []
    return [*_of_rewards(posterior), *cut_short(posterior)]


def _of_rewards(posterior: Posterior) -> Iterator[str]:
    together = log_likelihood(posterior).reshape(-1)
    for name, r in posterior.rewards.items():
        text = constant_reward(name, r.reshape(-1))
        if name not in posterior.targets:  # else its weight is solved for
            text = text or out_of_scale(name, posterior.factors[name].reshape(-1), posterior.scales[name], together)
        if text is not None:
            yield text


def constant_reward(name: str, r: Tensor) -> str | None:
    """``r`` on draws of the prior, [N] reward units; NaN where it does not apply."""
    applies = r[~r.isnan()]
    if not len(applies):
        return f"reward {name!r} applies to none of the draws"
    if len(applies) > 1 and bool((applies == applies[0]).all()):
        return f"reward {name!r} is {float(applies[0]):.3g} on every draw: it does not tell them apart"
    return None


def out_of_scale(name: str, log_factor: Tensor, scale: float | Tensor, together: Tensor) -> str | None:
    """``log_factor`` = scale * r on draws of the prior, [N] nats; rejections aside. ``together``: with all others, [N];
    two experts that are set against each other may be large and their difference small."""
    f = log_factor[log_factor.isfinite()]
    if not bool(torch.as_tensor(scale).any()) or len(f) < ENOUGH or bool((f == f[0]).all()):
        return None
    sd = float(f.std())
    if sd < TOO_WEAK and not bool(log_factor.isneginf().any()):
        return (
            f"reward {name!r} varies by {sd:.2g} nats over draws of the prior (one unit is worth {said(scale)}): it "
            "hardly acts, so lower beta"
        )
    if float(f.max() - f.min()) > TOO_STRONG and min(_span(f), _span(together)) > TOO_STRONG:
        return (
            f"reward {name!r} spans {_span(f):.0f} nats over draws of the prior (one unit is worth {said(scale)}): the "
            "posterior is its maximum and little else, so raise beta or lower its weight"
        )
    return None


def _span(log_factor: Tensor) -> float:
    """Between the 5% and the 95% quantile, nats; rejections aside."""
    f = log_factor[log_factor.isfinite()]
    if not len(f):
        return 0.0
    low, high = torch.quantile(f, torch.tensor([0.05, 0.95], dtype=f.dtype)).tolist()
    return high - low


def with_findings(posterior: Posterior, proposal: Any = None) -> Posterior:
    """Log what a run shows, and leave it in its history: ``posterior.warnings``.

    Logged only by a run that the user asked for; whoever starts a :func:`~ppl_align.core.runs.nested_run` reads them.
    What the engine itself left there is kept.

    ``proposal``: what the engine was given to draw from, where it did not train a guide of its own."""
    found = [*posterior.warnings, *findings(posterior), *hidden_warps(posterior, posterior.guide or proposal)]
    found += unmet_moment_constraints(posterior)
    for line in found if is_top_level() else ():
        log.warning(line)
    return replace(posterior, history={**posterior.history, "warnings": found}) if found else posterior


def unmet_moment_constraints(posterior: Posterior) -> list[str]:
    """Means that a run which decides leaves off their targets: lambda was fitted for the target of conditioning."""
    if posterior.target != "decision":
        return []
    found = []
    for name, target in posterior.targets.items():
        value, error = posterior.mean(name)
        if abs(value - target) > 3 * error:
            found.append(
                f"the mean of {name!r} is {with_error(value, error)}, not its target {target:g}: its weight "
                "was fitted for engines that condition, and this one decides"
            )
    return found


def hidden_warps(posterior: Posterior, guide: Any) -> list[str]:
    """Does a guide that the user wrote draw completions as the model declares? It says (``warps``) once it was run."""
    found = []
    for name, warp in getattr(guide, "warps", {}).items():
        site = posterior.completions.get(name)
        declared = None if site is None or site.source is None else site.source.warp
        if declared is not None and warp != declared:
            found.append(other_warp(name, warp, declared))
    return found


def other_warp(site: str, guide: Any, model: Any) -> str:
    """The sentence on a guide whose temperature, top-k or top-p is not the model's."""
    return f"the guide draws {site!r} with {_said(guide)}, the model with {_said(model)}: {_consequence(guide, model)}"


def _said(warp: Any) -> str:
    parts = [] if warp.temperature == 1 else [f"temperature={warp.temperature:g}"]
    parts += [f"{name}={value:g}" for name in ("top_k", "top_p") if (value := getattr(warp, name)) is not None]
    return ", ".join(parts) or "no temperature, top-k or top-p"


def _consequence(guide: Any, model: Any) -> str:
    if (guide.top_k, guide.top_p) != (model.top_k, model.top_p) and (guide.top_k or guide.top_p):
        return "what it never writes is missing from the posterior, and no weight can bring it back"
    if guide.temperature < model.temperature:
        return "the weights p/q of rare tokens have no useful bound"
    return "the weights pay for the difference"
