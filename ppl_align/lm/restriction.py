"""Where proposals may go: the next tokens after which a completion can still become acceptable.

A restriction never changes the prior. It confines what particles are *drawn* from, and the weight p0 / q pays for it.

It reads ids on the host, those that a step of decoding brings back anyway, and makes its masks on the device: nothing
here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.lm.base import Ids
from ppl_align.lm.decoding import Rows
from ppl_align.lm.leaning import Leaning
from ppl_align.lm.matcher import Matcher
from ppl_align.lm.stopping import StopText
from ppl_align.lm.transfer import Resident, upload

if TYPE_CHECKING:
    from ppl_align.lm.distribution import CompletionDistribution

_FEW = 64  # stop tokens that are tried one by one: each ends the text, so the text must be acceptable with it


class Restriction:
    """Several constraints on one completion, ``source``.

    ``stop_ids``: tokens that end it; ``eos_ids`` end it too and are no part of its text. ``device``: where masks go.
    ``silent``: special tokens, which are no part of the text that they end."""

    def __init__(self, matchers: Sequence[Matcher], source: CompletionDistribution) -> None:
        lm = source.lm
        self.matchers, self.device, self.eos_ids = tuple(matchers), lm.device, lm.eos_ids
        self.max_new_tokens, self.stop_ids = source.max_new_tokens, source.stop_ids
        self.silent = {stop for stop in self.stop_ids if stop in lm.special_tokens}
        few = len(self.stop_ids) <= _FEW
        tried = [stop for stop in self.stop_ids if stop not in lm.eos_ids and (few or stop in self.silent)]
        self.tried = Resident(torch.tensor(tried, dtype=torch.long))
        self.wordless = Resident(torch.tensor([stop in self.silent for stop in tried], dtype=torch.bool))

    def allowed(self, prefixes: Sequence[Ids]) -> Tensor:
        """``[m, V]`` bool, on the device: what may come next after running prefixes of one length."""
        left = self.max_new_tokens - len(prefixes[0]) - 1
        mask = self.matchers[0].allowed(prefixes, left, self.device)
        for matcher in self.matchers[1:]:
            mask = mask & matcher.allowed(prefixes, left, self.device)
        stops = self.tried.host.tolist()
        if stops:
            ends = self.accepts([(*prefix, stop) for prefix in prefixes for stop in stops])
            tried, ends = self.tried.on(self.device), upload(ends.reshape(len(prefixes), -1), self.device)
            mask[:, tried] = ends & (self.wordless.on(self.device) | mask[:, tried])
        return mask if self.stop_ids.text is None else self._ends_well(mask, prefixes, self.stop_ids.text)

    def _ends_well(self, mask: Tensor, prefixes: Sequence[Ids], text: StopText) -> Tensor:
        """Without tokens that complete a stop string where the text is not acceptable, as far as few enough do."""
        known = self.silent.union(self.eos_ids)
        pairs = [(i, v) for i, prefix in enumerate(prefixes) for v in text.ends(prefix) if v not in known]
        if not pairs or len(pairs) > _FEW * len(prefixes):
            return mask
        ends = self.accepts([(*prefixes[i], v) for i, v in pairs])
        row, token = (torch.tensor(part) for part in zip(*pairs, strict=True))
        allowed = torch.ones(mask.shape, dtype=torch.bool)
        allowed[row, token] = ends
        return mask & upload(allowed, self.device)

    def accepts(self, texts: Sequence[Ids]) -> Tensor:
        """``[m]`` bool: finished texts (ids without EOS)."""
        if self.silent:
            texts = [text[:-1] if text and text[-1] in self.silent else text for text in texts]
        return torch.stack([matcher.accepts(texts) for matcher in self.matchers]).all(0)

    def viable(self, prefixes: Sequence[Ids]) -> Tensor:
        """``[m]`` bool: unfinished texts of one length; a dead end is not viable."""
        left = self.max_new_tokens - len(prefixes[0]) if prefixes else 0
        return torch.stack([matcher.viable(prefixes, left) for matcher in self.matchers]).all(0)

    proposes = True
    by_ids = True

    def leaning(self, rows: Rows) -> Leaning:
        """What particles are drawn from is confined to what is allowed."""
        assert rows.ids is not None
        return Leaning(allowed=self.allowed(rows.ids))
