"""``completion``: the prior, written into a Pyro program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ppl_align.completions import Completion
from ppl_align.errors import InputError
from ppl_align.lm.base import LM
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.text import Texts


def completion(
    name: str,
    lm: LM,
    prompt: Any = "",
    max_new_tokens: int | None = None,
    *,
    obs: str | Sequence[int] | None = None,
    starts_with: str | Sequence[int] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | str | Sequence[int | str] | None = None,
) -> Completion:
    """What the language model writes after ``prompt``; sugar for ``pyro.sample(name, lm.completion(prompt, ...))``.

    ``obs``          the completion *is exactly this* (text or ids): its score, EOS included, becomes a likelihood
    ``starts_with``  the completion *goes on like this*: the score of these tokens under the LM, as a prefix of
                     token ids, becomes a likelihood (whatever comes after is summed out)
    ``max_new_tokens`` defaults to 32, or to the observation's length.

    Returns a :class:`~ppl_align.completions.Completion` with ``.tokens [..., T]``, ``.text`` and ``.lengths``.
    Raises ``InputError`` for values out of range or observations the LM cannot produce.
    """
    warp: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "stop": stop}
    if obs is not None and starts_with is not None:
        raise InputError(
            f"completion {name!r}: give obs= (is exactly this) or starts_with= (goes on like this), not both"
        )
    if obs is None and starts_with is None:
        source = lm.completion(prompt, 32 if max_new_tokens is None else max_new_tokens, **warp)
        return Completion(pyro.sample(name, source), source, site=name)
    observed = _ids(lm, starts_with if obs is None else obs)
    if obs is not None and lm.eos_id is not None and observed[-1:] != (lm.eos_id,):
        fits = max_new_tokens is None or len(observed) < max_new_tokens
        observed = (*observed, lm.eos_id) if fits else observed
    if not observed:
        raise InputError(f"completion {name!r}: the observation is empty")
    if max_new_tokens is not None and len(observed) > max_new_tokens:
        raise InputError(
            f"completion {name!r}: the observation has {len(observed)} tokens, more than "
            f"max_new_tokens={max_new_tokens}"
        )
    length = len(observed) if obs is None or max_new_tokens is None else max_new_tokens
    source = lm.completion(prompt, length, **warp)
    row = torch.full((length,), source.pad_id, dtype=torch.long, device=lm.device)
    row[: len(observed)] = torch.tensor(observed, device=lm.device)
    return Completion(_observe(name, source, row), source, site=name)


def _observe(name: str, source: CompletionDistribution, row: Tensor) -> Tensor:
    value = row.expand(*source.batch_shape, len(row))
    if not am_i_wrapped():  # run by hand, outside any inference: there is nobody to tell
        return value
    return pyro.sample(name, source, obs=value)


def _ids(lm: LM, observed: Any) -> tuple[int, ...]:
    if isinstance(observed, str):
        return tuple(lm.encode(observed))
    return tuple(int(i) for i in observed)


def choose(index: Tensor, options: Sequence[str]) -> Any:
    """The option that a categorical latent picked, for every particle: ``index [...] -> Texts [...]`` (or a ``str``).

    >>> choose(torch.tensor([1, 0]), ["cats", "dogs"]).tolist()
    ['dogs', 'cats']
    """
    picked = [options[int(i)] for i in index.reshape(-1).tolist()]
    return Texts(picked, index.shape) if index.dim() else picked[0]
