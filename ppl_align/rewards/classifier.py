"""A transformers sequence-classification model (a reward model, a sentiment classifier) as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppl_align.core.errors import InputError, first_line
from ppl_align.rewards.convention import plain_text

_NO_LIMIT = 10**9  # tokenizers write some huge number where they know of no limit


class ClassifierReward:
    """r = the one logit of ``model`` for prompt + completion, or what it says of one of several labels.

    ``model``               ``AutoModelForSequenceClassification``; put into evaluation mode
    ``tokenizer``           its tokenizer; chat messages go through its chat template
    ``label``               of a model with several labels: the name or number of the one that is wanted
    ``output``              what is said of it: ``"log_odds"``, log p / (1 - p) in nats, or ``"probability"``
    ``include_prompt``      read the prompt too (as TRL does), or only the completion
    ``add_special_tokens``  as the tokenizer does by default. TRL leaves them out for its reward models: pass False
                            to get its numbers
    ``batch_size``          texts per forward

    Texts longer than tokenizer and model read lose their end. Raises ``InputError`` for a model with several outputs
    and no ``label``, and for a label that it does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        label: str | int | None = None,
        output: str = "log_odds",
        include_prompt: bool = True,
        add_special_tokens: bool = True,
        batch_size: int = 32,
    ) -> None:
        if type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
            raise InputError(
                f"{type(model).__name__} writes text: a reward model is a sequence classifier with one output "
                "(AutoModelForSequenceClassification, num_labels=1)"
            )
        if output not in ("log_odds", "probability"):
            raise InputError(f"output is 'log_odds' or 'probability', got {output!r}")
        self.column = _column(model, label)
        if tokenizer is None:
            raise InputError(f"{type(model).__name__} needs its tokenizer: ClassifierReward(model, tokenizer)")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.output = output
        self.include_prompt = include_prompt
        self.add_special_tokens = add_special_tokens
        self.pad = self._config.pad_token_id
        self.limit = _limit(self._config, tokenizer)
        # Without a padding token the model cannot tell where a shorter text ends: one text at a time.
        encoder_decoder = bool(getattr(self._config, "is_encoder_decoder", False))  # finds its EOS, one in every row
        known = self.pad is not None and self.pad >= 0
        self.batch_size = batch_size if known and not encoder_decoder else 1
        self._padding: bool | None = None  # does it change nothing?
        if self.column is not None and output == "probability":
            self.lower, self.upper = 0.0, 1.0
        self.__name__ = type(model).__name__

    @property
    def _config(self) -> Any:
        return self.model.config.get_text_config()  # type: ignore[operator, union-attr]

    def identity_parts(self) -> tuple[Any, ...]:
        """What makes two of them the same reward."""
        return (self.model, self.column, self.output, self.include_prompt, self.add_special_tokens)

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
        rows = [self._encoded(text) for text in texts]
        if len(set(map(len, rows))) > 1 and not self._may_be_padded(rows):
            return [r for row in rows for r in self._score([row])]
        return self._score(rows)

    def _may_be_padded(self, rows: list[list[int]]) -> bool:
        """Does a text get the same beside a longer one? Not of some networks (FNet, ConvBERT), which read its padding.

        Asked once, of the first texts of different lengths."""
        if self._padding is None:
            short, long = min((row for row in rows if row), key=len), max(rows, key=len)
            if len(short) == len(long):  # only empty texts are shorter: nothing to be told from, so nothing is padded
                return False
            beside, alone = self._score([short, long])[0], self._score([short])[0]
            eps = torch.finfo(next(self.model.parameters()).dtype).eps
            self._padding = abs(beside - alone) <= max(1e-4, 32 * eps) * max(1.0, abs(alone))
        return self._padding

    def _score(self, rows: list[list[int]]) -> list[float]:
        width = max(1, *map(len, rows))
        pad = self.pad if self.pad is not None and self.pad >= 0 else 0
        device = next(self.model.parameters()).device
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        logits = self.model(input_ids=ids, attention_mask=mask).logits.double()
        return self._read(logits).tolist()

    def _encoded(self, text: str) -> list[int]:
        """Cut by the tokenizer itself, which keeps what has to stand at the end (EOS)."""
        cut = {} if self.limit is None else {"truncation": True, "max_length": self.limit}
        return self.tokenizer.encode(text, add_special_tokens=self.add_special_tokens, **cut)

    def _read(self, logits: Tensor) -> Tensor:
        if self.column is None:
            return logits[:, 0]
        if getattr(self.model.config, "problem_type", None) == "multi_label_classification":
            odds = logits[:, self.column]
        else:
            others = torch.arange(logits.shape[1], device=logits.device) != self.column
            odds = logits[:, self.column] - logits[:, others].logsumexp(-1)
        return odds if self.output == "log_odds" else odds.sigmoid()


