"""A transformers sequence-classification model with one output (a reward model) as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ppl_align.errors import InputError
from ppl_align.rewards.convention import plain_text


class ClassifierReward:
    """r = the one logit of ``model`` for prompt + completion; chat messages go through the tokenizer's chat template.

    ``model``               ``AutoModelForSequenceClassification`` with ``num_labels=1``; put into evaluation mode
    ``tokenizer``           its tokenizer
    ``include_prompt``      read the prompt too (as TRL does), or only the completion
    ``add_special_tokens``  as the tokenizer does by default. TRL leaves them out for its reward models: pass False
                            to get its numbers
    ``batch_size``          texts per forward

    Texts longer than the model reads lose their end. Raises ``InputError`` for a model with several outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        include_prompt: bool = True,
        add_special_tokens: bool = True,
        batch_size: int = 32,
    ) -> None:
        if type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
            raise InputError(
                f"{type(model).__name__} writes text: a reward model is a sequence classifier with one output "
                "(AutoModelForSequenceClassification, num_labels=1)"
            )
        outputs = getattr(getattr(model, "config", None), "num_labels", None)
        if outputs != 1:
            raise InputError(
                f"{type(model).__name__} has {outputs or 'no'} labels: a reward model has one output (num_labels=1)"
            )
        if tokenizer is None:
            raise InputError(f"{type(model).__name__} needs its tokenizer: ClassifierReward(model, tokenizer)")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.include_prompt = include_prompt
        self.add_special_tokens = add_special_tokens
        # Without a padding token the model cannot tell where a shorter text ends: one text at a time.
        self.batch_size = batch_size if self._config.pad_token_id is not None else 1
        self.__name__ = type(model).__name__

    @property
    def _config(self) -> Any:
        return self.model.config.get_text_config()  # type: ignore[operator, union-attr]

    def identity_parts(self) -> tuple[Any, ...]:
        """What makes two of them the same reward."""
        return (self.model, self.include_prompt, self.add_special_tokens)

    @torch.no_grad()
    def __call__(self, completions: Sequence[Any], prompts: Sequence[Any] | None = None, **_: Any) -> list[float]:
        if self.include_prompt and prompts is not None:
            texts = [self._joined(p, c) for p, c in zip(prompts, completions, strict=True)]
        else:
            texts = [plain_text(c) for c in completions]
        # Texts of one length share a forward, so that little of it is padding.
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        r = [0.0] * len(texts)
        for first in range(0, len(texts), self.batch_size):
            chunk = by_length[first : first + self.batch_size]
            for i, logit in zip(chunk, self._forward([texts[i] for i in chunk]), strict=True):
                r[i] = logit
        return r

    def _joined(self, prompt: Any, completion: Any) -> str:
        if isinstance(prompt, str):
            return prompt + plain_text(completion)
        if getattr(self.tokenizer, "chat_template", None):
            return self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
        return plain_text([*prompt, *completion])

    def _forward(self, texts: Sequence[str]) -> list[float]:
        limit = getattr(self._config, "max_position_embeddings", None)
        rows = [self.tokenizer.encode(t, add_special_tokens=self.add_special_tokens)[:limit] for t in texts]
        width = max(1, *map(len, rows))
        pad = self._config.pad_token_id or 0
        device = next(self.model.parameters()).device
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        return self.model(input_ids=ids, attention_mask=mask).logits[:, 0].double().tolist()


@lru_cache(maxsize=8)
def find_tokenizer(model: nn.Module) -> Any:
    """The tokenizer saved where ``model`` was loaded from; raises ``InputError`` if there is none."""
    from transformers import AutoTokenizer

    from ppl_align.lm.names import quiet_transformers

    origin = getattr(model.config, "_name_or_path", "")
    try:
        if not origin:
            raise OSError
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(origin)
    except (OSError, ValueError):
        raise InputError(
            f"no tokenizer found for {type(model).__name__}: give it, ClassifierReward(model, tokenizer)"
        ) from None


def load_classifier(name: str) -> ClassifierReward:
    """The reward model in a folder or on the hub, read as TRL's trainers read it: one output, no special tokens.

    Raises ``InputError`` where there is none, or where its head is missing or has another number of outputs."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from ppl_align.lm.names import quiet_transformers

    try:
        with quiet_transformers():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name, num_labels=1, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"reward {name!r}: no sequence-classification model of that name ({line})") from error
    except RuntimeError as error:  # weights of another shape
        raise InputError(f"reward {name!r}: a reward model has one output, this one has more") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"]))
        raise InputError(
            f"reward {name!r} has no trained reward head ({missing} is missing): it is another kind of model"
        )
    reward = ClassifierReward(model, tokenizer, add_special_tokens=False)
    reward.__name__ = name.rstrip("/").split("/")[-1]  # as TRL names its metrics
    return reward
