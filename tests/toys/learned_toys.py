"""Learned rewards small enough to enumerate."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_align import completion
from ppl_align.preferences import Belief, Pairs, RewardPosterior
from ppl_align.testing.programs import EOS


def counts(texts) -> Tensor:
    """How many 0 and how many 1 a text of the toy has, and a feature that is always the same."""
    return torch.tensor([[text.count("0"), text.count("1"), 3.0] for text in texts]).reshape(-1, 3)


TOY_PAIRS = Pairs(["1", "1 1", "0 1 1", "1 0", "1 1 1", "0"], ["0", "0 1", "0 0", "0 0 0", "1", "0 0"])
TOY = RewardPosterior.learn(TOY_PAIRS, counts, components=None, prior_scale=1.5)
DRAWS = torch.tensor([[0.9, 1.2, 0.0], [-0.3, 0.8, 0.0], [0.2, -0.4, 0.0], [-1.1, 0.3, 0.0]], dtype=torch.float64)
SAMPLED = RewardPosterior(counts, TOY.scale, Belief(DRAWS.mean(0), DRAWS.T.cov(), DRAWS), "nuts", 1.5, 6)


def program(posterior: RewardPosterior, use: str, k: float = 1.0) -> None:
    x = completion("x", EOS, [], max_new_tokens=3)
    posterior.reward("learned", x, beta=0.8, use=use, k=k)
