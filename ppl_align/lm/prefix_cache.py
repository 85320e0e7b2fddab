"""Caches of texts that have ended, for completions whose prompts go on from them.

The prompt of a second completion often holds the first one: a dialogue, a story and its ending, a question about an
answer. Its tokens up to the end of the first were read when that was written. So the rows of the network's cache at
which texts ended are kept, and a prompt that begins with what one of them holds is read from there on.

Only what stands in a plain cache can be kept (keys and values of every token): recurrent states, windows and networks
that are read anew are not, and neither is more than ``BYTES``. What is not kept is read from its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ppl_align.lm.base import LM, Decoder, Ids
from ppl_align.lm.cached import CausalDecoder
from ppl_align.lm.kept import Kept
from ppl_align.lm.kv_cache import Prefix
from ppl_align.lm.sharing import shared_length

BYTES = 2**30
"""Keys and values that are kept at most."""


class PrefixCache:
    """Rows of one run, by language model and by the ids that they hold."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, Ids], tuple[Kept, int]] = {}
        self.lengths: dict[int, set[int]] = {}
        self.lms: dict[int, LM] = {}  # by the id that they have as long as they are here
        self.prefixes: list[Prefix] = []  # what rows that are kept begin with, each held once
        self.bytes = 0

    def keep(self, lm: LM, decoder: Any, rows: np.ndarray, ids: Sequence[Ids]) -> None:
        """Keep these rows of a decoder, which have read ``ids``; not if they read something else in their place, as
        the network of a prompted LM does."""
        new = [i for i, prefix in enumerate(ids) if (id(lm), prefix) not in self.rows]
        if not new or not isinstance(decoder, CausalDecoder) or decoder.lm is not lm:
            return
        kept = decoder.keep(torch.as_tensor(rows[new]))
        if kept is None or kept.lengths != [len(ids[i]) for i in new]:
            return
        prefix = None if any(kept.prefix is known for known in self.prefixes) else kept.prefix
        size = kept.bytes + (0 if prefix is None else prefix.bytes)
        if self.bytes + size > BYTES:
            return
        self.bytes += size
        self.prefixes += [] if prefix is None else [prefix]
        self.lms[id(lm)] = lm
        for at, i in enumerate(new):
            self.rows[id(lm), ids[i]] = kept, at
            self.lengths.setdefault(id(lm), set()).add(len(ids[i]))

    def start(self, lm: LM, prompts: Sequence[Ids]) -> Decoder:
        """As ``lm.start(prompts)``, from where what is kept of each prompt ends; anew if nothing is kept of one."""
        found = [self._longest(lm, prompt) for prompt in prompts] if id(lm) in self.lms else []
        if not found or any(length == 0 for length in found):
            return lm.start(prompts)
        places = [self.rows[id(lm), prompt[:length]] for prompt, length in zip(prompts, found, strict=True)]
        known = [min(n, len(prompt) - 1) for n, prompt in zip(found, prompts, strict=True)]  # something is read
        common = [prompt[:n] for n, prompt in zip(known, prompts, strict=True)]
        with torch.no_grad():
            shared = shared_length(lm, lm.plan, common)  # type: ignore[arg-type, attr-defined]
        return CausalDecoder.resumed(lm, places, prompts, known, shared)  # type: ignore[arg-type]

    def _longest(self, lm: LM, prompt: Ids) -> int:
        """How many ids of a prompt are kept."""
        for length in sorted(self.lengths[id(lm)], reverse=True):
            if length <= len(prompt) and (id(lm), prompt[:length]) in self.rows:
                return length
        return 0
