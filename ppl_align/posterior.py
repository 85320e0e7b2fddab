"""The result of every engine: weighted completions, log evidence, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_align.completion import Completion
from ppl_align.cost import Cost


@dataclass
class Posterior:
    """Weighted draws from one program, by one engine. R replicates of N particles; tensors live on the CPU.

    ``engine``, ``config``, ``seed``, ``model``, ``lm``   where it comes from (all JSON-able)
    ``log_weight``   [R, N] float64, unnormalised; ``log_evidence[r] = logsumexp(log_weight[r]) - log N`` always
    ``particles``    by site: a ``Completion`` of shape [R, N] (tokens [R, N, T]) or a tensor [R, N, ...]
    ``rewards``      by reward: raw r [R, N], NaN where it does not apply; ``scales``: nats per unit (weight / beta)
    ``factors``      by factor or observed site: log-factor [R, N] (for a reward: scale * r)
    ``log_prior``    by latent site: log p0 [R, N]
    ``log_proposal`` log q of everything drawn, [R, N]
    ``history``      SMC: step [S], ess [S, R], resampled [S, R], log_evidence_increment [S, R],
                     ancestors [S, R, N], lineage [R, N]; SVI: loss [K]
    ``independent``  particles of a replicate are i.i.d. draws (IS, SVI), or the whole support (``exact``)
    ``guide``        the trained guide (SVI), usable as another engine's ``proposal=``; not saved
    """

    engine: str
    log_weight: Tensor
    particles: Mapping[str, Completion | Tensor]
    rewards: Mapping[str, Tensor] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    factors: Mapping[str, Tensor] = field(default_factory=dict)
    log_prior: Mapping[str, Tensor] = field(default_factory=dict)
    log_proposal: Tensor | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    model: str = ""
    lm: str = ""
    cost: Cost = field(default_factory=Cost)
    history: Mapping[str, Any] = field(default_factory=dict)
    independent: bool = True
    exact: bool = False
    guide: Any = None

    @property
    def log_evidence(self) -> Tensor:
        """log Zhat of each replicate, [R] nats; E[Zhat] = Z."""
        return torch.logsumexp(self.log_weight, -1) - torch.log(torch.tensor(float(self.log_weight.shape[-1])))
