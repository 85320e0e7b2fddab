"""A language model that always reads something around the prompt: a persona, an instruction, a style.

    p(x | prompt) = p_lm(x | before + prompt + after)

The program goes on seeing the bare prompt, so several voices of one network can share it (``Mixture``, ``Product``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ppl_align.core.errors import InputError, PromptError
from ppl_align.lm.base import LM, Decoder, Ids, Voiced, WholeIds
from ppl_align.lm.blocks import Block
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.warp import Warp

_SLOT = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands for the user's words while a template is taken apart


class Prompted(Voiced):
    """``lm`` with ``before`` in front of every prompt and ``after`` behind it, texts or token ids.

    Each part is tokenised on its own, as the parts of a prompt are. Chat models: :meth:`chat`.
    """

    def __init__(self, lm: LM, before: str | Sequence[int] = (), after: str | Sequence[int] = ()) -> None:
        self.lm = lm
        self.before, self.after = _ids(lm, before), _ids(lm, after)
        self.whole = False  # is ``before`` the beginning of what is read, so that nothing is put in front?
        self._take_vocabulary()
        self.hidden_size, self.unembedding = lm.hidden_size, getattr(lm, "unembedding", None)
        limit = getattr(lm, "max_length", None)
        self.max_length = None if limit is None else limit - len(self.before) - len(self.after)
        shown = lm.decode(self.before).strip() or lm.decode(self.after).strip()
        self.name = f"{lm.name}[{shown if len(shown) <= 24 else shown[:21] + '...'}]"

    @classmethod
    def chat(cls, lm: LM, system: str, name: str | None = None) -> Prompted:
        """A chat model under a system message; a prompt is what the user says, and the answer comes next.

        Raises ``PromptError`` for an LM without a chat template, or one whose template changes what the user says."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": _SLOT}]
        ids, slot = lm.chat_ids(messages), lm.encode(_SLOT)
        at = [i for i in range(len(ids)) if ids[i : i + len(slot)] == slot]
        if len(at) != 1:
            raise PromptError(
                f"the chat template of {lm.name} does not keep the user's words apart: use before=, after="
            )
        prompted = cls(lm, ids[: at[0]], ids[at[0] + len(slot) :])
        shown = system if len(system) <= 24 else system[:21] + "..."
        prompted.whole = True
        prompted.name = name or f"{lm.name}[{shown}]"
        return prompted

    def wrap(self, prompts: Sequence[Ids]) -> list[Ids]:
        """What the network reads: the prompts with everything around them, BOS in front."""
        bare = [_without_opening(self.lm, tuple(prompt)) for prompt in prompts]
        around = WholeIds if self.whole else tuple
        return [self.lm.begin(around((*self.before, *prompt, *self.after))) for prompt in bare]

    def begin(self, ids: Ids) -> Ids:
        self.wrap([ids])  # checks it
        return ids

    def start(self, prompts: Sequence[Ids]) -> Decoder:
        return self.lm.start(self.wrap(prompts))

    @property
    def steps(self) -> bool:
        return self.lm.steps

    def draw_block(
        self, prompts: Sequence[Ids], texts: Sequence[Ids], length: int, source: CompletionDistribution
    ) -> Block:
        return self.lm.draw_block(self.wrap(prompts), texts, length, source.by(self.lm))

    def score_block(
        self, prompts: Sequence[Ids], texts: Sequence[Ids], tokens: Tensor, source: CompletionDistribution
    ) -> tuple[Tensor, Tensor]:
        return self.lm.score_block(self.wrap(prompts), texts, tokens, source.by(self.lm))

    def token_log_probs(self, prompts: Sequence[Ids], tokens: Tensor, warp: Warp = Warp()) -> Tensor:
        return self.lm.token_log_probs(self.wrap(prompts), tokens, warp)

    def forced_log_probs(self, prompts: Sequence[Ids], tokens: Tensor) -> Tensor:
        return self.lm.forced_log_probs(self.wrap(prompts), tokens)

    @property
    def voice(self) -> LM:
        return self.lm

    @property
    def learned(self) -> bool | None:
        return self.lm.learned

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> Ids:
        raise InputError(f"{self.name} puts its own text around the prompt: give the prompt as text, not as messages")


def _without_opening(lm: LM, ids: Ids) -> Ids:
    """A prompt that another LM has begun already carries its opening (BOS); in the middle of a text it has no place."""
    opening = lm.opening
    return ids[len(opening) :] if opening and ids[: len(opening)] == opening else ids


def _ids(lm: LM, part: str | Sequence[int]) -> Ids:
    ids = tuple(lm.encode(part)) if isinstance(part, str) else tuple(part)
    bad = [i for i in ids if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < lm.vocab_size]
    if bad:
        raise PromptError(f"{bad[0]!r} is no token id of {lm.name}: ids run from 0 to {lm.vocab_size - 1}")
    return ids
