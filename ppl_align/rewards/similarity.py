"""How near a text is in meaning to one that is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.rewards.convention import plain_text
from ppl_align.rewards.embedding import Embedder


@dataclass(frozen=True)
class Similarity:
    """r = cosine between the sentence embeddings of the text and of ``to``, in [-1, 1]; of several, the nearest counts.

    ``to``        a text, or several
    ``embedder``  texts -> unit vectors; by default all-MiniLM-L6-v2 (``ppl-align fetch minilm``)

    Unrelated sentences have about 0, paraphrases above 0.8. The embedding is of English and of at most 256 tokens.
    Raises ``InputError`` for an empty ``to`` and where the weights are missing.
    """

    to: str | Sequence[str]
    embedder: Embedder = field(default_factory=Embedder)

    __name__ = "similarity"
    upper: ClassVar[float] = 1.0
    lower: ClassVar[float] = -1.0

    def __post_init__(self) -> None:
        texts = (self.to,) if isinstance(self.to, str) else tuple(self.to)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(f"Similarity needs at least one text, none of them empty, got {self.to!r}")
        object.__setattr__(self, "to", texts)

    def __call__(self, completions: Sequence[Any], **_: Any) -> list[float]:
        texts = [plain_text(completion) for completion in completions]
        wanted = _embedded(self.embedder, tuple(self.to))
        cosines = self.embedder(texts).double() @ wanted.double().T
        return cosines.amax(-1).clamp(-1.0, 1.0).tolist()


@lru_cache(maxsize=32)
def _embedded(embedder: Embedder, texts: tuple[str, ...]) -> Tensor:
    return embedder(texts)
