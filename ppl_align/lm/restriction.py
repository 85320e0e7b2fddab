"""Where proposals may go: the next tokens after which a completion can still become acceptable.

A restriction never changes the prior. It confines what particles are *drawn* from, and the weight p0 / q pays for it.
Most constraints say of every token whether it may come next: a mask. Those that are tests of text are asked about
tokens that were drawn (:mod:`ppl_align.lm.adaptive_rejection`), by whoever can do with an estimate of p0 / q.

It reads ids on the host, those that a step of decoding brings back anyway, and makes its masks on the device: nothing
here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.core.runs import on_run_end, remembered
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
    ``silent``: special tokens, which are no part of the text that they end. ``masks``, ``tests``: the parts of the
    constraints that say of every token whether it may come next, and those that are asked about drawn ones.
    ``ruled_out``: what tests have said no to so far, by the prefix that it was to follow."""

    def __init__(self, matchers: Sequence[Matcher], source: CompletionDistribution, tests: bool = False) -> None:
        """``tests``: whoever draws can do with an estimate of p0 / q; else tests of text act at the end."""
        lm = source.lm
        parts = [part for matcher in matchers for part in matcher.parts]
        self.masks = tuple(part for part in parts if part.acts == "mask")
        self.tests = tuple(part for part in parts if part.acts == "test" and tests)
        key = "ruled out", self.tests, source.max_new_tokens, source.stop_ids
        kept: dict[Ids, set[int]] | None = remembered(key, dict) if self.tests else None
        self.ruled_out = {} if kept is None else kept
        for part in parts if tests else ():
            if part.acts == "end":
                _say(part.remark)
        self.vocab_size = lm.vocab_size
        self.matchers, self.device, self.eos_ids = tuple(matchers), lm.device, lm.eos_ids
        self.max_new_tokens, self.stop_ids = source.max_new_tokens, source.stop_ids
        self.silent = {stop for stop in self.stop_ids if stop in lm.special_tokens}
        few = len(self.stop_ids) <= _FEW
        tried = [stop for stop in self.stop_ids if stop not in lm.eos_ids and (few or stop in self.silent)]
        self.tried = Resident(torch.tensor(tried, dtype=torch.long))
        self.wordless = Resident(torch.tensor([stop in self.silent for stop in tried], dtype=torch.bool))

    def allowed(self, prefixes: Sequence[Ids]) -> Tensor:
        """``[m, V]`` bool, on the device: what may come next after running prefixes of one length."""
        if not self.masks:
            return torch.ones(len(prefixes), self.vocab_size, dtype=torch.bool, device=self.device)
        left = self.max_new_tokens - len(prefixes[0]) - 1
        mask = self.masks[0].allowed(prefixes, left, self.device)
        for matcher in self.masks[1:]:
            mask = mask & matcher.allowed(prefixes, left, self.device)
        stops = self.tried.host.tolist()
        if stops:
            ends = self._accepted(self.masks, [(*prefix, stop) for prefix in prefixes for stop in stops])
            tried, ends = self.tried.on(self.device), upload(ends.reshape(len(prefixes), -1), self.device)
            mask[:, tried] = ends & (self.wordless.on(self.device) | mask[:, tried])
        return mask if self.stop_ids.text is None else self._ends_well(mask, prefixes, self.stop_ids.text)

    def _ends_well(self, mask: Tensor, prefixes: Sequence[Ids], text: StopText) -> Tensor:
        """Without tokens that complete a stop string where the text is not acceptable, as far as few enough do."""
        known = self.silent.union(self.eos_ids)
        pairs = [(i, v) for i, prefix in enumerate(prefixes) for v in text.ends(prefix) if v not in known]
        if not pairs or len(pairs) > _FEW * len(prefixes):
            return mask
        ends = self._accepted(self.masks, [(*prefixes[i], v) for i, v in pairs])
        row, token = (torch.tensor(part) for part in zip(*pairs, strict=True))
        allowed = torch.ones(mask.shape, dtype=torch.bool)
        allowed[row, token] = ends
        return mask & upload(allowed, self.device)

    def accepts(self, texts: Sequence[Ids]) -> Tensor:
        """``[m]`` bool: finished texts (ids without EOS)."""
        return self._accepted(self.matchers, texts)

    def _accepted(self, matchers: Sequence[Matcher], texts: Sequence[Ids]) -> Tensor:
        if self.silent:
            texts = [text[:-1] if text and text[-1] in self.silent else text for text in texts]
        return torch.stack([matcher.accepts(texts) for matcher in matchers]).all(0)

    def viable(self, prefixes: Sequence[Ids]) -> Tensor:
        """``[m]`` bool: unfinished texts of one length; a dead end is not viable."""
        left = self.max_new_tokens - len(prefixes[0]) if prefixes else 0
        return torch.stack([matcher.viable(prefixes, left) for matcher in self.matchers]).all(0)

    def passes(self, texts: Sequence[Ids], ended: Sequence[bool]) -> list[bool]:
        """What the tests say of texts (ids without EOS), each of which has ``ended`` or is a beginning."""
        found = [True] * len(texts)
        for finished in (True, False):
            asked = [i for i, over in enumerate(ended) if over == finished]
            for test in self.tests:
                asked = [i for i in asked if found[i]]
                if not asked:
                    break
                these = [texts[i] for i in asked]
                left = self.max_new_tokens - len(these[0])
                said = self._accepted([test], these) if finished else test.viable(these, left)
                for i, yes in zip(asked, said.tolist(), strict=True):
                    found[i] = yes
        return found

    @property
    def proposes(self) -> bool:
        return bool(self.masks)

    by_ids = True

    def leaning(self, rows: Rows) -> Leaning:
        """What particles are drawn from is confined to what is allowed."""
        assert rows.ids is not None
        return Leaning(allowed=self.allowed(rows.ids) if self.masks else None)


def _say(remark: str) -> None:
    on_run_end(remark, lambda: lambda: remark)
