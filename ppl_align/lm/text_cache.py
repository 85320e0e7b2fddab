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


class Sleeper(NamedTuple):
    """A text that is known: ``text``, and the place from which on nothing of it is drawn."""

    known: Known
    text: Ids
    drawn_until: int


class Known(NamedTuple):
    """Of one text: where its row is (None: its LM needs none), and log p and log q of its tokens, [T] each."""

    place: tuple[Kept, int] | None
    log_p: Tensor
    log_q: Tensor


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
        for i, at in zip(ended.tolist(), where.tolist(), strict=True):
            place = (kept, at) if isinstance(kept, Kept) else None
            key = texts.prompts[texts.prompt[i]], tuple(texts.written[i, : texts.t].tolist())
            self.known[key] = Known(place, texts.token_log_p[i].clone(), texts.token_log_q[i].clone())

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
        given, whole = tokens.cpu().numpy(), sequence_lengths(tokens.cpu(), texts.source.terminal).tolist()
        keys = [(texts.prompts[texts.prompt[i]], tuple(given[i, :n].tolist())) for i, n in enumerate(whole)]
        self.only(set(keys))
        assert texts.held is not None
        free = ~texts.held[1]
        drawn_until = (free * torch.arange(1, free.shape[1] + 1)).amax(-1).tolist()
        for i, key in enumerate(keys):
            known, first = self.known.get(key), min(int(length[i]), whole[i])
            if known is None or first == 0:
                continue
            self._fill(texts, i, known, key[1][:first])
            texts.alive[i] = first < whole[i]
            texts.sleeping[i] = Sleeper(known, key[1], drawn_until[i])
            if texts.stop_text is not None:
                for token in given[i, :first]:
                    texts.read[i] = texts.stop_text.after(texts.read[i : i + 1], np.array([token]))[0]

    def settle(self, texts: Population) -> None:
        """Texts of which everything that was to be drawn came out as it had been are what they were: their rest is not
        read again."""
        for i, (known, text, drawn_until) in texts.sleeping.items():
            if texts.t != drawn_until or not (texts.alive[i] and texts.awake[i]):
                continue
            if tuple(texts.written[i, : texts.t].tolist()) == text[: texts.t]:
                self._fill(texts, i, known, text)
                texts.alive[i] = False

    @staticmethod
    def _fill(texts: Population, i: int, known: Known, text: Ids) -> None:
        """Text i of the population begins with these tokens."""
        n = len(text)
        texts.tokens[i, :n] = torch.tensor(text, device=texts.tokens.device)
        texts.token_log_p[i, :n], texts.token_log_q[i, :n] = known.log_p[:n], known.log_q[:n]
        texts.log_p[i], texts.log_q[i] = known.log_p[:n].sum(), known.log_q[:n].sum()
        texts.written[i, :n], texts.lengths[i], texts.last[i] = text, n, text[-1]
        texts.awake[i] = False

    def waking(self, texts: Population) -> tuple[list[int], Decoder | None]:
        """The texts that stay as long as the others have come, and rows that have read all but their newest token."""
        asleep = [i for i in texts.sleeping if texts.alive[i] and not texts.awake[i]]
        found = [i for i in asleep if texts.lengths[i] == texts.t]
        if not found:
            return [], None
        read = [(*texts.prompts[texts.prompt[i]], *texts.written[i, : texts.t - 1].tolist()) for i in found]
        decoder: Any = texts.decoder
        return found, decoder.rows_of([texts.sleeping[i].known.place for i in found], read, texts.t - 1)


__all__ = ["TextCache"]
