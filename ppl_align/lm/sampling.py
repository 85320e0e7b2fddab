"""Drawing tokens: down a binary tree of sums, a coin for each of its nodes.

A node holds the probability of the tokens below it. A draw starts at the root, which holds them all, and goes to each
child with its share of the node, by a uniform number of its own for each level. What is drawn has the law of a single
inverted CDF, at the price of two sums and some sixteen small steps; and each share is as exact as floating point, where
a CDF over a whole vocabulary leaves rare tokens at its end a few bits.

What it is for: a shift of the log-probabilities by rounding (another batch, another device) by eps moves a share by
about eps, so that a draw changes with a probability of a few eps. Inverting a CDF, the shifts of all tokens before it
move every boundary between two tokens, and there are as many as tokens: a draw then changes tens of times as often.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ppl_align.lm.transfer import upload


class TokenTree:
    """Sums over the tokens of each row of ``logits [rows, V]``, unnormalised log-probabilities.

    Node j of the level with n nodes has the children j and j + n of the level below: levels are halves of one another,
    added up. ``log_total [rows]``: log of the sum over all tokens, so that ``logits - log_total`` is normalised."""

    def __init__(self, logits: Tensor, scratch: Tensor | None = None) -> None:
        """``scratch``: memory for the sums of so many rows or more, from :func:`room_for`."""
        rows, vocab = logits.shape
        highest = logits.amax(-1, keepdim=True)
        self.sums = room_for(logits) if scratch is None else scratch[:rows]
        below = torch.sub(logits, highest, out=self.sums[:, :vocab]).exp_()
        self.starts, self.sizes = [0], [vocab]
        while below.shape[1] > 1:
            start, size = self.starts[-1] + below.shape[1], half_of(below.shape[1])
            nodes, second = self.sums[:, start : start + size], below.shape[1] - size
            torch.add(below[:, :second], below[:, size:], out=nodes[:, :second])
            nodes[:, second:] = below[:, second:size]
            self.starts.append(start)
            self.sizes.append(size)
            below = nodes
        self.log_total = highest[:, 0] + below[:, 0].log()

    @property
    def depth(self) -> int:
        """Levels below the root: uniform numbers that a draw takes."""
        return len(self.sizes) - 1

    def draw(self, row: np.ndarray, u: Tensor) -> Tensor:
        """One token for each particle: ``row [m]``, ``u [m, depth]`` in [0, 1), float64 -> ids ``[m]``.

        Tokens of probability zero are never drawn: a child goes on with the left if u * node < left, strictly.

        >>> tree = TokenTree(torch.tensor([[0.0, 0.0, -torch.inf]]))
        >>> tree.draw(np.array([0, 0]), torch.tensor([[0.0, 0.0], [0.0, 0.9]], dtype=torch.float64)).tolist()
        [0, 1]
        """
        flat = self.sums.view(-1)
        base = upload(row * self.sums.stride(0), u.device)
        at = torch.zeros_like(base)  # the node, within its level
        node = flat.take(base + self.starts[-1])
        for level in range(self.depth - 1, -1, -1):
            first = base + self.starts[level]
            left = flat.take(first + at)
            at = at + (u[:, level] * node >= left) * self.sizes[level + 1]
            node = flat.take(first + at)
        return at


def room_for(logits: Tensor) -> Tensor:
    """Memory for the sums over so many rows and tokens."""
    total = size = logits.shape[1]
    while size > 1:
        size = half_of(size)
        total += size
    return logits.new_empty(logits.shape[0], total)


def half_of(size: int) -> int:
    """The nodes above so many: the larger half, the smallest power of two at least as large as half of it.

    >>> half_of(49152), half_of(5), half_of(2)
    (32768, 4, 1)
    """
    return 1 << ((size + 1) // 2 - 1).bit_length()
