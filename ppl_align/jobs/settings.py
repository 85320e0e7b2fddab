"""``--set``: text from the command line, turned into the values a model or an engine asks for."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppl_align.core.columns import lacking
from ppl_align.core.errors import InputError
from ppl_align.loading import Recipe, nearest

_PLAIN = {"int", "float", "bool", "str", "None"}
_WORDS = {"int": "a whole number", "float": "a number", "bool": "True or False", "None": "None"}


@dataclass(frozen=True)
class Settings:
    """What ``--set`` said, still as text: ``model[key]`` and ``engine[name][key]``."""

    model: dict[str, str]
    engine: dict[str, dict[str, str]]


def parse_settings(items: Sequence[str]) -> Settings:
    """``["beta=0.2", "smc.num_particles=64"]`` -> :class:`Settings`.

    >>> parse_settings(["beta=0.2", "smc.num_particles=64"])
    Settings(model={'beta': '0.2'}, engine={'smc': {'num_particles': '64'}})
    """
    settings = Settings({}, {})
    for item in items:
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"--set wants key=value, got {item!r}")
        owner, dot, name = key.rpartition(".")
        target = settings.engine.setdefault(owner, {}) if dot else settings.model
        if name in target:
            raise InputError(f"--set {key} is given twice")
        target[name] = value
    return settings


def convert(text: str, annotation: Any, label: str) -> Any:
    """A Python literal, else the text itself; where the annotation says what is wanted, only that.

    >>> convert("0.2", float, "beta"), convert("1984", str, "prompt"), convert("64", "int | str", "every")
    (0.2, '1984', 64)
    """
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = {"true": True, "false": False, "none": None}.get(text.strip().lower(), text)
    wanted = _kinds(annotation)
    if not wanted or type(value).__name__ in wanted or (value is None and "None" in wanted):
        return value
    if "float" in wanted and not isinstance(value, bool):
        try:
            return float(text)  # whole numbers, inf
        except ValueError:
            pass
    if "int" in wanted and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e3
    if "str" in wanted:
        return text
    raise InputError(f"{label} must be {' or '.join(_WORDS[w] for w in sorted(wanted))}, got {text!r}")


def _kinds(annotation: Any) -> set[str]:
    """The plain types an annotation allows; empty where it allows anything else too."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    optional = re.fullmatch(r"(?:typing\.)?Optional\[(\w+)\]", text)
    names = {"None", optional[1]} if optional else {name.strip() for name in text.split("|")}
    names = {"None" if name == "NoneType" else name for name in names}
    return names if names <= _PLAIN else set()


class Arguments:
    """A model's parameters: checks the values that are meant for it, and lays them out for the call."""

    def __init__(self, model: Callable[..., Any], spec: str) -> None:
        self.spec = spec
        try:
            self.signature = inspect.signature(model)
        except (TypeError, ValueError):
            self.signature = inspect.Signature([inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)])
        kinds = [p.kind for p in self.signature.parameters.values()]
        self.open = inspect.Parameter.VAR_KEYWORD in kinds
        variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        self.named = {n: p for n, p in self.signature.parameters.items() if p.kind not in variadic}

    def accepts(self, name: str) -> bool:
        return self.open or name in self.named

    def require(self, name: str, why: str) -> None:
        """Raises ``InputError`` unless the model has an argument of this name."""
        if not self.accepts(name):
            raise InputError(f"{why}: {self.spec} has no argument {name!r}{nearest(name, self.named)}")

    def is_left_out(self, name: str, cell: Any) -> bool:
        """Is a cell empty (null, or in a CSV file nothing), and the argument a number or truth value with a default?"""
        parameter = self.named.get(name)
        if cell not in (None, "") or parameter is None or parameter.default in (inspect.Parameter.empty, None):
            return False
        return (_kinds(parameter.annotation) or {type(parameter.default).__name__}) <= {"int", "float", "bool"}

    def convert(self, name: str, text: str, label: str) -> Any:
        """Text for argument ``name``, as its annotation wants it, else as its default is."""
        parameter = self.named.get(name)
        if parameter is None:
            return convert(text, Any, label)
        annotation = parameter.annotation
        if annotation is inspect.Parameter.empty:
            guesses = {str: "str", bool: "bool", int: "int | float", float: "float"}
            annotation = guesses.get(type(parameter.default), Any)
        return convert(text, annotation, label)

    def bind(
        self, values: Mapping[str, Any], where: str = "", columns: Sequence[str] = ()
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``(args, kwargs)`` for the call; says which arguments still have no value.

        ``where``, ``columns``: the row of a data file that values come from, and its columns."""
        missing = [n for n, p in self.named.items() if n not in values and p.default is inspect.Parameter.empty]
        if missing:
            wanted = f"{self.spec} needs a value for {', '.join(map(repr, missing))}"
            if where:
                raise InputError(f"{where}: {wanted}; {lacking(missing[0], columns)}; or give --set {missing[0]}=...")
            how = "--prompt TEXT" if missing == ["prompt"] else f"--set {missing[0]}=..."
            raise InputError(f"{wanted}: give {how}, or --data FILE with a column for each")
        positional = [n for n, p in self.named.items() if p.kind is p.POSITIONAL_ONLY]
        bound = self.signature.bind(
            *(values[n] for n in positional if n in values),
            **{n: v for n, v in values.items() if n not in positional},
        )
        bound.apply_defaults()
        return bound.args, bound.kwargs


def configure(recipes: Iterable[Recipe], settings: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Engines by the name of their recipe, with what ``--set engine.key=value`` says of them."""
    engines: dict[str, Any] = {}
    for recipe in recipes:
        if recipe.name in engines:
            raise InputError(f"two engines are called {recipe.name!r}: rename one of the files, or name it once")
        engines[recipe.name] = recipe.engine
    for name, changes in settings.items():
        if name not in engines:
            raise InputError(f"--set {name}.{next(iter(changes))}: no such engine in this run{nearest(name, engines)}")
        fields = {f.name: f for f in dataclasses.fields(engines[name]) if f.init}
        values = {}
        for key, text in changes.items():
            if key not in fields:
                raise InputError(f"--set {name}.{key}: {name} has no such option{nearest(key, fields)}")
            values[key] = convert(text, fields[key].type, f"--set {name}.{key}")
        try:
            engines[name] = dataclasses.replace(engines[name], **values)
        except (InputError, TypeError, ValueError) as error:
            given = ", ".join(f"{name}.{key}={text}" for key, text in changes.items())
            raise InputError(f"--set {given}: {error}") from error
    return engines
