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
    for what, error in (("decoding with a cache", decoding), ("scoring a text at once", scoring)):
        if not error <= TOLERANCE:
            raise UnsupportedModelError(
                f"{name} is not supported: {what} differs by {error:.2g} nats a token from the network without a cache"
            )


def _prompts(lm: CausalLM) -> list[Ids]:
    window = getattr(lm.model.config.get_text_config(), "sliding_window", None)
    longer = window + 2 if isinstance(window, int) and window <= LONGEST_WINDOW else 4
    room = (lm.max_length or longer + 4) - len(_MOVES)
    ids = torch.randint(lm.vocab_size, (longer + 1,), generator=torch.Generator().manual_seed(0)).tolist()
    return [(ids[0],), tuple(ids[1 : 1 + max(1, min(longer, room))])]


def _alone(lm: CausalLM, row: Ids) -> Tensor:
    """log p of what comes after ``row``, ``[V]``: one forward, no cache."""
    ids = torch.tensor([row], device=lm.device)
    model: Any = lm.model
    return log_normalise(model(input_ids=ids, use_cache=False).logits[0, -1])


def _decoding_error(lm: CausalLM) -> float:
    rows = _prompts(lm)
    decoder = lm.start(rows)
    worst = _largest(decoder.log_probs - torch.stack([_alone(lm, row) for row in rows]))
    for step, parents in enumerate(_MOVES):
        tokens = [(7 * step + i) % lm.vocab_size for i in range(len(parents))]
        decoder = decoder.extend(torch.tensor(parents), torch.tensor(tokens))
        rows = [(*rows[parent], token) for parent, token in zip(parents, tokens, strict=True)]
        found = _largest(decoder.log_probs - torch.stack([_alone(lm, row) for row in rows]))
        worst = found if not found <= worst else worst
    return worst


def _scoring_error(lm: CausalLM) -> float:
    prompts = _prompts(lm)
    tokens = torch.arange(2 * len(_MOVES), device=lm.device).reshape(2, -1) % lm.vocab_size
    scores = lm.token_log_probs(prompts, tokens)
    texts = [[(*p, *t[:i]) for i in range(len(t))] for p, t in zip(prompts, tokens.tolist(), strict=True)]
    alone = torch.stack([torch.stack([_alone(lm, row) for row in text]) for text in texts])
    return _largest(scores - alone.gather(-1, tokens[..., None])[..., 0])


def _largest(difference: Tensor) -> float:
    """Infinities that agree leave NaN, and NaN counts as different."""
    return float(difference.abs().max())
