"""Is what the cache says what the network says? A few tokens, against forwards without a cache, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_align.errors import UnsupportedModelError
from ppl_align.lm.warp import log_normalise

if TYPE_CHECKING:
    from ppl_align.lm.base import Ids
    from ppl_align.lm.causal import CausalLM

TOLERANCE = 1e-4  # nats a token: float32 rounds to 1e-5
LONGEST_WINDOW = 32  # a sliding window of at most so many tokens is crossed
LIKELY = 64  # tokens a row: far down the vocabulary rounding is larger, and nobody draws there
_MOVES = ([1, 0], [0, 0, 1], [2, 0])  # rows are swapped, repeated, dropped


@torch.no_grad()
def verify_network(lm: CausalLM) -> None:
    """Decode and score a few tokens after prompts of two lengths; nothing is checked in half precision.

    Raises ``UnsupportedModelError`` where a log-probability differs by more than ``TOLERANCE``, or none can be had."""
    if next(lm.model.parameters()).dtype not in (torch.float32, torch.float64):
        return
    name = type(lm.model).__name__
    try:
        decoding, scoring = _decoding_error(lm), _scoring_error(lm)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise UnsupportedModelError(f"{name} cannot be read token by token ({type(error).__name__}: {said})") from error
    for what, differs in (("decoding with a cache", decoding), ("scoring a text at once", scoring)):
        if not differs <= TOLERANCE:
            raise UnsupportedModelError(
                f"{name} is not supported: {what} differs by {differs:.2g} nats a token from forwards without a cache"
            )


def _prompts(lm: CausalLM) -> list[Ids]:
    window = getattr(lm.model.config.get_text_config(), "sliding_window", None)
    longer = window + 2 if isinstance(window, int) and window <= LONGEST_WINDOW else 4
    room = (lm.max_length or longer + 4) - len(_MOVES)
    ids = torch.randint(lm.vocab_size, (longer + 1,), generator=torch.Generator().manual_seed(0)).tolist()
    return [(ids[0],), tuple(ids[1 : 1 + max(1, min(longer, room))])]


class _Alone:
    """What the network says of rows one by one, without a cache: log p of what comes next, ``[V]`` each.

    A causal network says it of every beginning of a row at once; whether it is one, in this, is tried on the way."""

    def __init__(self, lm: CausalLM, rows: list[Ids]) -> None:
        self.lm = lm
        longest = [row for row in set(rows) if not any(other[: len(row)] == row != other for other in rows)]
        self.read = {row: self._forward(row) for row in longest}
        self.causal = all(self._agrees(row, whole) for row, whole in self.read.items())

    def _forward(self, row: Ids) -> Tensor:
        model: Any = self.lm.model
        return log_normalise(model(input_ids=torch.tensor([row], device=self.lm.device), use_cache=False).logits[0])

    def _agrees(self, row: Ids, whole: Tensor) -> bool:
        at = max(1, len(row) // 2)
        return _largest_difference(whole[at - 1 : at], self._forward(row[:at])[-1:]) <= TOLERANCE

    def after(self, rows: list[Ids]) -> Tensor:
        """``[rows, V]``"""
        return torch.stack([self._after(row) for row in rows])

    def _after(self, row: Ids) -> Tensor:
        if not self.causal:
            return self._forward(row)[-1]
        return next(whole[len(row) - 1] for other, whole in self.read.items() if other[: len(row)] == row)


def _decoding_error(lm: CausalLM) -> float:
    rows = _prompts(lm)
    decoder = lm.start(rows)
    decoded, seen = [decoder.log_probs], list(rows)
    for step, parents in enumerate(_MOVES):
        tokens = [(7 * step + i) % lm.vocab_size for i in range(len(parents))]
        decoder = decoder.extend(torch.tensor(parents), torch.tensor(tokens))
        rows = [(*rows[parent], token) for parent, token in zip(parents, tokens, strict=True)]
        decoded.append(decoder.log_probs)
        seen += rows
    return _largest_difference(torch.cat(decoded), _Alone(lm, seen).after(seen))


def _scoring_error(lm: CausalLM) -> float:
    prompts = _prompts(lm)
    tokens = torch.arange(2 * len(_MOVES), device=lm.device).reshape(2, -1) % lm.vocab_size
    scores = lm.token_log_probs(prompts, tokens).flatten()
    rows = [(*p, *t[:i]) for p, t in zip(prompts, tokens.tolist(), strict=True) for i in range(len(t))]
    alone = _Alone(lm, rows).after(rows)
    return float((scores - alone.gather(-1, tokens.flatten()[:, None])[:, 0]).abs().max())


def _largest_difference(found: Tensor, expected: Tensor) -> float:
    """Of the tokens that are likely to be drawn, ``[rows, V]`` each; NaN, which is no agreement, where one is NaN."""
    likely = expected.topk(min(LIKELY, expected.shape[-1]), -1).indices
    return float((found.gather(-1, likely) - expected.gather(-1, likely)).abs().max())
