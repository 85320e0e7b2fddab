"""Where a text is cut before its rest is drawn anew: a law over its places, which may depend on the text.

A cut before token c is chosen with probability w_c(x) / sum_b w_b(x). On the way back it is chosen with that of the new
text, which has another length, other words, other entropies after the cut; so the ratio of Metropolis-Hastings has

    w_c(x') / w_c(x)  *  sum_b w_b(x) / sum_b w_b(x')

For uniform cuts that is the ratio of lengths T / T', without which short texts are drawn too often.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.lm.boundaries import boundary_tokens
from ppl_align.lm.completions import Completion


class Cuts(Protocol):
    """``reads_entropy``: it wants the entropy of each next token."""

    reads_entropy: bool

    def weights(self, texts: Completion, entropy: Tensor | None) -> Tensor:
        """w of each place, ``[..., T]``, of texts ``[...]`` of T tokens at most; places behind the last token do not
        count. ``entropy [..., T]``: of each token under the prior before it was drawn, nats."""
        ...


class Uniform:
    """Every token is as likely as any other to be the first that is drawn anew."""

    reads_entropy = False

    def __repr__(self) -> str:
        return "Uniform()"

    def weights(self, texts: Completion, entropy: Tensor | None) -> Tensor:
        return torch.ones(texts.tokens.shape, dtype=torch.float64)


class WordStarts:
    """Before tokens that begin a word (with white space), and before the first and the last."""

    reads_entropy = False

    def __repr__(self) -> str:
        return "WordStarts()"

    def weights(self, texts: Completion, entropy: Tensor | None) -> Tensor:
        tokens, last = texts.tokens.cpu(), (texts.lengths.cpu() - 1).clamp_min(0)
        weights = torch.from_numpy(boundary_tokens(texts.lm, "word"))[tokens].double()
        weights[..., 0] = 1.0
        return weights.scatter(-1, last[..., None], 1.0)


class SentenceEnds:
    """After tokens that end a sentence, and before the first token."""

    reads_entropy = False

    def __repr__(self) -> str:
        return "SentenceEnds()"

    def weights(self, texts: Completion, entropy: Tensor | None) -> Tensor:
        tokens = texts.tokens.cpu()
        ends = torch.from_numpy(boundary_tokens(texts.lm, "sentence"))[tokens].double()
        return torch.cat([torch.ones_like(ends[..., :1]), ends[..., :-1]], -1)


class EntropyJumps:
    """Where the next token has become less certain: w_c = floor + max(0, H_c - H_{c-1}), H_{-1} = 0 (arXiv:2605.30327
    has the idea, and another rule). ``floor``: nats, above zero, so that every place can be chosen."""

    reads_entropy = True

    def __init__(self, floor: float = 0.1) -> None:
        if not floor > 0:
            raise InputError(f"EntropyJumps(floor=...) must be above zero, got {floor}")
        self.floor = floor

    def __repr__(self) -> str:
        return f"EntropyJumps(floor={self.floor:g})"

    def weights(self, texts: Completion, entropy: Tensor | None) -> Tensor:
        assert entropy is not None
        before = torch.cat([torch.zeros_like(entropy[..., :1]), entropy[..., :-1]], -1)
        return self.floor + (entropy - before).clamp_min(0.0)


NAMED: dict[str, Any] = {"uniform": Uniform, "word": WordStarts, "sentence": SentenceEnds, "entropy": EntropyJumps}
