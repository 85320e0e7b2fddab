"""A network of the zoo, held against itself without a cache: rows that move while they are decoded, texts scored."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.errors import UnsupportedModelError
from ppl_align.lm.agreement import TOLERANCE
from ppl_align.lm.base import Decoder, Ids
from ppl_align.lm.cached import CausalDecoder
from ppl_align.lm.causal import CausalLM
from ppl_align.lm.plan import CACHE, Plan
from ppl_align.lm.sharing import agrees, can_share, can_try
from ppl_align.lm.verified import fingerprint
from ppl_align.lm.verify import measured_plan

STEPS = 6
_PROMPTS = (1, 3, 7)  # tokens
_COMMON = 5


@dataclass(frozen=True)
class Held:
    """``plan``: how it is read (``"refused"``: not at all). ``off``: the largest difference, nats a token, in float32.
    ``said``: the refusal, or the warning. ``limit``: longest text that is read with the cache; None: any. ``shares``:
    is what all prompts begin with held once, where it is long?"""

    kind: str
    plan: str
    off: float
    said: str = ""
    limit: int | None = None
    shares: bool = False


def hold(model: Any) -> Held:
    """Make a prior of a network, decode and score with it, and compare with the plain network, row by row."""
    kind = type(model).__name__
    with warnings.catch_warnings(record=True, action="always") as heard:
        try:
            lm = CausalLM(model)
        except UnsupportedModelError as error:
            return Held(kind, "refused", 0.0, str(error))
    said = " ".join(str(w.message) for w in heard if issubclass(w.category, UserWarning))
    shares = lm.plan.kind == CACHE and lm.plan.limit is None and can_share(lm)
    off = max(decoding_error(lm), scoring_error(lm), *([decoding_error(lm, common=_COMMON)] if shares else []))
    return Held(kind, lm.plan.kind, off, said, lm.plan.limit, shares)


@torch.no_grad()
def decoding_error(lm: CausalLM, steps: int = STEPS, common: int = 0) -> float:
    """Nats a token: rows after prompts of three lengths are drawn anew at every step, some twice and some not.

    ``common``: so many tokens more, which all begin with, are held once."""
    chance = torch.Generator().manual_seed(5)
    begin = _draw(lm, common, chance)
    rows: list[Ids] = [(*begin, *_draw(lm, size, chance)) for size in _PROMPTS]
    seen = list(rows)
    decoder: Decoder = CausalDecoder.after(lm, rows, shared=common) if common else lm.start(rows)
    found = [decoder.log_probs]
    parents = torch.arange(len(rows)).repeat_interleave(2)
    for _ in range(steps):
        tokens = _draw(lm, len(parents), chance)
        decoder = decoder.extend(parents, torch.tensor(tokens))
        found.append(decoder.log_probs)
        rows = [(*rows[parent], token) for parent, token in zip(parents.tolist(), tokens, strict=True)]
        seen += rows
        parents = torch.randint(len(rows), (3,), generator=chance)
    return float((torch.cat(found) - alone(lm.model, seen)).abs().nan_to_num(float("inf")).max())


@torch.no_grad()
def scoring_error(lm: CausalLM, steps: int = STEPS) -> float:
    """Nats a token: one prompt twice and another, of another length."""
    chance = torch.Generator().manual_seed(6)
    first, second = tuple(_draw(lm, 2, chance)), tuple(_draw(lm, 5, chance))
    prompts = [first, second, first]
    tokens = torch.tensor([_draw(lm, steps, chance) for _ in prompts])
    rows = [(*p, *t[:i]) for p, t in zip(prompts, tokens.tolist(), strict=True) for i in range(steps)]
    scores = lm.token_log_probs(prompts, tokens).flatten()
    expected = alone(lm.model, rows).gather(-1, tokens.flatten()[:, None])[:, 0]
    return float((scores - expected).abs().nan_to_num(float("inf")).max())


@torch.no_grad()
def alone(model: Any, rows: Sequence[Ids]) -> Tensor:
    """log p of what comes after each row, ``[rows, V]``: the plain network, one row at a time, nothing before it.

    A row that begins others is read within the longest of them, if that turns out to be the same."""
    ends = [row for row in set(rows) if not any(len(other) > len(row) and other[: len(row)] == row for other in rows)]
    read = {row: _forward(model, row) for row in ends}
    first = max(ends, key=len)
    begin = first[: len(first) // 2]
    if float((read[first][len(begin) - 1] - _forward(model, begin)[-1]).abs().max()) > 1e-5:
        return torch.stack([_forward(model, row)[-1] for row in rows])
    within = {end[: n + 1]: log_p for end, whole in read.items() for n, log_p in enumerate(whole)}
    return torch.stack([within[row] for row in rows])


def _forward(model: Any, row: Ids) -> Tensor:
    """``[n, V]``. Rotary embeddings that remember what they have read are made anew."""
    for module in model.modules():
        if "dynamic" in str(getattr(module, "rope_type", "")):
            module.__init__(module.config)
    ids = torch.tensor([row])
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    except TypeError:
        logits = model(input_ids=ids).logits
    return logits[0].double().log_softmax(-1)


def _draw(lm: CausalLM, size: int, chance: torch.Generator) -> list[int]:
    return torch.randint(lm.vocab_size, (size,), generator=chance).tolist()


def fingerprint_if_right(model: Any) -> tuple[str, bool] | None:
    """What :mod:`ppl_align.lm.verified` remembers of a network that is right with its cache at any length: what it is,
    and whether it holds what all rows begin with once."""
    lm = CausalLM(model, verify=False)
    plan = measured_plan(lm)
    if plan != Plan() or max(decoding_error(lm), scoring_error(lm)) >= TOLERANCE:
        return None
    shares = can_try(lm) and agrees(lm)
    return fingerprint(model), shares and decoding_error(lm, common=_COMMON) < TOLERANCE
