"""Short digests of values, functions and networks: the same for what is the same, in any process, on any machine.

They tell apart what differs by accident; they are no protection against somebody who wants two things to look alike.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_DIGITS = 16
_WHOLE = 2**14  # elements: of larger tensors only a sample is read
_SAMPLE = 2**10
_DEEPEST = 8  # objects inside one another
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_GOLDEN = 0.6180339887498949


def digest(*values: Any) -> str:
    """Sixteen hexadecimal digits for values of any kind.

    Of functions the source counts, with what they refer to (:func:`_function`); of objects their class and public
    attributes, of language models their fingerprint, of networks and large tensors a sample of the numbers. The order
    of a mapping does not count, nor where a path lies.

    >>> digest({"a": 1, "b": 2.0}) == digest({"b": 2.0, "a": 1}), digest(1) == digest("1")
    (True, False)
    """
    return _hash(values, ()).hexdigest()[:_DIGITS]


def _parts(value: Any, above: tuple[int, ...]) -> Iterator[bytes]:
    yield type(value).__name__.encode()
    if isinstance(value, _PLAIN):
        yield value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        return
    if id(value) in above or len(above) > _DEEPEST:
        return
    inner = (*above, id(value))
    if isinstance(value, (torch.device, torch.dtype)):
        yield (value.type if isinstance(value, torch.device) else str(value)).encode()
    elif isinstance(value, nn.Module):
        yield from tensors(value.state_dict())
    elif isinstance(value, Tensor):
        yield from tensors({"": value})
    elif isinstance(value, (np.ndarray, np.generic)):
        yield from _array(np.asarray(value), inner)
    elif isinstance(value, Enum):
        yield value.name.encode()
    elif isinstance(value, PurePath):
        yield value.name.encode("utf-8", "surrogateescape")
    elif isinstance(value, Mapping):
        yield from sorted(_one(pair, inner) for pair in value.items())
    elif isinstance(value, (set, frozenset)):
        yield from sorted(_one(element, inner) for element in value)
    elif isinstance(value, (list, tuple, range)):
        for element in value:
            yield _one(element, inner)
    elif isinstance(value, FunctionType):
        yield from _function(value, inner)
    elif isinstance(value, MethodType):
        yield from (_one(value.__func__, inner), _one(value.__self__, inner))
    elif isinstance(value, functools.partial):
        yield from (_one(part, inner) for part in (value.func, value.args, value.keywords))
    elif isinstance(value, type):
        yield from (value.__qualname__.encode(), _source(value).encode())
    elif isinstance(getattr(value, "fingerprint", None), str):
        yield value.fingerprint.encode()
    else:
        yield type(value).__qualname__.encode()
        yield _one(_public(value), inner)


def _one(value: Any, above: tuple[int, ...]) -> bytes:
    return _hash((value,), above).digest()


def _hash(values: tuple[Any, ...], above: tuple[int, ...]) -> Any:
    hasher = hashlib.sha256()
    for value in values:
        for part in _parts(value, above):
            hasher.update(len(part).to_bytes(8, "big") + part)
    return hasher


def _public(value: Any) -> dict[str, Any]:
    """What an object is made of; what begins with an underscore is its own business (caches, counters)."""
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value) if not f.name.startswith("_")}
    if hasattr(value, "to_dict") and hasattr(value, "columns"):  # a data frame
        return {"columns": list(value.columns), "values": value.to_numpy()}
    return {name: held for name, held in getattr(value, "__dict__", {}).items() if not name.startswith("_")}


def _array(value: np.ndarray, above: tuple[int, ...]) -> Iterator[bytes]:
    yield f"{value.dtype.str} {value.shape}".encode()
    yield _one(value.tolist(), above) if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()


# -- tensors ----------------------------------------------------------------------------------------------


def tensors(named: Mapping[str, Any]) -> Iterator[bytes]:
    """Names, types and shapes, and the numbers: all of small tensors, of each large one a sample spread over it."""
    yield from (line.encode() for line in table(named))
    yield sampled(named).numpy().tobytes()


def table(named: Mapping[str, Any]) -> list[str]:
    """A line for each tensor, as the header of a safetensors file has it: name, type, shape."""
    held = sorted(named.items(), key=lambda pair: pair[0])
    return [f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in held if isinstance(tensor, Tensor)]


def sampled(named: Mapping[str, Any]) -> Tensor:
    """Those numbers [n], float64, which holds those of any smaller type exactly; in one transfer from each device."""
    samples: dict[torch.device, list[Tensor]] = {}
    for _, tensor in sorted(named.items()):
        if isinstance(tensor, Tensor) and not tensor.is_meta and tensor.numel():
            samples.setdefault(tensor.device, []).append(_sample(tensor.detach()))
    return torch.cat([torch.cat(parts).cpu() for parts in samples.values()] or [torch.zeros(0, dtype=torch.float64)])


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    if len(flat) > _WHOLE:
        # Multiples of the golden ratio: spread evenly, and never in step with the rows of a matrix.
        places = (torch.arange(_SAMPLE, dtype=torch.float64) * _GOLDEN).frac() * len(flat)
        flat = flat[places.long().to(flat.device)]
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    return flat.double()


# -- source -----------------------------------------------------------------------------------------------


def _function(function: FunctionType, above: tuple[int, ...]) -> Iterator[bytes]:
    """Source and defaults of a function, and what it refers to: constants, tensors, functions and classes of the user,
    and objects that can be called, as rewards are (:func:`_steady`).

    What can change while it runs (lists, counters, other objects) does not count: it would make two runs of one program
    look like runs of two."""
    yield _source(function).encode("utf-8", "surrogatepass")
    yield _one((function.__defaults__, function.__kwdefaults__), above)
    names, stored = _names(function.__code__)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    held = {name: function.__globals__[name] for name in names if name in function.__globals__}
    held |= {name: cell.cell_contents for name, cell in cells if _filled(cell)}
    for name, value in sorted(held.items()):
        if name not in stored and _counts(value):
            yield name.encode()
            yield _one(_steady(value) if _is_called(value) else value, above)


def _is_called(value: Any) -> bool:
    """An object with a ``__call__`` of its own: no function or class, and no network or language model, which may be in
    training."""
    other = (FunctionType, MethodType, BuiltinFunctionType, functools.partial, type, nn.Module)
    return callable(value) and not isinstance(value, other) and not hasattr(value, "fingerprint")


def _steady(value: Any, deepest: int = _DEEPEST) -> tuple[Any, ...]:
    """What an object is by its own word (``identity_parts``), or its class and the public attributes that count.

    Not those that its methods write: what it counts or remembers while it is called says nothing of what it is."""
    kind: Any = type(value)
    if hasattr(value, "identity_parts"):
        return (kind, *value.identity_parts())
    written: set[str] = set()
    for name, method in ((n, m) for base in kind.__mro__ for n, m in vars(base).items()):
        if isinstance(method, FunctionType) and name not in ("__init__", "__post_init__"):
            written |= {str(s.argval) for s in dis.get_instructions(method) if s.opname == "STORE_ATTR"}
    held = {name: own for name, own in _public(value).items() if name not in written}
    counted = {name: own for name, own in held.items() if isinstance(own, nn.Module) or (deepest and _counts(own))}
    return kind, {name: _steady(own, deepest - 1) if _is_called(own) else own for name, own in counted.items()}


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _counts(value: Any) -> bool:
    if isinstance(value, (tuple, frozenset)):
        return all(map(_counts, value))
    if isinstance(value, (FunctionType, type)):
        return not _is_library(value)
    frozen = is_dataclass(value) and getattr(value, "__dataclass_params__").frozen  # noqa: B009
    return isinstance(value, (*_PLAIN, Tensor)) or frozen or _is_called(value)


@functools.lru_cache(maxsize=512)
def _names(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Global names that some code may read, functions inside it included; and what it writes outside of itself."""
    names, stored = set(code.co_names), set[str]()
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_GLOBAL", "STORE_DEREF"):
            stored.add(str(step.argval))
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            below = _names(inner)
            names |= below[0]
            stored |= below[1]
    return frozenset(names), frozenset(stored)


