"""What a result was made from, and with what: kept in every posterior and guide, and in their files.

Nothing here names a machine or its user: no folders, no host. The command is the exception; it is kept as typed.
"""

from __future__ import annotations

import functools
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppl_align.core.digests import digest
from ppl_align.core.version import __version__
from ppl_align.lm.base import LM
from ppl_align.lm.fingerprint import of_parts, parts
from ppl_align.lm.names import portable

_VERSIONS = {
    "torch": "torch",
    "transformers": "transformers",
    "pyro": "pyro-ppl",
    "arviz": "arviz",
    "numpy": "numpy",
    "peft": "peft",
}


@dataclass(frozen=True)
class LMRecord:
    """One language model of a run.

    ``fingerprint`` tells LMs apart, ``parts`` says in what they differ (:mod:`ppl_align.lm.fingerprint`); ``device``
    and ``dtype`` are those of its numbers; ``adapter`` says which one it has, if any; ``members`` are those of a
    mixture, a product or a prompted LM."""

    name: str
    kind: str
    fingerprint: str
    parts: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    dtype: str = ""
    adapter: Mapping[str, Any] | None = None
    members: tuple[LMRecord, ...] = ()

    @classmethod
    def of(cls, lm: LM) -> LMRecord:
        """What is to be said of an LM as it is now."""
        inside, found = _members(lm), parts(lm)
        tensor = _some_tensor(lm)
        return cls(
            name=public_name(lm),
            kind=type(lm).__name__,
            fingerprint=of_parts(found),
            parts=found,
            device=_device(lm.device),
            dtype="" if tensor is None else str(tensor.dtype).removeprefix("torch."),
            adapter=_adapter(getattr(lm, "model", None)),
            members=tuple(cls.of(member) for member in inside),
        )

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> LMRecord:
        known = {f.name: held[f.name] for f in fields(cls) if f.name in held}
        return cls(**known | {"members": tuple(cls.from_dict(member) for member in held.get("members", ()))})


