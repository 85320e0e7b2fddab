"""What a language model is to this library: anything that scores the next token of a set of prefixes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.lm.blocks import Block
from ppl_align.lm.stopping import resolve_stop
from ppl_align.lm.warp import Warp, log_normalise

if TYPE_CHECKING:
    from ppl_align.lm.distribution import CompletionDistribution

Ids = tuple[int, ...]
T = TypeVar("T")


class WholeIds(tuple[int, ...]):
    """Ids of a prompt that has in front what belongs there (a chat, as its template writes it); else a tuple of ids."""


SCORING_ELEMENTS = 2**26  # texts are scored in chunks of at most this many log-probabilities (256 MB in float32)


def alike(values: Iterable[T]) -> dict[T, list[int]]:
    """The numbers of those that are equal, by what they are, in the order of first occurrence.

    >>> alike(["a", "b", "a"])
    {'a': [0, 2], 'b': [1]}
    """
    found: dict[T, list[int]] = {}
    for i, value in enumerate(values):
        found.setdefault(value, []).append(i)
    return found


class Decoder(Protocol):
    """A set of prefixes (*rows*) and what the LM says comes next.

    ``logits``     [rows, V] next-token log-probabilities up to a constant of each row (no warp applied)
    ``log_probs``  [rows, V] the same, normalised (computed when asked for)
    ``hidden``     [rows, d] last hidden state, or None where the LM has none
    """

    @property
    def logits(self) -> Tensor: ...

    @property
    def log_probs(self) -> Tensor: ...

    @property
    def hidden(self) -> Tensor | None: ...

    def extend(self, parents: Tensor, tokens: Tensor) -> Decoder:
        """Row i of the result continues row ``parents[i]`` with ``tokens[i]`` (both ``[m]``, on the CPU).

        Consumes this decoder: its cache may be reused in place."""
        ...


class WithLogits:
    """A decoder that keeps its logits, and normalises them when asked to."""

    logits: Tensor

    @property
    def log_probs(self) -> Tensor:
        return log_normalise(self.logits)


class LM(ABC):
    """A prior over token sequences. Subclasses: ``CausalLM`` (transformers), ``MarkovLM``, ``CallableLM``.

    ``vocab_size``; ``eos_id`` (None: sequences have fixed length), which is also the padding, and ``eos_ids``, all that
    end a text; ``device``; ``name`` (for provenance); ``rows_at_once``: that there is memory for, where rows are many.
    """

    vocab_size: int
    eos_id: int | None
    device: torch.device
    name: str
    hidden_size: int | None = None
    rows_at_once: int = 512
    _other_eos: Ids = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, V={self.vocab_size})"

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or what is read from a file, remembers nothing."""
        return {**self.__dict__, "_caches": {}}

    def cached(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` made of this LM when the key was first asked for: its vocabulary, spelling, matchers."""
        caches: dict[Hashable, Any] = self.__dict__.setdefault("_caches", {})
        if key not in caches:
            caches[key] = make()
        return caches[key]

    @property
    def eos_ids(self) -> Ids:
        """The ids that end a text and are no part of it, ``eos_id`` first; chat models often have several."""
        return () if self.eos_id is None else (self.eos_id, *self._other_eos)

    @property
    def special_tokens(self) -> Mapping[int, str]:
        """What :meth:`decode` leaves out, EOS apart: how a completion shows it in the middle of its text."""
        return {}

    # -- stepping: next-token probabilities --------------------------------------------------------------------

    def start(self, prompts: Sequence[Ids]) -> Decoder:
        """A decoder whose row i stands after ``prompts[i]``. An LM that has none draws blocks only."""
        raise InputError(self.cannot_step("enumeration, a guide or a hard constraint"))

    @property
    def steps(self) -> bool:
        """Does it show the probabilities of next tokens?"""
        return type(self).start is not LM.start

    def cannot_step(self, what: str) -> str:
        """What there is to say where ``what`` needs them and it does not."""
        return (
            f"{self.name} draws blocks of tokens and shows no next-token probabilities, which {what} needs: use "
            f'ImportanceSampling, Rejection or SMC(twist="prefix") without it, or a prior that has them'
        )

    # -- every LM: draw blocks, score texts --------------------------------------------------------------------

    def draw_block(
        self, prompts: Sequence[Ids], texts: Sequence[Ids], length: int, source: CompletionDistribution
    ) -> Block:
        """``length`` tokens after each of ``texts``, the beginnings of completions of ``prompts`` (equal ones are drawn
        for each), by the global random numbers of torch. ``source``: temperature, top-k, top-p, what ends a text.

        Whatever comes after the end of a text is not read. LMs that do not step override it."""
        from ppl_align.lm.blocks import stepped

        return stepped(prompts, texts, length, source)

    def score_block(
        self, prompts: Sequence[Ids], texts: Sequence[Ids], tokens: Tensor, source: CompletionDistribution
    ) -> tuple[Tensor, Tensor]:
        """``(log p, log q)`` [m, k] of the tokens that come next, q being what :meth:`draw_block` draws from (p, by
        default)."""
        from ppl_align.lm.blocks import scored

        log_p = scored(prompts, texts, tokens, source)
        return log_p, log_p

    def token_log_probs(self, prompts: Sequence[Ids], tokens: Tensor, warp: Warp = Warp()) -> Tensor:
        """Teacher forcing: ``tokens [B, T]`` after ``prompts`` (length B) -> log p of each token ``[B, T]``.

        Differentiable where the parameters of the LM require grad. LMs that do not step override it."""
        if not tokens.numel():
            return torch.zeros(tokens.shape, device=self.device)
        rows = max(1, SCORING_ELEMENTS // (tokens.shape[1] * self.vocab_size))
        chunks = range(0, len(prompts), rows)
        return torch.cat([self._score(prompts[i : i + rows], tokens[i : i + rows], warp) for i in chunks])

    def _score(self, prompts: Sequence[Ids], tokens: Tensor, warp: Warp) -> Tensor:
        log_probs = warp(self.forced_log_probs(prompts, tokens))
        return log_probs.gather(-1, tokens[..., None].to(log_probs.device))[..., 0]

    def forced_log_probs(self, prompts: Sequence[Ids], tokens: Tensor) -> Tensor:
        """Teacher forcing, whole distributions: log p(v | prompt, tokens before t), ``[B, T, V]``, no warp applied.

        One token after the other; LMs that read a text at once override it."""
        decoder = self.start(prompts)
        rows: list[Tensor] = []
        for t in range(tokens.shape[1]):
            rows.append(decoder.log_probs)
            if t + 1 < tokens.shape[1]:
                decoder = decoder.extend(torch.arange(len(tokens)), tokens[:, t].cpu())
        return torch.stack(rows, 1)

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """Text to ids, nothing prepended."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text, special tokens left out."""

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return [self.decode(row) for row in rows]

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> Ids:
        """Chat messages to ids, ready for the assistant's answer."""
        raise InputError(f"{self.name} has no chat template: give the prompt as text")

    @property
    def opening(self) -> Ids:
        """What stands in front of every text (BOS), but for chats, whose template says what stands there."""
        return ()

    def begin(self, ids: Ids) -> Ids:
        """The whole prompt from its parts' ids: puts the opening in front, once, and checks it."""
        opening = () if isinstance(ids, WholeIds) else self.opening
        return self.check((*opening, *ids) if opening and ids[: len(opening)] != opening else ids)

    def check(self, ids: Ids) -> Ids:
        """A prompt that has all in front that it needs; raises ``PromptError`` for one that nothing can follow."""
        return ids

    def continue_text(self, prompt: Ids, rows: Sequence[Sequence[int]]) -> list[str]:
        """What each row of ids adds to the text of a prompt, so that both, one after the other, are the whole text."""
        return self.decode_batch(rows)

    @property
    def vocabulary(self) -> list[str]:
        """The text of every token on its own, ``[V]`` (used to find word and sentence boundaries)."""
        return self.cached("vocabulary", lambda: self.decode_batch([[v] for v in range(self.vocab_size)]))

    @property
    def learned(self) -> bool | None:
        """Is it being learned: do its scores have a gradient? Then they are never remembered. None: asking tells."""
        return None

    @property
    def fingerprint(self) -> str:
        """Sixteen digits that tell language models apart: the same wherever it lies and whatever it is called."""
        from ppl_align.lm.fingerprint import fingerprint

        return fingerprint(self)

    @property
    def token_features(self) -> Tensor | None:
        """What is alike about tokens, ``[V, d]`` (embeddings); None where nothing is known. Looking ahead learns
        from it which tokens are followed by what."""
        return torch.eye(self.vocab_size) if self.vocab_size <= 64 else None

    def completion(
        self,
        prompt: Any = "",
        max_new_tokens: int = 32,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: int | str | Sequence[int | str] | None = None,
    ) -> CompletionDistribution:
        """The distribution of what comes after ``prompt``: a Pyro distribution with ``event_shape [T]``.

        ``prompt``: text, a list of texts (one per element of the batch), chat messages, token ids, or a tuple
        of such parts. ``temperature``, ``top_k``, ``top_p`` are part of the prior that is declared here.
        ``stop``: ids, or strings. A string ends the sequence at the first token after which its text contains the
        string, whatever tokens spell it; one that names a special token (``"<end_of_turn>"``) is that token as well.
        What ends a sequence belongs to it.

        Raises :class:`~ppl_align.core.errors.InputError` for values out of range, ``PromptError`` for a bad prompt.
        """
        from ppl_align.lm.distribution import CompletionDistribution
        from ppl_align.lm.fingerprint import note_use
        from ppl_align.lm.prompts import resolve_prompt

        note_use(self)
        prompts, index = resolve_prompt(self, prompt)
        warp, stop_ids = Warp(temperature, top_k, top_p), resolve_stop(self, stop, prompts)
        return CompletionDistribution(self, prompts, index, max_new_tokens, warp, stop_ids)


class Voiced(LM):
    """An LM over the vocabulary of another one, ``voice``, whose texts are written and read as those of that one."""

    @property
    @abstractmethod
    def voice(self) -> LM:
        """Whose tokens, texts and chats they are."""

    def _take_vocabulary(self) -> None:
        voice = self.voice
        self.vocab_size, self.eos_id, self.device = voice.vocab_size, voice.eos_id, voice.device
        self._other_eos = voice.eos_ids[1:]

    def encode(self, text: str) -> Ids:
        return self.voice.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.voice.decode(ids)

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return self.voice.decode_batch(rows)

    def continue_text(self, prompt: Ids, rows: Sequence[Sequence[int]]) -> list[str]:
        return self.voice.continue_text(prompt, rows)

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> Ids:
        return self.voice.chat_ids(messages)

    @property
    def opening(self) -> Ids:
        return self.voice.opening

    @property
    def special_tokens(self) -> Mapping[int, str]:
        return self.voice.special_tokens

    @property
    def vocabulary(self) -> list[str]:
        return self.voice.vocabulary

    @property
    def token_features(self) -> Tensor | None:
        return self.voice.token_features
