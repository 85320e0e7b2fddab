"""Exact policy gradients over a table: one logit per completion, so that no sampling noise is left to blame."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def vanilla(log_q: Tensor, r: Tensor) -> Tensor:
    """The gradient of E_q[r] in the logits of q = softmax(logits): q (r - E_q r), [S]."""
    q = log_q.exp()
    return q * (r - q @ r)


def fisher(log_q: Tensor) -> Tensor:
    """The Fisher matrix of those logits, diag(q) - q q^T, [S, S]; its null vector 1 shifts all logits alike."""
    q = log_q.exp()
    return q.diag() - torch.outer(q, q)


def natural(r: Tensor) -> Tensor:
    """fisher^-1 vanilla, [S] (Kakade 2001): r itself, up to a constant, since fisher @ r = q (r - E_q r)."""
    return r - r.mean()


def flat(parts: Iterable[Tensor]) -> Tensor:
    """A gradient in several pieces as one vector."""
    return torch.cat([part.reshape(-1) for part in parts])
