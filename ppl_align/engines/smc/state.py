"""What SMC knows of each particle besides the particle itself.

With psi the log-potential of the program on what is written, or a twist in its place, and log p - log q of what was
drawn, the weight is brought up to date whenever psi is refreshed, minus what the last resampling has already counted::

    log_weight += (log p - log q + psi) - absorbed;   absorbed = log p - log q + psi

Any finite psi on the way leaves E[Zhat] = Z (the telescope closes with the true potential of the whole program); a good
one makes Zhat less variable. (Naesseth, Lindsten & Schön 2019, arXiv:1903.04797.)
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class State:
    """One value for each particle, [P]; float64 on the CPU.

    ``log_weight``, ``absorbed``, ``psi``  nats, see above
    ``has_potential``   its text has been judged since the completion began
    ``needs_refresh``   that judgement may be another one by now
    ``lineage``         which particle of the start it comes from
    """

    log_weight: Tensor
    absorbed: Tensor
    psi: Tensor
    has_potential: Tensor
    needs_refresh: Tensor
    lineage: Tensor

    @classmethod
    def start(cls, replicates: int, particles: int) -> State:
        zeros = torch.zeros(replicates * particles, dtype=torch.float64)
        no = torch.zeros(replicates * particles, dtype=torch.bool)
        return cls(zeros, zeros, zeros, no, ~no, torch.arange(particles).repeat(replicates))

    def take(self, index: Tensor) -> State:
        """That of the particles at ``index [P]``."""
        return State(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def reweight(self, psi: Tensor, log_ratio: Tensor) -> State:
        """With the weights brought up to date; ``log_ratio``: log p - log q of all that was drawn, [P]."""
        total = psi + log_ratio
        gain = total - self.absorbed
        # A particle of weight zero stays there: -inf - -inf is not a number.
        log_weight = torch.where(self.log_weight.isneginf(), self.log_weight, self.log_weight + gain)
        return replace(self, log_weight=log_weight, absorbed=total, psi=psi)

    def at_a_new_completion(self) -> State:
        """Nothing has been judged of it."""
        no = torch.zeros_like(self.has_potential)
        return replace(self, has_potential=no, needs_refresh=~no)
