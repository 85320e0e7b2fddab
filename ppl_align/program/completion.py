"""``completion``: the prior, written into a Pyro program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.core.text import Texts
from ppl_align.lm.base import LM, Ids
from ppl_align.lm.completions import Completion, sequence_lengths
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.tree import as_sequence


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

    ``obs``          the completion *is exactly this* (text or ids): its score, EOS included, becomes a likelihood.
                     EOS (``lm.eos_id``) is put at its end where there is room for it and no other is written; a stop
                     token is part of a text
    ``starts_with``  the completion *goes on like this*: the score of these tokens under the LM, as a prefix of
                     token ids, becomes a likelihood (whatever comes after is summed out: no constraint can see it)
    ``max_new_tokens`` defaults to 32, or to the observation's length.

    Returns a :class:`~ppl_align.lm.completions.Completion` with ``.tokens [..., T]``, ``.text`` and ``.lengths``.
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
    observed = _ids(name, lm, starts_with if obs is None else obs)
    unsaid = obs is not None and lm.eos_id is not None and not set(observed[-1:]) & set(lm.eos_ids)
    if not observed and not unsaid:
        raise InputError(f"completion {name!r}: the observation is empty")
    if max_new_tokens is not None and len(observed) > max_new_tokens:
        raise InputError(
            f"completion {name!r}: the observation has {len(observed)} tokens, more than "
            f"max_new_tokens={max_new_tokens}"
        )
    length = len(observed) + unsaid if obs is None or max_new_tokens is None else max_new_tokens
    source = lm.completion(prompt, length, **warp)
    observed = _up_to_its_end(name, source, observed)
    if obs is not None:
        observed = _whole(name, source, observed)
    row = torch.full((length,), source.pad_id, dtype=torch.long, device=lm.device)
    row[: len(observed)] = torch.tensor(observed, device=lm.device)
    return Completion(_observe(name, source, row), source, site=name, beginning=obs is None)


def _up_to_its_end(name: str, source: CompletionDistribution, observed: Ids) -> Ids:
    """Without padding, if it is padded; nothing else follows the end of a text."""
    end = int(sequence_lengths(torch.tensor(observed, dtype=torch.long), source.terminal)) - 1
    if any(v != source.pad_id for v in observed[end + 1 :]):
        raise InputError(f"completion {name!r}: the observation goes on after token {observed[end]}, which ends it")
    return observed[: end + 1]


def _whole(name: str, source: CompletionDistribution, observed: Ids) -> Ids:
    """The text that says exactly this. Padding must not end it: it would be scored as something that was written."""
    whole = as_sequence(source, observed)
    if not whole:
        end = "a stop token" if source.can_end else "EOS"
        raise InputError(
            f"completion {name!r}: no text ends as the observation does, after {len(observed)} of max_new_tokens="
            f"{source.max_new_tokens} tokens without {end}: give max_new_tokens={len(observed)}, or starts_with= if "
            f"more may follow"
        )
    return whole


def _observe(name: str, source: CompletionDistribution, row: Tensor) -> Tensor:
    value = row.expand(*source.batch_shape, len(row))
    if not am_i_wrapped():  # run by hand, outside any inference: there is nobody to tell
        return value
    return pyro.sample(name, source, obs=value)


def _ids(name: str, lm: LM, observed: Any) -> Ids:
    try:
        ids = tuple(lm.encode(observed)) if isinstance(observed, str) else tuple(int(i) for i in observed)
    except (TypeError, ValueError):
        raise InputError(f"completion {name!r}: an observation is one text or token ids, got {observed!r}") from None
    wrong = [i for i in ids if not 0 <= i < lm.vocab_size]
    if wrong:
        raise InputError(
            f"completion {name!r}: token id {wrong[0]}, but those of {lm.name} run from 0 to {lm.vocab_size - 1}"
        )
    return ids


def choose(index: Tensor, options: Sequence[str]) -> Any:
    """The option that a categorical latent picked, for every particle: ``index [...] -> Texts [...]`` (or a ``str``).

    >>> choose(torch.tensor([1, 0]), ["cats", "dogs"]).tolist()
    ['dogs', 'cats']

    Raises ``InputError`` for an option that is no text, and for an index that is none of theirs.
    """
    for option in options:
        if not isinstance(option, str):
            raise InputError(
                f"choose picks one of several texts, and {option!r} is none: of token ids of one length write "
                "torch.tensor(options)[index]"
            )
    picked = [options[_place(i, len(options))] for i in index.reshape(-1).tolist()]
    return Texts(picked, index.shape) if index.dim() else picked[0]


def _place(index: float, count: int) -> int:
    """An index into the options, which does not count from the end."""
    if index not in range(count):
        raise InputError(f"choose has {count} options, numbered from 0 to {count - 1}, and none is number {index!r}")
    return int(index)
