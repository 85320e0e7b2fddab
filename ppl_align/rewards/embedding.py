"""Sentence embeddings by all-MiniLM-L6-v2, from a package of the package index: features of a text, offline.

The embedding of a text is the mean of the network's last hidden states over its tokens, divided by its length, so
that the dot product of two of them is their cosine similarity.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ppl_align.core.errors import InputError, first_line
from ppl_align.data.packages import MINILM


@dataclass(frozen=True)
class Embedder:
    """``Embedder()(texts)``: a list of n texts -> unit vectors, ``[n, 384]`` float32 on the CPU, no gradient.

    ``folder``      a sentence-transformers model that pools by the mean; by default all-MiniLM-L6-v2 as it comes with
                    ``ppl-align fetch minilm``
    ``batch_size``  texts per forward

    A text is read up to the length that the model was trained for (256 tokens), its end is lost. The empty text has
    an embedding too. Two embedders of one folder are equal, share their weights and pickle by the folder's name.
    Raises ``InputError`` where the weights are missing. Source: Reimers & Gurevych 2019 (arXiv:1908.10084), Wang et
    al. 2020 (arXiv:2002.10957).
    """

    folder: str | None = None
    batch_size: int = 64

    def __call__(self, texts: Sequence[str]) -> Tensor:
        if isinstance(texts, str):
            raise InputError("Embedder takes a list of texts, got one text: write [text]")
        model, tokenizer, limit = _load(str(MINILM.place) if self.folder is None else self.folder)
        # Texts of about one length share a forward, so that little of it is padding.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = torch.empty(len(texts), model.config.hidden_size)
        for first in range(0, len(order), self.batch_size):
            chunk = order[first : first + self.batch_size]
            found[chunk] = _forward(model, tokenizer, [texts[i] for i in chunk], limit)
        return found

    @property
    def size(self) -> int:
        """Numbers per text."""
        model, _, _ = _load(str(MINILM.place) if self.folder is None else self.folder)
        return int(model.config.hidden_size)


@torch.no_grad()
def _forward(model: Any, tokenizer: Any, texts: Sequence[str], limit: int) -> Tensor:
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
    hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].to(hidden.dtype)
    return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@lru_cache(maxsize=4)
def _load(folder: str) -> tuple[Any, Any, int]:
    """Model, tokenizer and the longest text in tokens; loaded once per process."""
    from transformers import AutoModel, AutoTokenizer

    from ppl_align.lm.names import quiet_transformers

    pooling = Path(folder) / "1_Pooling" / "config.json"
    if pooling.is_file() and not json.loads(pooling.read_text("utf-8")).get("pooling_mode_mean_tokens", True):
        raise InputError(f"{folder} does not pool by the mean: Embedder reads models that do, as all-MiniLM-L6-v2")
    try:
        with quiet_transformers():
            model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no sentence-transformers model ({first_line(error)})") from error
    sentence = Path(folder) / "sentence_bert_config.json"
    most = int(model.config.max_position_embeddings)
    if sentence.is_file():
        most = min(most, int(json.loads(sentence.read_text("utf-8")).get("max_seq_length") or most))
    return model, tokenizer, most