@dataclass(frozen=True)
class Provenance:
    """``versions`` by library; ``lms``: the language models; ``threads`` of torch on the CPU; ``program``, ``data``:
    digests of the program's source and of its arguments (:mod:`ppl_align.core.digests`); ``seed``; ``command``:
    what was typed, empty where nothing was (a notebook)."""

    versions: Mapping[str, str]
    lms: tuple[LMRecord, ...] = ()
    threads: int = 0
    program: str = ""
    data: str = ""
    seed: int = 0
    command: str = ""

    @classmethod
    def of(
        cls, model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], seed: int, lms: Sequence[LM]
    ) -> Provenance:
        """Of a run of ``model(*args, **kwargs)`` that asked ``lms``."""
        return cls(
            versions=dict(versions()),
            lms=tuple(LMRecord.of(lm) for lm in {id(lm): lm for lm in lms}.values()),
            threads=torch.get_num_threads(),
            program=digest(model),
            data=digest(list(args), dict(kwargs)),
            seed=seed,
            command=command(),
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.as_dict(), ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """Read what :meth:`to_json` wrote; fields of later versions are left out."""
        held = json.loads(text)
        known = {f.name: held[f.name] for f in fields(cls) if f.name in held}
        return cls(**known | {"lms": tuple(map(LMRecord.from_dict, held.get("lms", ())))})

    def __str__(self) -> str:
        used = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = [f"versions  {used}", f"threads   {self.threads}", f"seed      {self.seed}"]
        lines += [f"LM        {_said(lm)}" for lm in self.lms]
        lines += [f"program   {self.program}", f"data      {self.data}"]
        return "\n".join([*lines, f"command   {self.command}"] if self.command else lines)

    @property
    def line(self) -> str:
        """The short form that a summary ends in."""
        lms = ", ".join(f"{lm.name} {lm.fingerprint}" for lm in self.lms)
        where = sorted({" ".join(filter(None, (lm.dtype, "on", lm.device))) for lm in self.lms if lm.device})
        on = f", {' and '.join(where)}" if where else ""
        made = f"ppl-align {self.versions.get('ppl-align', '?')}, torch {self.versions.get('torch', '?')}{on}"
        return f"{made}; fingerprints: {lms}" if lms else made


def differences(named: Mapping[str, Provenance | None]) -> str | None:
    """One line on runs that say they are of one target and were made from something else; None where they agree.

    Compared is what runs have in common: LMs of one name, programs, arguments. Runs that do not know are left out."""
    known = [(name, held) for name, held in named.items() if held is not None]
    for i, (first, one) in enumerate(known):
        for second, other in known[i + 1 :]:
            found = list(_different(one, other))
            if found:
                return (
                    f"{first!r} and {second!r} may be runs of different targets, whose numbers cannot be compared: "
                    f"{'; '.join(found)}"
                )
    return None


def _different(one: Provenance, other: Provenance) -> Iterator[str]:
    for name in dict.fromkeys(lm.name for lm in one.lms):
        mine, its = ([lm for lm in side.lms if lm.name == name] for side in (one, other))
        prints = [{lm.fingerprint for lm in side} for side in (mine, its)]
        if its and not (prints[0] <= prints[1] or prints[1] <= prints[0]):
            yield f"the language model {name!r} differs in its {_in_what(mine[0], its[0])}"
    for what, a, b in (("source", one.program, other.program), ("arguments", one.data, other.data)):
        if a != b:
            yield f"the program's {what} differ{'s' if what == 'source' else ''} ({a} and {b})"


def _in_what(one: LMRecord, other: LMRecord) -> str:
    same = {p for p in one.parts if one.parts[p] == other.parts.get(p)}
    odd = [part for part in {**one.parts, **other.parts} if part not in same | {"files", "rounded"}]
    types = f" ({one.dtype} and {other.dtype})" if one.dtype != other.dtype else ""
    return (" and ".join(odd) or "fingerprint") + types + f", {one.fingerprint} and {other.fingerprint}"


@functools.cache
def versions() -> Mapping[str, str]:
    """Of ppl-align, Python and the libraries whose versions may change a result."""

    found = {"ppl-align": __version__, "python": platform.python_version()}
    for name, distribution in _VERSIONS.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """What was typed to start this process: the program without its folder, its arguments as they are."""
    if hasattr(sys, "ps1") or "ipykernel" in sys.modules or not getattr(sys, "argv", None):
        return ""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None:
        start = ["python", "-m", spec.name.removesuffix(".__main__")]
    else:
        first = Path(sys.argv[0]).name
        start = ["python", first] if first.endswith(".py") or first == "-c" else [first or "python"]
    return shlex.join([*start, *sys.argv[1:]])


def public_name(lm: LM) -> str:
    """An LM's name without the folders of one machine."""
    inside = _members(lm)
    if not inside:
        return portable(lm.name)
    name = lm.name
    for member in inside:
        name = name.replace(member.name, public_name(member))
    return name


def _members(lm: Any) -> list[LM]:
    held = [*getattr(lm, "lms", ()), getattr(lm, "lm", None)]
    return [member for member in held if isinstance(member, LM)]


def _said(lm: LMRecord) -> str:
    where = " ".join(part for part in (lm.dtype, "on" if lm.dtype and lm.device else "", lm.device) if part)
    text = f"{lm.name} ({lm.kind}{', ' + where if where else ''}): {lm.fingerprint}"
    if lm.adapter is not None:
        text += f", adapter {lm.adapter.get('type', '')} {lm.adapter.get('digest', '')}"
    return text + (f" of [{'; '.join(map(_said, lm.members))}]" if lm.members else "")


def _device(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def _some_tensor(lm: Any) -> Tensor | None:
    network = getattr(lm, "model", None)
    held = network.parameters() if isinstance(network, nn.Module) else vars(lm).values()
    return next((v for v in held if isinstance(v, Tensor) and v.is_floating_point()), None)


def _adapter(network: Any) -> Mapping[str, Any] | None:
    """Which adapter (PEFT) a network has: its kind, rank and layers, and a digest of its numbers."""
    configs = getattr(network, "peft_config", None)
    if not configs:
        return None
    config = next(iter(configs.values()))
    own = {k: v for k, v in network.state_dict().items() if "lora_" in k or "modules_to_save" in k}
    return {
        "type": str(getattr(config.peft_type, "value", config.peft_type)),
        "rank": getattr(config, "r", None),
        "layers": sorted(map(str, getattr(config, "target_modules", None) or ())),
        "base": portable(str(getattr(config, "base_model_name_or_path", "") or "")),
        "digest": digest(own),
    }
