"""Particles picked from a posterior by index, as draws of equal weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.cost import Cost
from ppl_align.core.errors import InputError
from ppl_align.lm.completions import Completion, tensor_of
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.result import Posterior

_SHARED = (Kind.RESAMPLED, Kind.CONDITIONAL, Kind.CHAIN, Kind.POLICY)


def take(posterior: Posterior, index: Tensor, **fields: Any) -> Posterior:
    """Draws at ``index [R', N']`` (flat over replicates and particles); every weight is the pooled Zhat.

    Particles that shared ancestors, a given draw, a chain or a policy still do. Of the others the draws are independent
    if the indices were drawn independently. ``fields`` overrides those of the result; ``draws_are_exact=True``: they
    are draws of the posterior itself."""

    def pick(value: Tensor) -> Tensor:
        flat = value.reshape(-1, *value.shape[2:])
        return flat[index.reshape(-1)].reshape(*index.shape, *flat.shape[1:])

    def pick_completion(site: Completion) -> Completion:
        if site.source is not None:
            where = pick(site.source.index.expand(site.shape))
            return Completion(pick(site.tokens), site.source.with_index(where))
        chosen: dict[str, Any] = {}
        for which in ("text", "prompt"):
            texts = site._given[which]
            chosen[which] = None if texts is None else texts.reshape(-1)[index.numpy()]
        return Completion(pick(site.tokens), None, terminal=site._terminal, **chosen)

    each = torch.zeros(1) if not posterior.kind.has_evidence else posterior.log_evidence
    pooled = torch.logsumexp(each, 0) - torch.log(torch.tensor(float(len(each))))
    particles = {
        name: pick_completion(value) if isinstance(value, Completion) else pick(value)
        for name, value in posterior.particles.items()
    }
    by_name = {
        part: {name: pick(value) for name, value in getattr(posterior, part).items()}
        for part in ("rewards", "scales", "factors", "log_upper", "log_prior")
    }
    defaults: dict[str, Any] = {
        "log_weight": pooled.double().expand(index.shape).clone(),
        "particles": particles,
        "log_proposal": None if posterior.log_proposal is None else pick(posterior.log_proposal),
        "history": {},
        "cost": Cost(),
        "kind": posterior.kind if posterior.kind in _SHARED else Kind.WEIGHTED,
    }
    if fields.pop("draws_are_exact", False):
        fields["kind"] = Kind.EXACT_DRAWS
    return replace(posterior, **(defaults | by_name | fields))


def draws_of(posterior: Posterior, count: int) -> dict[str, Tensor]:
    """``count`` draws of a posterior by latent site, [count, ...]: exact draws in their order, of any other run by
    weight, with the global random numbers of torch.

    Raises ``InputError`` where there are fewer exact draws than that: one that is used twice would tie what starts from
    it."""
    if posterior.kind is Kind.EXACT_DRAWS:
        index = torch.arange(count)
        if posterior.log_weight.numel() < count:
            raise InputError(f"{count} replicates need {count} exact draws, there are {posterior.log_weight.numel()}")
    else:
        index = torch.multinomial(posterior.weights.reshape(-1), count, replacement=True)
    return {name: tensor_of(value).flatten(0, 1)[index] for name, value in posterior.particles.items()}
