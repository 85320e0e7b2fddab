"""Draws from a tree of sums: the law, tokens of probability zero, and how little rounding moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SEED
from scipy.stats import chisquare

from ppl_align.lm.sampling import TokenTree, half_of, room_for


@pytest.mark.parametrize("vocab", [1, 2, 3, 5, 7, 64, 100])
def test_the_law(vocab: int) -> None:
    generator = torch.Generator().manual_seed(SEED)
    logits = torch.randn(3, vocab, generator=generator) * 2
    if vocab > 2:
        logits[0, vocab // 2] = logits[1, -1] = logits[2, 0] = -torch.inf
    tree, draws = TokenTree(logits), 50_000
    u = torch.rand(3 * draws, tree.depth, generator=generator, dtype=torch.float64)
    drawn = tree.draw(np.arange(3).repeat(draws), u).reshape(3, draws)
    assert torch.allclose(tree.log_total, logits.logsumexp(-1), atol=1e-5)
    for ids, p in zip(drawn, logits.double().softmax(-1), strict=True):
        counts = torch.bincount(ids, minlength=vocab).double()
        assert len(counts) == vocab
        assert not counts[p == 0].any()
        likely = p * draws > 5
        expected = torch.cat([p[likely], p[~likely].sum()[None]]) * draws
        found = torch.cat([counts[likely], counts[~likely].sum()[None]])
        if len(expected) > 2:
            keep = expected > 0
            assert chisquare(found[keep], expected[keep] * draws / expected.sum()).pvalue > 1e-4


def test_every_token_has_its_interval() -> None:
    """On a grid of all coins, each token is drawn as often as its probability says: to the last one."""
    logits = torch.tensor([[1.0, 2.0, 3.0, 0.0, 2.0]]).log()
    tree, steps = TokenTree(logits), 24
    grid = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    u = torch.cartesian_prod(*[grid] * tree.depth)
    counts = torch.bincount(tree.draw(np.zeros(len(u), dtype=np.int64), u), minlength=5)
    assert torch.allclose(counts / len(u), torch.tensor([1.0, 2.0, 3.0, 0.0, 2.0]) / 8, atol=0.02)


def test_the_ends_of_the_interval_draw_no_impossible_token() -> None:
    logits = torch.full((1, 6), -torch.inf)
    logits[0, [1, 4]] = torch.tensor([0.0, -20.0])
    tree = TokenTree(logits)
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    drawn = tree.draw(np.zeros(2**tree.depth, dtype=np.int64), torch.cartesian_prod(*[ends] * tree.depth))
    assert set(drawn.tolist()) <= {1, 4}


def test_scratch_memory_of_an_earlier_step() -> None:
    first, second = torch.randn(4, 9), torch.randn(2, 9)
    scratch = room_for(first)
    TokenTree(first, scratch)
    u = torch.rand(20, 4, dtype=torch.float64)
    row = np.arange(20) % 2
    assert torch.equal(TokenTree(second, scratch).draw(row, u), TokenTree(second).draw(row, u))
    assert [half_of(n) for n in (2, 3, 4, 5, 9)] == [1, 2, 2, 4, 8]


def test_rounding_moves_few_draws() -> None:
    """Log-probabilities that differ by 1e-4 in each token, as half precision does: a draw changes with a probability
    of that size. An inverted CDF over as many tokens changes a hundred times as often."""
    generator = torch.Generator().manual_seed(SEED)
    logits = torch.randn(1, 50_000, generator=generator) * 3
    moved = logits + 1e-4 * torch.randn(logits.shape, generator=generator)
    draws = 400_000
    one, other = TokenTree(logits), TokenTree(moved)
    u = torch.rand(draws, one.depth, generator=generator, dtype=torch.float64)
    row = np.zeros(draws, dtype=np.int64)
    changed = float((one.draw(row, u) != other.draw(row, u)).double().mean())
    by_cdf = [p.double().softmax(-1).cumsum(-1)[0] for p in (logits, moved)]
    first, second = (torch.searchsorted(cdf, u[:, 0].contiguous()) for cdf in by_cdf)
    assert changed < 2e-4
    assert changed < 0.1 * float((first != second).double().mean())
