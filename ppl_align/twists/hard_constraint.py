"""A hard constraint as a twist: zero where it can no longer be met."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_align.lm.base import Ids
from ppl_align.lm.decoding import Rows
from ppl_align.lm.leaning import Leaning
from ppl_align.lm.restriction import Restriction
from ppl_align.twists.twist import Prefixes, Scene, Twist


class HardConstraint(Twist):
    """log psi = 0 where the constraints on the completion can still be met, -inf where not.

    ``weighs``: as it stands it only confines what is drawn, and leaves dead ends to whoever else judges prefixes."""

    of_constraints = True
    by_ids = True
    certain = True
    names_its_errors = True

    def __init__(self, weighs: bool = True, restriction: Restriction | None = None) -> None:
        self.weighs, self.restriction = weighs, restriction

    def at(self, scene: Scene) -> Twist | None:
        return None if scene.restriction is None else HardConstraint(self.weighs, scene.restriction)

    @property
    def proposes(self) -> bool:
        return self.restriction is None or self.restriction.proposes

    def next_token(self, rows: Rows) -> Tensor:
        assert self.restriction is not None
        assert rows.ids is not None
        return self.restriction.allowed(rows.ids)

    def leaning(self, rows: Rows) -> Leaning:
        return Leaning(allowed=self.next_token(rows))

    def prefix(self, prefixes: Prefixes) -> Tensor | None:
        if not self.weighs or self.restriction is None:
            return None
        running, texts = running_texts(prefixes)
        viable = torch.ones(len(running), dtype=torch.bool)
        if texts:
            viable[running] = self.restriction.viable(texts)
        return torch.where(per_particle(viable, prefixes).all(-1), 0.0, -torch.inf).double()


def running_texts(prefixes: Prefixes) -> tuple[Tensor, list[Ids]]:
    """Which of the texts are still being written, [m * K] bool (a plate holds several), and those, on the host."""
    if prefixes.ids is not None and prefixes.running is not None:
        return prefixes.running.reshape(-1), prefixes.ids
    rows = prefixes.tokens.reshape(-1, prefixes.tokens.shape[-1])
    running = torch.ones(len(rows), dtype=torch.bool) if prefixes.running is None else prefixes.running.reshape(-1)
    return running, [tuple(row) for row in rows[running.to(rows.device)].tolist()]


def per_particle(values: Tensor, prefixes: Prefixes) -> Tensor:
    """[m * K] -> [m, K]"""
    return values.reshape(len(prefixes.log_potential), -1)
