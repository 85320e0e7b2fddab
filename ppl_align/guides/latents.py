"""Guides for ordinary latents: the prior, tilted where that is possible, a Gaussian otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import biject_to, constraints


class LatentGuide(nn.Module):
    """q for one site, built from its prior at the moment it is reached (so it follows upstream latents).

    * Categorical, OneHotCategorical, Bernoulli: the prior's logits plus a learned tilt, initially 0;
    * continuous: a Gaussian, in units of the prior's standard deviation where the support is the real line, on the
      unconstrained scale otherwise;
    * anything else (Poisson, ...): the prior itself, which costs no bias, only variance.
    """

    def __init__(self, prior: Any, nesting: int = 0) -> None:
        """``nesting``: plates of the program; what lies left of them are particles, which share the parameters."""
        super().__init__()
        self.base = type(_unwrap(prior)).__name__
        shape = prior.batch_shape[max(0, len(prior.batch_shape) - nesting) :]
        if self.base in ("Categorical", "OneHotCategorical"):
            self.tilt = nn.Parameter(torch.zeros(*shape, _unwrap(prior).logits.shape[-1]))
        elif self.base == "Bernoulli":
            self.tilt = nn.Parameter(torch.zeros(shape))
        elif prior.has_rsample and not prior.support.is_discrete:
            # a simplex has one coordinate less on the unconstrained scale
            event = torch.Size(biject_to(prior.support).inverse_shape(prior.event_shape))
            self.loc = nn.Parameter(torch.zeros(shape + event))
            self.log_scale = nn.Parameter(torch.zeros(shape + event))

    kind = "latent"

    def settings(self) -> dict[str, Any]:
        """What a file must hold beside the tensors."""
        return {"base": self.base}

    @classmethod
    def restored(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LatentGuide:
        """The guide that was saved with these settings and parameters."""
        guide = cls.__new__(cls)
        nn.Module.__init__(guide)
        guide.base = str(settings["base"])
        for name, tensor in tensors.items():
            setattr(guide, name, nn.Parameter(tensor))
        return guide

    def forward(self, prior: Any) -> Any:
        """The distribution to draw from, of the prior's batch shape."""
        if self.base in ("Categorical", "OneHotCategorical", "Bernoulli"):
            family = getattr(dist, self.base)
            return family(logits=_unwrap(prior).logits + self.tilt).expand(prior.batch_shape)
        if not hasattr(self, "loc"):
            return prior
        scale, event_dim = self.log_scale.exp(), len(prior.event_shape)
        if getattr(prior.support, "base_constraint", prior.support) is constraints.real:
            return dist.Normal(prior.mean + prior.stddev * self.loc, prior.stddev * scale).to_event(event_dim)
        size = biject_to(prior.support).inverse_shape(prior.shape())
        base = dist.Normal(self.loc, scale).expand(torch.Size(size)).to_event(event_dim)
        return dist.TransformedDistribution(base, [biject_to(prior.support)])


def _unwrap(prior: Any) -> Any:
    """The distribution below ``expand``'s and ``mask``'s wrappers."""
    while hasattr(prior, "base_dist") and not hasattr(prior, "transforms"):
        prior = prior.base_dist
    return prior
