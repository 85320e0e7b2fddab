"""``reward("r", "a_folder", x, label="POSITIVE")``: one label of a classifier of several, by name, folder or model.

Where a reward is a string and nothing else (the command line) the label stands behind the name: "a_folder:POSITIVE"."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import nn

from ppl_align.core.errors import InputError
from ppl_align.rewards.classifier import ClassifierReward, find_tokenizer, load_classifier
from ppl_align.rewards.registry import names_a_model


def labelled(name: str, fn: Any, label: str | int | None, output: str | None) -> Any:
    """``fn`` itself where nothing is said of labels; else the reward that a classifier's label is.

    ``output``: ``"log_odds"`` (the default), log p / (1 - p) in nats, or ``"probability"``.

    Raises ``InputError`` for what is no classifier, for a label that it does not have and for another output."""
    if label is None and output is None:
        return fn
    if label is None:
        raise InputError(f"reward {name!r}: output={output!r} is said of one label of a classifier: give label= too")
    settings: dict[str, Any] = {"label": label} if output is None else {"label": label, "output": output}
    if isinstance(fn, str) and names_a_model(fn):
        return _loaded(fn, tuple(settings.items()))
    if isinstance(fn, nn.Module) and hasattr(fn, "config"):
        return ClassifierReward(fn, find_tokenizer(fn), **settings)
    got = repr(fn) if isinstance(fn, str) else type(fn).__name__
    raise InputError(
        f"reward {name!r}: label= goes with a sequence-classification model (its folder, its name on the hub, or the "
        f"model itself), not with {got}"
    )


@lru_cache(maxsize=32)
def _loaded(name: str, settings: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """Loaded once: a program names it in every execution."""
    return load_classifier(name, **dict(settings))
