"""How exact log p is: in half precision, a text scored as it was drawn and scored again are two numbers.

Both are log-probabilities of the network, rounded in other places (the cache, the batch, the shape of the products).
Each run weighs its particles by one of them; the difference is what its weights are uncertain by. In float32 it is too
small to matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ppl_align.core.runs import on_run_end
from ppl_align.lm.base import LM

if TYPE_CHECKING:
    from ppl_align.lm.causal import CausalLM

HALF = (torch.bfloat16, torch.float16)
_ROWS, _TOKENS = 32, 32


def half_precision(lm: CausalLM) -> torch.dtype | None:
    """The half precision that a network computes in, if it does."""
    return next((weight.dtype for weight in lm.model.parameters() if weight.dtype in HALF), None)


@torch.no_grad()
def measured_error(lm: CausalLM) -> float:
    """Root mean square, nats a token, of log p while drawing against log p of the same texts scored at once."""
    from ppl_align.lm.decoding import Population

    if half_precision(lm) is None:
        return 0.0
    ids = torch.randint(lm.vocab_size, (4,), generator=torch.Generator().manual_seed(1)).tolist()
    room = _TOKENS if lm.max_length is None else min(_TOKENS, lm.max_length - len(ids) - len(lm.opening))
    if room < 1:
        return 0.0
    source = lm.completion(ids, room).expand([_ROWS])
    drawn = Population(source, generator=torch.Generator(lm.device).manual_seed(0)).run()
    lengths = (~source.ended_before(drawn.tokens)).sum(-1)
    off = drawn.log_p - source.log_prob(drawn.tokens).double()
    return float((off.square() / lengths).mean().sqrt())


class _Stated:
    """The remark on a run whose log p is rounded; ``longest``: tokens of a text."""

    def __init__(self, lm: CausalLM) -> None:
        self.lm, self.longest = lm, 0

    def __call__(self) -> str | None:
        tokens = self.longest  # measuring draws texts, too
        error, dtype = self.lm.log_prob_error, half_precision(self.lm)
        if not error or not tokens:
            return None
        kind = str(dtype).removeprefix("torch.")
        return f"log p is off by about {error * tokens**0.5:.2g} nats a text ({kind})"


def state_precision(lm: LM, tokens: int) -> None:
    """Texts of up to ``tokens`` tokens are drawn or scored in this run: what half precision makes of their log p, the
    run says at its end. Of a product or mixture, each of its LMs says it."""
    for part in (*getattr(lm, "lms", ()), *filter(None, [getattr(lm, "lm", None)])):
        state_precision(part, tokens)
    base: Any = getattr(lm, "_base", None)
    if base is None or half_precision(lm) is None:  # type: ignore[arg-type]
        return
    stated = on_run_end(("precision", base), lambda: _Stated(lm))  # type: ignore[arg-type]
    if stated is not None:
        stated.longest = max(stated.longest, tokens)
