"""What a linear reward sees of a text: numbers from a frozen network, put on a common scale by the training pairs.

A Bayesian reward is linear in its features, so they carry all that it can know. Raw embeddings have hundreds of
dimensions on scales of their own; a few hundred comparisons speak about a few dozen directions at most. :class:`Scale`
centres the features at the average training text and either standardises each, or keeps the first k principal
components. Then the k x k covariance is well conditioned, NUTS mixes, and one prior scale means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppl_align.core.errors import InputError, RewardError
from ppl_align.lm.causal import CausalLM
from ppl_align.lm.network import call, what_enters
from ppl_align.lm.plan import CACHE
from ppl_align.rewards.embedding import Embedder

Features = Callable[[Sequence[str]], Tensor]
"""``f(texts) -> [n, d]``, a fixed function of each text."""


Embedding = Embedder
"""Sentence embeddings by the packaged all-MiniLM-L6-v2: ``Embedding()(texts) -> [n, 384]``, offline."""


@dataclass(frozen=True)
class LMFeatures:
    """``f(texts) -> [n, d]``: mean of the last hidden states of a frozen ``CausalLM`` over the tokens of a text.

    ``batch_size``  texts per forward

    The hidden state is what enters the unembedding. The empty text gets zeros. Texts longer than the model reads
    lose their end. Two of one LM are equal.
    """

    lm: CausalLM
    batch_size: int = 32

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        rows = [self.lm.begin(self.lm.encode(text))[: self.lm.max_length] if text else () for text in texts]
        found = torch.zeros(len(rows), self.lm.hidden_size or 0)
        order = sorted((i for i, row in enumerate(rows) if row), key=lambda i: len(rows[i]))
        for first in range(0, len(order), self.batch_size):
            chunk = order[first : first + self.batch_size]
            found[chunk] = self._forward([rows[i] for i in chunk])
        return found

    def _forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        self.lm.follow()
        width = max(map(len, rows))
        if self.lm.plan.kind != CACHE or self.lm.plan.anew(width):
            return torch.stack([self._alone(row) for row in rows])
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self.lm.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.lm.device)
        with what_enters(self.lm.unembedding) as seen:
            self.lm.model(input_ids=ids, attention_mask=mask)
        hidden = seen[0].float()
        return ((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).cpu()

    def _alone(self, row: Sequence[int]) -> Tensor:
        """Of a network that padding, or other texts beside it, would mislead."""
        return call(self.lm, torch.tensor([list(row)], device=self.lm.device), len(row))[1][0].float().mean(0).cpu()


@dataclass(frozen=True, eq=False)
class Remembered:
    """``features`` that are asked about each text only once, as long as this object lives."""

    features: Features
    _known: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, evaluate_features(self.features, new), strict=True))
        return torch.stack([self._known[text] for text in texts])


@dataclass(frozen=True, eq=False)
class Scale:
    """``phi = (raw - centre) @ projection``: raw features ``[n, d]`` -> ``[n, k]``, float64.

    The average training text has phi = 0. A constant reward cannot be learned from comparisons, nor does it matter."""

    centre: Tensor
    projection: Tensor

    def __call__(self, raw: Tensor) -> Tensor:
        return (raw - self.centre) @ self.projection

    @classmethod
    def fit(cls, raw: Tensor, components: int | None) -> Scale:
        """From the features of the training texts ``[n, d]``.

        ``components=None``: each feature divided by its standard deviation (one that is constant becomes 0).
        ``components=k``: the k directions of largest variance (all there are, if fewer), in their proportions, so that
        directions in which texts hardly differ are taken to matter little. Either way the average ``|phi|^2`` is 1:
        a prior ``w ~ Normal(0, s^2 I)`` gives r a standard deviation of s, whatever k is.
        """
        centre = raw.mean(0)
        centred = raw - centre
        spread = centred.std(0, correction=0)
        varies = spread > 1e-9 * raw.abs().max()
        if not bool(varies.any()):
            raise InputError("the features are the same for all training texts: they cannot tell a better one")
        if components is None:
            each = torch.where(varies, 1 / torch.where(varies, spread, 1.0), 0.0)
            return cls(centre, torch.diag(each) / varies.sum().sqrt())
        if isinstance(components, bool) or not isinstance(components, int) or components < 1:
            raise InputError(f"components must be a whole number of at least 1, or None, got {components!r}")
        _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
        kept = min(components, int((singular > 1e-9 * singular[0]).sum()))
        return cls(centre, _signed(directions[:kept]).T / (singular[:kept].square().sum() / len(raw)).sqrt())


def _signed(directions: Tensor) -> Tensor:
    """Rows with their largest entry positive: an SVD leaves the sign open."""
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * largest.sign()


def evaluate_features(features: Features, texts: Sequence[str]) -> Tensor:
    """``[n, d]`` float64 on the CPU, distinct texts asked once; one line for a feature function that misbehaves."""
    distinct = list(dict.fromkeys(texts))
    name = getattr(features, "__name__", type(features).__name__)
    found = features(distinct) if distinct else torch.zeros(0, 0)
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(distinct) or found.shape[1] == 0:
        got = f"shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"features {name}: f(texts) returns a tensor [n, d], got {got} for n={len(distinct)} texts")
    found = found.detach().to("cpu", torch.float64)
    bad = (~found.isfinite()).any(-1).nonzero()
    if len(bad):
        text = distinct[int(bad[0])]
        raise RewardError(f"features {name} are NaN or infinite for the text {text[:80]!r}")
    number = {text: i for i, text in enumerate(distinct)}
    return found[[number[text] for text in texts]]