def _source(what: Any) -> str:
    """The text of a function or class; without a file (typed at a prompt), what it was compiled to."""
    if isinstance(what, FunctionType):
        return _source_of_code(what.__code__)
    try:
        return inspect.getsource(what)
    except (OSError, TypeError):
        return str(what.__qualname__)


@functools.lru_cache(maxsize=512)
def _source_of_code(code: CodeType) -> str:
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        inner = [_source_of_code(part) for part in code.co_consts if isinstance(part, CodeType)]
        plain = [repr(part) for part in code.co_consts if not isinstance(part, CodeType)]
        return " ".join([code.co_code.hex(), *code.co_names, *plain, *inner])


@functools.cache
def _library_folders() -> tuple[str, ...]:
    folders = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    own = str(Path(__file__).parents[1])  # the package, not the folder of this file
    return tuple(f.rstrip("/\\") for f in [*folders, own, *getattr(site, "getsitepackages", list)()] if f)


def _is_library(what: Any) -> bool:
    """Versions tell what a library is; its source is not read."""
    module = sys.modules.get(getattr(what, "__module__", "") or "")
    file = getattr(module, "__file__", None)
    if file is None:
        return module is not None and module.__name__ in sys.builtin_module_names
    return any(file.startswith(folder) for folder in _library_folders())
