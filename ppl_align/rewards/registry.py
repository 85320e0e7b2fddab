"""Rewards by name: the shipped ones, dotted paths to anybody's, and reward models by folder or hub name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from ppl_align.core.errors import InputError, PplAlignError
from ppl_align.loading import load_file
from ppl_align.rewards.classifier import ClassifierReward, find_tokenizer, load_classifier
from ppl_align.rewards.judge import Judge, PairwiseJudge
from ppl_align.rewards.keywords import Keywords
from ppl_align.rewards.length import LengthReward
from ppl_align.rewards.readability import Readability
from ppl_align.rewards.similarity import Similarity
from ppl_align.rewards.toxicity import Toxicity
from ppl_align.rewards.vader import Vader


@dataclass(frozen=True)
class Shipped:
    """A reward of this library: what it says in a line, and the arguments it cannot do without."""

    kind: type
    what: str
    arguments: tuple[str, ...] = ()

    @property
    def call(self) -> str:
        """How it is written in a model."""
        return f"{self.kind.__name__}({', '.join(self.arguments)})"


SHIPPED: dict[str, Shipped] = {
    "judge": Shipped(Judge, "an LM's log-odds of yes over no about the text", ("lm", "question")),
    "keywords": Shipped(Keywords, "any, all or how many of some words occur", ("words",)),
    "length": Shipped(LengthReward, "its length, or how near it is to a target"),
    "pairwise_judge": Shipped(
        PairwiseJudge, "an LM's log-odds that the text beats another", ("lm", "question", "opponent")
    ),
    "readability": Shipped(Readability, "Flesch's reading ease, or a school grade"),
    "similarity": Shipped(Similarity, "nearness in meaning to a text (MiniLM)", ("to",)),
    "toxicity": Shipped(Toxicity, "minus P(hate speech or offensive language)"),
    "vader": Shipped(Vader, "sentiment of English, by a lexicon with rules"),
}


def names() -> list[str]:
    """The shipped rewards that a name alone is enough for.

    >>> names()
    ['length', 'readability', 'toxicity', 'vader']
    """
    return sorted(name for name, entry in SHIPPED.items() if not entry.arguments)


@lru_cache(maxsize=128)
def resolve(name: str) -> Callable[..., Any]:
    """The reward of that name: a shipped one, ``package.module:function``, ``package.module.function`` or
    ``file.py:function``; a folder with a sequence-classification model, or its hub name (with a slash); of a model with
    several labels the log-odds of one, ``folder:LABEL``, ``owner/name:LABEL``.

    Modules are looked for in the working directory too. A class is instantiated without arguments. Raises
    ``InputError``, with the nearest name that exists.
    """
    if name in SHIPPED:
        entry = SHIPPED[name]
        if entry.arguments:
            raise InputError(
                f"reward {name!r} needs arguments: write ppl_align.rewards.{entry.call} in the model, or in a module "
                "of yours, and name it by its path, module:name"
            )
        return entry.kind()
    if names_a_model(name):
        return load_classifier(name)
    model, _, label = name.rpartition(":")
    if label and names_a_model(model):
        return load_classifier(model, label=label)
    found = _import(name)
    if isinstance(found, type):
        try:
            return found()
        except TypeError as error:
            raise InputError(f"reward {name!r} is a class that needs arguments: {error}") from error
    if not callable(found):
        raise InputError(f"reward {name!r} is a {type(found).__name__}, not a function")
    return found


def names_a_model(name: str) -> bool:
    """A folder that holds a network, or what looks like a name on the hub."""
    if (Path(name).expanduser() / "config.json").is_file():
        return True
    return "/" in name and ":" not in name and not name.endswith(".py")


def labelled(name: str, fn: Any, label: str | int | None, output: str | None) -> Any:
    """``fn`` itself where nothing is said of labels; else the reward that a classifier's label is, as in
    ``reward("r", "a_folder", x, label="POSITIVE")``: by name, folder or model.

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


def _import(name: str) -> Any:
    module_name, separator, path = name.partition(":")
    if not separator:
        module_name, separator, path = name.rpartition(".")
    if not (separator and module_name and path):
        raise InputError(
            f"no reward is called {name!r}{_nearest(name, list(SHIPPED))}; there are {', '.join(names())}, "
            "and any function by its path, package.module:function"
        )
    found: Any = _module(name, module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            public = [attribute for attribute in dir(found) if not attribute.startswith("_")]
            raise InputError(f"reward {name!r}: {module_name} has no {part!r}{_nearest(part, public)}")
        found = getattr(found, part)
    return found


def _module(name: str, module_name: str) -> Any:
    if module_name.endswith(".py"):
        if not Path(module_name).is_file():
            raise InputError(f"reward {name!r}: no such file: {module_name}")
        return load_file(Path(module_name))
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that a neighbour never hides an installed package
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except PplAlignError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(f"reward {name!r}: there is no module {error.name!r}{_nearest(name, names())}") from error
    except Exception as error:
        raise InputError(f"reward {name!r}: importing {module_name} failed, {type(error).__name__}: {error}") from error


def _nearest(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""
