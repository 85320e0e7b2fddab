"""The text side of a network: what its tokenizer makes of text, and of ids.

The tokenizer's word is law. What it puts in front of a text (BOS, ``</s>``, ``[gMASK]<sop>``) stands in front of a
prompt; a chat is what its template says, with nothing added; and a text that goes on is decoded as a whole, for some
tokenizers write the first token of a text without its space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Integral
from typing import Any

from ppl_align.core.errors import InputError, PromptError, first_line
from ppl_align.lm.base import LM, Ids

_NO_TOKEN = "\ufffd"
_REMEMBERED = 10_000  # texts whose ids are kept


class TokenizedLM(LM):
    """An LM whose text is that of a ``tokenizer`` (None: there are only ids).

    No method goes by another public one: a subclass changes what it overrides, and nothing else."""

    tokenizer: Any

    def _needed(self) -> Any:
        """The tokenizer; raises ``PromptError`` where there is none."""
        if self.tokenizer is None:
            raise PromptError(f"{self.name} was given without a tokenizer: write prompts as token ids, or pass one")
        return self.tokenizer

    def encode(self, text: str) -> Ids:
        """Ids of a text, nothing in front; raises ``PromptError`` for half a character and ids without embedding."""
        return self._ids_of(text)

    def _ids_of(self, text: str) -> Ids:
        known: dict[str, Ids] = self.cached("ids of texts", dict)
        if text not in known:
            if len(known) > _REMEMBERED:
                known.clear()
            tokenizer = self._needed()
            check_text(text)
            known[text] = self._checked(tokenizer.encode(text, add_special_tokens=False))
        return known[text]

    def _checked(self, ids: Sequence[int]) -> Ids:
        """Ids that the network has embeddings for; raises ``PromptError`` for others."""
        beyond = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if beyond is not None:
            named = self.tokenizer.convert_ids_to_tokens(beyond)
            raise PromptError(
                f"the tokenizer says {named!r} has id {beyond}, but {self.name} has embeddings for 0 to "
                f"{self.vocab_size - 1}: is it the tokenizer of this network?"
            )
        return tuple(ids)

    def decode(self, ids: Sequence[int]) -> str:
        return self._texts_of([ids])[0]

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row, special tokens left out."""
        return self._texts_of(rows)

    def _texts_of(self, rows: Sequence[Sequence[int]]) -> list[str]:
        if self.tokenizer is None:
            return [" ".join(map(str, row)) for row in rows]
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None and not getattr(self.tokenizer, "clean_up_tokenization_spaces", False):
            return backend.decode_batch([list(row) for row in rows], skip_special_tokens=True)
        return self.tokenizer.batch_decode(
            [list(row) for row in rows], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    @cached_property
    def _opens(self) -> bool:
        """May the first token of a text be spelt otherwise than within (without its space)?"""
        if self.tokenizer is None:
            return False
        for word in ("a", "the", "I", "1", "w1"):
            ids = [i for i in self.tokenizer.encode(word, add_special_tokens=False) if 0 <= i < self.vocab_size]
            if ids and self._texts_of([ids * 2])[0] != 2 * self._texts_of([ids])[0]:
                return True
        return False

    def continue_text(self, prompt: Ids, rows: Sequence[Sequence[int]]) -> list[str]:
        """What each row adds to the text of the prompt: the decoded whole, without the decoded prompt.

        Special tokens inside are shown by their names: a text with one is another text than without it."""
        special = self._left_out
        before = self._texts_of([prompt])[0] if self._opens else ""
        if not before and not any(v in special for row in rows for v in row):
            return self._texts_of(rows)
        runs = [_runs(row, special) for row in rows]
        flat = [run for parts in runs for run in parts if not isinstance(run, str)]
        head = tuple(prompt) if before else ()
        wholes = iter(self._texts_of([(*head, *run) for run in flat]))
        alone = iter(self._texts_of(flat) if before else [""] * len(flat))
        texts = []
        for parts in runs:
            text = ""
            for part in parts:
                if isinstance(part, str):
                    text += part
                    continue
                whole, own = next(wholes), next(alone)
                text += whole[len(before) :] if whole.startswith(before) else own
            texts.append(text)
        return texts

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> Ids:
        """A chat as its template writes it: ready for an answer, or for the rest of one that has begun (prefill)."""
        tokenizer = self._needed()
        if not getattr(tokenizer, "chat_template", None):
            raise PromptError(f"{self.name} has no chat template: give the prompt as text")
        for message in messages:
            if isinstance(message.get("content"), str):
                check_text(message["content"])
        begun = bool(messages) and messages[-1].get("role") == "assistant"
        how = {"continue_final_message": True} if begun else {"add_generation_prompt": True}
        try:
            text = tokenizer.apply_chat_template(list(messages), tokenize=False, **how)
        except Exception as error:  # the template is a program of its own, and raises what it likes
            reason = first_line(error)
            raise PromptError(f"the chat template of {self.name} does not take these messages: {reason}") from error
        return self._ids_of(text)

    @cached_property
    def opening(self) -> Ids:
        """What the tokenizer puts in front of every text."""
        if self.tokenizer is None:
            return ()
        bare = self.tokenizer.encode("a", add_special_tokens=False)
        whole = self.tokenizer.encode("a")
        at = next((i for i in range(len(whole), -1, -1) if whole[i : i + len(bare)] == bare), 0) if bare else 0
        return self._checked(whole[:at])

    @cached_property
    def special_tokens(self) -> Mapping[int, str]:
        return {v: name for v, name in self._left_out.items() if v not in self.eos_ids}

    @cached_property
    def _left_out(self) -> dict[int, str]:
        """How a completion shows tokens that decoding leaves out: by their names; U+FFFD for ids without a token."""
        if self.tokenizer is None:
            return {}
        added = getattr(self.tokenizer, "added_tokens_decoder", None) or {}
        special = {*self.tokenizer.all_special_ids, *(v for v, token in added.items() if token.special)}
        names = {v: self.tokenizer.convert_ids_to_tokens(v) for v in special if 0 <= v < self.vocab_size}
        return {**dict.fromkeys(range(len(self.tokenizer), self.vocab_size), _NO_TOKEN), **names}


def _runs(row: Sequence[int], special: Mapping[int, str]) -> list[str | Ids]:
    """A row cut at its special tokens, which are replaced by what is shown for them."""
    parts: list[str | Ids] = []
    for token in row:
        if token in special:
            parts.append(special[token])
        elif parts and not isinstance(parts[-1], str):
            parts[-1] = (*parts[-1], token)
        else:
            parts.append((token,))
    return parts


def check_text(text: str) -> None:
    """Raises ``PromptError`` for a text with half of a character (a lone surrogate), which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the prompt holds half of a character at position {error.start} ({text[error.start]!r}): clean the text, "
            f"as text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') does"
        ) from None


def end_ids(name: str, vocab_size: int, *sources: Any) -> Ids:
    """All EOS ids of the tokenizer, the generation config and the config, the tokenizer's first.

    Raises ``InputError`` for one that is no number, or outside of the vocabulary."""
    found: list[int] = []
    for source in sources:
        declared = getattr(source, "eos_token_id", None)
        listed = declared if isinstance(declared, (list, tuple)) else [declared]
        ids = [i for i in listed if i is not None]
        strange = next((i for i in ids if isinstance(i, bool) or not isinstance(i, Integral)), None)
        if strange is not None:
            raise InputError(
                f"eos_token_id of {name} holds {strange!r}, which is no token id: correct it in its config, generation "
                "config or tokenizer"
            )
        found += [int(i) for i in ids if i >= 0]  # -1: none, in some configs
    beyond = next((i for i in found if i >= vocab_size), None)
    if beyond is not None:
        raise InputError(
            f"the EOS id {beyond} of {name} is outside of its vocabulary of {vocab_size} tokens: correct eos_token_id "
            f"in its config, generation config or tokenizer"
        )
    return tuple(dict.fromkeys(found))