def _column(model: nn.Module, label: str | int | None) -> int | None:
    """The output that is wanted; None: the only one, as it is."""
    config: Any = getattr(model, "config", None)
    outputs = getattr(config, "num_labels", None) or 0
    names: dict[int, str] = {int(k): str(v) for k, v in (getattr(config, "id2label", None) or {}).items()}
    kind = type(model).__name__
    if label is None:
        if outputs != 1:
            listed = ", ".join(names[k] for k in sorted(names))
            which = f"; of several, name one: label={names.get(1, '1')!r} (labels: {listed})" if outputs > 1 else ""
            raise InputError(
                f"{kind} has {outputs or 'no'} labels: a reward model has one output (num_labels=1){which}"
            )
        return None
    if outputs < 2:
        raise InputError(f"label={label!r}: {kind} has one output, which is the reward as it is; leave label= out")
    if isinstance(label, str):
        exact = [k for k, name in names.items() if name == label] or [
            k for k, name in names.items() if name.lower() == label.lower()
        ]
        exact = exact or [k for k in range(outputs) if label == str(k)]
        if len(exact) == 1:
            return exact[0]
    elif not isinstance(label, bool) and 0 <= label < outputs:
        return int(label)
    listed = ", ".join(f"{k}: {name}" for k, name in sorted(names.items()))
    raise InputError(f"{kind} has no label {label!r}; its labels are {listed}")


def _labels(path: str, found: dict[str, Any]) -> str:
    """The labels of a classifier that is not loaded, as far as its config tells."""
    from transformers import AutoConfig

    try:
        names = AutoConfig.from_pretrained(path, **found).id2label
    except (OSError, ValueError):
        return ""
    return f" (it has {', '.join(str(names[k]) for k in sorted(names))})" if names else ""


def _limit(config: Any, tokenizer: Any) -> int | None:
    """The most tokens that tokenizer and position table take."""
    said = getattr(tokenizer, "model_max_length", None)
    limits = [int(said)] if said is not None and 0 < said < _NO_LIMIT else []
    for name in ("max_position_embeddings", "n_positions"):
        size = getattr(config, name, None)
        if isinstance(size, int) and size > 0:
            limits.append(size - _reserved(config))
            break
    return min(limits, default=None)


def _reserved(config: Any) -> int:
    """Rows of the position table that no text uses: RoBERTa and its kin count from behind the padding id."""
    kin = ("roberta", "camembert", "longformer", "mpnet", "xmod", "data2vec-text", "ibert", "luke", "esm")
    behind = any(name in str(getattr(config, "model_type", "")) for name in kin)
    return int(config.pad_token_id) + 1 if behind and config.pad_token_id is not None else 0


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
            return AutoTokenizer.from_pretrained(origin, trust_remote_code=False)
    except (OSError, ValueError):
        raise InputError(
            f"no tokenizer found for {type(model).__name__}: give it, ClassifierReward(model, tokenizer)"
        ) from None


def load_classifier(name: str, **settings: Any) -> ClassifierReward:
    """The reward model in a folder or on the hub, read as TRL's trainers read it: one output, no special tokens.

    ``settings``: ``label``, ``output`` (then it is read as the classifier that it is, special tokens included) and
    others of :class:`ClassifierReward`; ``revision``, ``token`` and other keywords that say which files are meant.

    Raises ``InputError`` where there is none, or where its head is missing or has another number of outputs."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from ppl_align.lm.names import WHERE, hub_answers, quiet_transformers, refusal

    found: dict[str, Any] = {"trust_remote_code": False, **{k: settings.pop(k) for k in WHERE if k in settings}}
    path = str(Path(name).expanduser())
    is_local = Path(path).exists()
    if not is_local and not found.get("local_files_only") and not hub_answers():
        found["local_files_only"] = True
    one = {"num_labels": 1} if settings.get("label") is None else {}
    try:
        with quiet_transformers():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path if is_local else name, **one, **found, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(path if is_local else name, **found)
    except (OSError, ValueError) as error:
        known = refusal(name, str(error), is_local)
        said = known or f"no sequence-classification model of that name ({first_line(error)})"
        raise InputError(f"reward {name!r}: {said}") from error
    except RuntimeError as error:  # weights of another shape
        raise InputError(
            f"reward {name!r}: a reward model has one output, this one has more: name one of its labels, label=... in "
            f"reward(...) or load_classifier({name!r}, label=...), or behind its name, {name + ':LABEL'!r}"
            f"{_labels(path, found)}"
        ) from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"]))
        raise InputError(
            f"reward {name!r} has no trained reward head ({missing} is missing): it is another kind of model"
        )
    marks = bool(getattr(model.config, "is_encoder_decoder", False))  # an encoder-decoder model reads its EOS
    settings = {"add_special_tokens": marks or not one, **settings}
    reward = ClassifierReward(model, tokenizer, **settings)
    reward.__name__ = name.rstrip("/").split("/")[-1]  # as TRL names its metrics
    return reward
