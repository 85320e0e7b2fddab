"""Rewards by name: the shipped ones, and dotted paths to anybody's."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from ppl_align.errors import InputError
from ppl_align.rewards.toxicity import Toxicity
from ppl_align.rewards.vader import Vader

_SHIPPED: dict[str, type] = {"toxicity": Toxicity, "vader": Vader}


def names() -> list[str]:
    """The rewards that ship with the library.

    >>> names()
    ['toxicity', 'vader']
    """
    return sorted(_SHIPPED)


@lru_cache(maxsize=128)
def resolve(name: str) -> Callable[..., Any]:
    """The reward of that name: a shipped one, ``package.module:function`` or ``package.module.function``.

    A class is instantiated without arguments. Raises ``InputError``, with the nearest name that exists.
    """
    found = _SHIPPED[name] if name in _SHIPPED else _import(name)
    if isinstance(found, type):
        try:
            return found()
        except TypeError as error:
            raise InputError(f"reward {name!r} is a class that needs arguments: {error}") from error
    if not callable(found):
        raise InputError(f"reward {name!r} is a {type(found).__name__}, not a function")
    return found


def _import(name: str) -> Any:
    module_name, separator, path = name.partition(":")
    if not separator:
        module_name, separator, path = name.rpartition(".")
    if not (separator and module_name and path):
        raise InputError(
            f"no reward is called {name!r}{_nearest(name, names())}; there are {', '.join(names())}, "
            "and any function by its path, package.module:function"
        )
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"reward {name!r}: there is no module {error.name!r}{_nearest(name, names())}") from error
    except Exception as error:
        raise InputError(f"reward {name!r}: importing {module_name} failed, {type(error).__name__}: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            public = [attribute for attribute in dir(found) if not attribute.startswith("_")]
            raise InputError(f"reward {name!r}: {module_name} has no {part!r}{_nearest(part, public)}")
        found = getattr(found, part)
    return found


def _nearest(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""
