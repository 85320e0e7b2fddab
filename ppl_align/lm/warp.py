"""Temperature, top-k and top-p: part of the *declared* prior, so sampling and scoring share one definition."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from ppl_align.core.errors import InputError


def log_normalise(logits: Tensor) -> Tensor:
    """log softmax over the last dimension, in float32 or better.

    ``logits - logsumexp`` rather than ``log_softmax``: over 49,152 tokens the fused CPU kernel sums in float32
    one lane after the other and is off by 1e-5 nats per token, which is more than all the rest of the network.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits - logits.logsumexp(-1, keepdim=True)


@dataclass(frozen=True)
class Warp:
    """A map from next-token log-probabilities to next-token log-probabilities, normalised again.

    Order: temperature, then top-k, then top-p (the order of ``transformers``). Ties at the top-k boundary
    are all kept; top-p keeps the smallest set whose mass reaches ``top_p``, the token that crosses it included.

    Shapes: ``[..., V] -> [..., V]``, nats. Raises :class:`InputError` for values out of range.

    >>> Warp(top_k=1)(torch.tensor([0.6, 0.3, 0.1]).log()).exp().tolist()
    [1.0, 0.0, 0.0]
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        for name, kind in (("temperature", Real), ("top_k", Integral), ("top_p", Real)):
            given = getattr(self, name)
            if isinstance(given, Tensor) and given.dim() == 0:
                given = given.item()
                object.__setattr__(self, name, given)
            if (given is None and name != "temperature") or (isinstance(given, kind) and not isinstance(given, bool)):
                continue
            what = f"a tensor of shape {list(given.shape)}" if isinstance(given, Tensor) else repr(given)
            drawn = "; what may be drawn is an exponent of the whole text, power(name, x, alpha)"
            raise InputError(
                f"{name} must be a {'whole ' if kind is Integral else ''}number, one for all texts, got {what}"
                f"{drawn if isinstance(given, Tensor) else ''}"
            )
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature must be positive and finite, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be in (0, 1], got {self.top_p}")

    @property
    def is_identity(self) -> bool:
        return self.temperature == 1.0 and self.top_k is None and self.top_p in (None, 1.0)

    @property
    def cuts(self) -> bool:
        """Does it leave out tokens that are improbable (top-k, top-p)? Which ones depends on the prefix."""
        return self.top_k is not None or self.top_p not in (None, 1.0)

    def propose(self, log_q: Tensor, inside: Tensor | None) -> Tensor:
        """What another LM proposes for a prior with this warp: its ``log_q [..., V]``, at the prior's temperature, on
        ``inside [..., V]``, the tokens that the prior can write (None: all), normalised again.

            q(v) ∝ q_lm(v)^(1 / temperature)  where p0(v) > 0,      0 elsewhere

        Top-k and top-p are the prior's to apply: a top set of q's own may miss some of the prior's, and what is never
        drawn no weight brings back. Where q_lm has nothing inside, q is uniform there."""
        logits = log_q if self.temperature == 1.0 else log_q / self.temperature
        if inside is None:
            return log_normalise(logits)
        confined = logits.masked_fill(~inside, -torch.inf)
        nothing = confined.isneginf().all(-1, keepdim=True)
        return log_normalise(confined.masked_fill(nothing & inside, 0.0))

    def __call__(self, log_probs: Tensor) -> Tensor:
        if self.is_identity:
            return log_probs
        logits = log_probs / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        if self.top_p is not None and self.top_p < 1.0:
            ordered, order = log_normalise(logits).sort(dim=-1, descending=True)
            mass_before = ordered.exp().cumsum(-1) - ordered.exp()
            drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, mass_before >= self.top_p)
            logits = logits.masked_fill(drop, -torch.inf)
        return log_normalise(logits)
