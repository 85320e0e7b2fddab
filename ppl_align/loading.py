"""From what a user calls a model or an engine to the object itself.

>>> load_model("examples/nothing_here.py")
Traceback (most recent call last):
ppl_align.core.errors.ModelError: no such model file: examples/nothing_here.py
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ppl_align.core.errors import InputError, ModelError, PplAlignError
from ppl_align.gallery import entries, find

Model = Callable[..., Any]


@dataclass(frozen=True)
class Recipe:
    """An engine and the name it goes by: the stem of the file it was read from."""

    name: str
    engine: Any


def load_model(spec: str) -> Model:
    """A Pyro model from a gallery name, ``file.py``, ``file.py:function`` or ``package.module:attr``.

    A file's model is the public function defined in it; of several, the one that is named like the file, else the only
    one that calls ``completion``.
    Relative imports of a file's neighbours work by plain name, as they do for a script.
    Raises ``ModelError`` saying what was looked for; whatever this library raises while the file is loaded
    (say, ``WeightsNotFound``) passes through.
    """
    where, _, attribute = spec.rpartition(":") if ":" in spec and not spec.endswith(".py") else (spec, "", "")
    path = Path(where).expanduser()
    if path.suffix == ".py":
        if not path.is_file():
            raise ModelError(f"no such model file: {where}{_neighbour(path)}")
        return _model_in(load_file(path), where, attribute)
    found = find("models", where)
    if found is not None:
        return _model_in(load_file(found), where, attribute)
    if attribute and all(part.isidentifier() for part in where.split(".")):
        return _attribute(_import_module(where), where, attribute)
    known = [entry.name for entry in entries("models")]
    raise ModelError(f"no model called {where!r} in the gallery{_own_file('models', where) or nearest(where, known)}")


def load_engine(spec: str) -> Recipe:
    """An engine from the name of a gallery recipe, or from a file that holds ``engine = SMC(...)``."""
    path = Path(spec).expanduser()
    if path.suffix == ".py":
        if not path.is_file():
            raise InputError(f"no such engine file: {spec}{_neighbour(path)}")
    else:
        found = find("inference", spec)
        if found is None:
            known = [entry.name for entry in entries("inference")]
            raise InputError(
                f"no engine called {spec!r} in the gallery{_own_file('inference', spec) or nearest(spec, known)}"
            )
        path = found
    engine = getattr(load_file(path), "engine", None)
    if engine is None:
        raise InputError(f"{spec} defines no `engine`: write `engine = SMC(num_particles=64)`, or another engine")
    if not is_dataclass(engine) or isinstance(engine, type) or not callable(getattr(engine, "run", None)):
        raise InputError(f"{spec}: `engine` is {_shown(engine)}, not an engine: write `engine = SMC(num_particles=64)`")
    return Recipe(path.stem, engine)


def load_file(path: Path) -> ModuleType:
    """Execute a Python file as a module of its own.

    What it raises becomes a one-line ``ModelError`` that names the line; errors of this library pass through."""
    path = path.resolve()
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"ppl_align_file_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last, so that a neighbour never hides an installed package
    sys.modules[name] = module  # dataclasses and pickle look a class's module up
    try:
        spec.loader.exec_module(module)
    except PplAlignError:
        sys.modules.pop(name, None)
        raise
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise ModelError(f"cannot load {describe(error, path)}") from error
    return module


def describe(error: BaseException, path: Path | None) -> str:
    """``file.py, line 3: ValueError: ...``: an error and the last line of ``path`` it went through."""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if path is None:
        return what
    line = line_in(error, path)
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line, what = error.lineno, f"{type(error).__name__}: {error.msg}"
    return f"{path.name}{'' if line is None else f', line {line}'}: {what}"


def error_line(error: BaseException, source: Path | None = None, where: str = "", hint: str = "") -> str:
    """An error as one readable line; ``source`` is the file of the user's model, to point into where it can.

    ``where``: the row of a data file that was at work; ``hint``: what it may be about."""
    where, hint = f"{where}: " if where else "", f". {hint}" if hint else ""
    if isinstance(error, PplAlignError):
        return f"error: {where}{' '.join(str(error).split())}{hint}"
    inside = source is not None and line_in(error, source) is not None
    what = " ".join(describe(error, source if inside else None).split())
    return f"{'error' if inside else 'internal error'}: {where}{what} (add --debug for the traceback)"


def line_in(error: BaseException, path: Path) -> int | None:
    """The innermost line of ``path`` on the error's traceback, None where it never went through that file."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return lines[-1] if lines else None


def source_file(model: Model) -> Path | None:
    """The file a model was written in."""
    try:
        found = inspect.getsourcefile(inspect.unwrap(model))
    except TypeError:
        return None
    return Path(found) if found else None


def nearest(word: str, known: Iterable[str]) -> str:
    """A tail for an error message: the nearest known word, else all of them.

    >>> nearest("importnace", ["importance", "smc"])
    "; did you mean 'importance'?"
    >>> nearest("zzz", ["importance", "smc"])
    '; there are importance, smc'
    """
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there {'is' if len(known) == 1 else 'are'} {', '.join(known) or 'none'}"


def _model_in(module: ModuleType, where: str, attribute: str) -> Model:
    if attribute:
        return _attribute(module, where, attribute)
    public = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    if not public:
        raise ModelError(f"{where} defines no model: write a function that calls completion(...) and reward(...)")
    stem = Path(module.__file__ or where).stem
    if stem in public:
        return public[stem]
    writers = [name for name, function in public.items() if "completion" in function.__code__.co_names]
    if len(public) > 1 and len(writers) != 1:
        raise ModelError(
            f"{where} defines several functions ({', '.join(public)}): say which one is the model, "
            f"e.g. {where}:{(writers or list(public))[-1]}, or start the names of the others with an underscore"
        )
    return public[writers[0]] if writers else next(iter(public.values()))


def _attribute(module: ModuleType, where: str, attribute: str) -> Model:
    if not hasattr(module, attribute):
        public = [name for name, value in vars(module).items() if inspect.isfunction(value) and name[:1] != "_"]
        raise ModelError(f"{where} has no {attribute!r}{nearest(attribute, public)}")
    model = getattr(module, attribute)
    if not callable(model):
        raise ModelError(f"{where}:{attribute} is {_shown(model)}, not a function")
    return model


def _import_module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        return importlib.import_module(name)
    except PplAlignError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ModelError(f"no such module: {name} (for a file, write its path with .py)") from None
        raise ModelError(f"cannot import {name}: {describe(error, None)}") from error


def _neighbour(path: Path) -> str:
    """The nearest file name in the same folder."""
    others = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, others, n=1)
    return f"; did you mean {str(path.parent / close[0])!r}?" if close else ""


def _own_file(kind: str, name: str) -> str:
    """A file of the user's that was probably meant: ``models/NAME.py`` or ``NAME.py``."""
    candidates = [Path(f"{name}.py"), Path(kind) / f"{name}.py"]
    found = next((str(p) for p in candidates if p.is_file()), None)
    return f"; did you mean the file {found!r}?" if found else ""


def _shown(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
