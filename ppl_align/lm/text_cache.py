"""Texts that are written anew from some token on: what was read of them before is not read again.

A Markov kernel draws the rest of a text anew, again and again. Its first tokens have been read when they were written:
the rows of the network's cache at which texts ended are kept, with the scores of their tokens.
Text i, of which the first c_i tokens stay, then *sleeps* until the others of its batch have written c_i tokens, and
joins them there with the row that it had: the network reads T - c_i tokens of it instead of T.

A text that is not known here, or whose LM has no rows to take up, is read from its beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_align.lm.base import Decoder, Ids
from ppl_align.lm.completions import sequence_lengths
from ppl_align.lm.kept import Kept

if TYPE_CHECKING:
    from ppl_align.lm.decoding import Population

BYTES = 2**30
"""Keys and values that are kept at most."""
_CROWDED = 2  # rows kept together, for each that is still wanted: more, and those are copied out

Key = tuple[Ids, Ids]
"""A prompt, and a text after it."""


class Known(NamedTuple):
    """Of one text: where its row is (None: its LM needs none), and log p and log q of its tokens, [T] each."""

    place: tuple[Kept, int] | None
    log_p: Tensor
    log_q: Tensor


class Sleepers(NamedTuple):
    """The texts of a population that are known: their numbers, ``at [n]``, what is ``known`` of each, the whole text
    ``given [n, T]`` and its ``length [n]``, and from where on nothing of it is drawn, ``drawn_until [n]``."""

    at: np.ndarray
    known: list[Known]
    given: np.ndarray
    length: np.ndarray
    drawn_until: np.ndarray

    def take(self, which: np.ndarray) -> Sleepers:
        """Those of the numbers ``which``."""
        known = [self.known[i] for i in which]
        return Sleepers(self.at[which], known, self.given[which], self.length[which], self.drawn_until[which])

    def fill(self, texts: Population, first: np.ndarray) -> None:
        """The texts begin with the first ``[n]`` tokens of what is given, and read nothing of it."""
        where = torch.from_numpy(self.at)
        kept = torch.arange(self.given.shape[1]) < torch.from_numpy(first)[:, None]

        def begin(name: str, with_: Tensor) -> None:
            value = getattr(texts, name)
            there, chosen = where.to(value.device), kept.to(value.device)
            value[there] = torch.where(chosen, with_.to(value), value[there])

        begin("tokens", torch.from_numpy(self.given))
        begin("token_log_p", torch.stack([known.log_p for known in self.known]))
        begin("token_log_q", torch.stack([known.log_q for known in self.known]))
        there = where.to(texts.log_p.device)
        texts.log_p[there], texts.log_q[there] = texts.token_log_p[there].sum(-1), texts.token_log_q[there].sum(-1)
        texts.written[self.at] = np.where(kept.numpy(), self.given, texts.written[self.at])
        texts.last[self.at] = self.given[np.arange(len(first)), first - 1]
        texts.lengths[self.at], texts.awake[self.at] = first, False


class TextCache:
    """The texts of one completion, drawn in one way."""

    def __init__(self) -> None:
        self.known: dict[Key, Known] = {}
        self.wanted: set[Key] = set()

    # -- what has been written -----------------------------------------------------------------------------------------

    def keep(self, texts: Population) -> None:
        """Those that have just ended. Called before the network reads on."""
        ended = np.flatnonzero((texts.lengths == texts.t) & texts.awake & (~texts.alive | texts.done))
        decoder: Any = texts.decoder
        if not len(ended) or not hasattr(decoder, "rows_of"):
            return
        rows, where = np.unique(texts.row[ended], return_inverse=True)
        kept = decoder.keep(torch.as_tensor(rows))
        read = [len(texts.prompts[texts.row_prompt[row]]) + texts.t - 1 for row in rows]
        if kept is None:
            return
        if isinstance(kept, Kept) and (kept.lengths != read or self._bytes() + kept.bytes > BYTES):
            return  # another prompt in its place (a prompted LM), or too much
        scores = [part[torch.from_numpy(ended).to(part.device)] for part in (texts.token_log_p, texts.token_log_q)]
        written = texts.written[ended, : texts.t].tolist()
        for k, (text, at) in enumerate(zip(written, where.tolist(), strict=True)):
            place = (kept, at) if isinstance(kept, Kept) else None
            key = texts.prompts[texts.prompt[ended[k]]], tuple(text)
            self.known[key] = Known(place, scores[0][k], scores[1][k])

    def _bytes(self) -> int:
        return sum(kept.bytes for kept in self._batches())

    def _batches(self) -> list[Kept]:
        return list({id(known.place[0]): known.place[0] for known in self.known.values() if known.place}.values())

    def only(self, wanted: set[Key]) -> None:
        """Forget what is wanted neither now nor was the last time, and what was kept beside it."""
        self.known = {key: known for key, known in self.known.items() if key in wanted or key in self.wanted}
        self.wanted = wanted
        for batch in self._batches():
            keys = [key for key, known in self.known.items() if known.place is not None and known.place[0] is batch]
            rows = sorted({self.known[key].place[1] for key in keys})  # type: ignore[index]
            if len(batch.lengths) <= _CROWDED * len(rows):
                continue
            fewer = batch.take(rows)
            for key in keys:
                at = rows.index(self.known[key].place[1])  # type: ignore[index]
                self.known[key] = self.known[key]._replace(place=(fewer, at))

    # -- and is written anew -------------------------------------------------------------------------------------------

    def put_to_sleep(self, texts: Population, tokens: Tensor, length: Tensor) -> None:
        """Of a population that has not begun: the first ``length [M]`` tokens of ``tokens [M, T]`` are to stay. Texts
        that are known here have them from the start, and wake when the others have come that far."""
        if not hasattr(texts.decoder, "rows_of"):
            return
        whole = sequence_lengths(tokens.cpu(), texts.source.terminal).numpy()
        first = np.minimum(length.numpy(), whole)
        keys = [
            (texts.prompts[at], tuple(row[:n]))
            for at, row, n in zip(texts.prompt.tolist(), tokens.tolist(), whole.tolist(), strict=True)
        ]
        self.only(set(keys))
        at = np.array([i for i, key in enumerate(keys) if key in self.known and first[i]], dtype=np.int64)
        if not len(at):
            return
        assert texts.held is not None
        drawn_until = (~texts.held[1] * torch.arange(1, tokens.shape[1] + 1)).amax(-1).numpy()
        given, known = tokens.cpu().numpy()[at], [self.known[keys[i]] for i in at.tolist()]
        texts.sleepers = Sleepers(at, known, given, whole[at], drawn_until[at])
        texts.sleepers.fill(texts, first[at])
        texts.alive[at] = first[at] < whole[at]
        if texts.stop_text is not None:
            for k in range(int(first[at].max())):
                on = first[at] > k
                texts.read[at[on]] = texts.stop_text.after(texts.read[at[on]], given[on, k])

    def settle(self, texts: Population) -> None:
        """Texts of which everything that was to be drawn came out as it had been are what they were: their rest is not
        read again."""
        sleepers = texts.sleepers
        if sleepers is None:
            return
        now = np.flatnonzero((sleepers.drawn_until == texts.t) & texts.running[sleepers.at])
        same = (texts.written[sleepers.at[now], : texts.t] == sleepers.given[now, : texts.t]).all(-1)
        if same.any():
            settled = sleepers.take(now[same])
            settled.fill(texts, settled.length)
            texts.alive[settled.at] = False

    def waking(self, texts: Population) -> tuple[np.ndarray, Decoder | None]:
        """The texts that stay as long as the others have come, and rows that have read all but their newest token."""
        sleepers, nobody = texts.sleepers, np.zeros(0, dtype=np.int64)
        if sleepers is None:
            return nobody, None
        asleep = texts.alive[sleepers.at] & ~texts.awake[sleepers.at]
        now = np.flatnonzero(asleep & (texts.lengths[sleepers.at] == texts.t))
        if not len(now):
            return nobody, None
        found = sleepers.at[now]
        written = texts.written[found, : texts.t - 1].tolist()
        read = [(*texts.prompts[p], *row) for p, row in zip(texts.prompt[found].tolist(), written, strict=True)]
        decoder: Any = texts.decoder
        return found, decoder.rows_of([sleepers.known[i].place for i in now], read, texts.t - 1)


__all__ = ["Sleepers", "TextCache"]
