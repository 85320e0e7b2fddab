"""Trained guides in folders: ``guide.json`` says what there is, ``guide.safetensors`` holds the numbers.

A network that was fine-tuned (``guide="lora"``) lies beside them as a PEFT adapter, which other libraries read. The
language model itself is not saved: the guide names it, and its fingerprint says whether it is the one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ppl_align.core.errors import InputError, first_line
from ppl_align.core.files import folder_beside
from ppl_align.guides.auto import AutoGuide
from ppl_align.guides.head import HeadGuide
from ppl_align.guides.latents import LatentGuide
from ppl_align.guides.lora import LoRAGuide
from ppl_align.guides.markov import MarkovGuide
from ppl_align.guides.table import TableGuide
from ppl_align.guides.tokens import TokenGuide
from ppl_align.lm.base import LM
from ppl_align.lm.fingerprint import fingerprint, parts
from ppl_align.program.provenance import Provenance, public_name

FORMAT = 1
INDEX, TENSORS = "guide.json", "guide.safetensors"
_KINDS: dict[str, type[TokenGuide]] = {g.kind: g for g in (HeadGuide, LoRAGuide, MarkovGuide, TableGuide)}
_SAME_AT_ANY_PRECISION = ("config", "tokenizer", "rounded")


def save(guide: AutoGuide, folder: str | Path) -> Path:
    """See :meth:`ppl_align.guides.AutoGuide.save`."""
    from safetensors.torch import save_file

    if not guide.sites:
        raise InputError("this guide was not trained, there is nothing to save: run SVI first")
    if len(guide._adapters) > 1:
        raise InputError('guide="lora" saves as one adapter, and this one has adapted several LMs')
    tensors: dict[str, Tensor] = {}
    index: dict[str, Any] = {"format": FORMAT, "kind": guide.kind, "rank": guide.rank, "nesting": guide.nesting}
    index["sites"] = {name: _site(name, part, guide, tensors) for name, part in guide.sites.items()}
    index["provenance"] = None if guide.provenance is None else guide.provenance.as_dict()
    path = Path(folder)
    with folder_beside(path, INDEX) as scratch:
        for adapter in guide._adapters.values():
            adapter.save(scratch)
        save_file(tensors, scratch / TENSORS, metadata={"format": "pt"})
        (scratch / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return path


def _site(name: str, part: nn.Module, guide: AutoGuide, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What the index says of a site; its tensors are added to those of the file."""
    entry: dict[str, Any] = {"tensors": {}}
    if isinstance(part, TokenGuide):
        lm = guide.lms[name]
        entry |= {"kind": part.kind, "settings": part.settings(), "lm": public_name(lm)}
        entry |= {"fingerprint": fingerprint(lm), "parts": parts(lm)}
    elif isinstance(part, LatentGuide):
        entry |= {"kind": LatentGuide.kind, "settings": part.settings()}
    if not isinstance(part, LoRAGuide):
        for key, value in part.named_parameters():
            entry["tensors"][key] = f"{name}.{key}"
            tensors[f"{name}.{key}"] = value.detach().cpu().contiguous().clone()
    return entry


def load_guide(folder: str | Path, *lms: LM, model: Callable[..., Any] | None = None) -> AutoGuide:
    """A guide that ``posterior.guide.save(folder)`` wrote, as a ``proposal=`` for any engine.

    ``lms``    the language models that it was trained for, in any order
    ``model``  the program, only needed where the guide itself is to be run as a Pyro guide

    Raises ``InputError`` for a folder without a guide, a broken one, or an LM that is not the one it was trained for
    (the type of its numbers apart: what was trained in bfloat16 serves in float32)."""
    from safetensors.torch import load_file

    path = Path(folder).expanduser()
    if not (path / INDEX).is_file():
        raise InputError(f"{path} holds no guide: it has no {INDEX}, which guide.save(folder) writes")
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
        tensors = load_file(path / TENSORS)
    except Exception as error:  # json and safetensors have errors of their own for a broken file
        raise InputError(f"the guide in {path} cannot be read ({first_line(error)[:120]}): save it again") from None
    try:
        if int(index["format"]) > FORMAT:
            raise InputError(f"the guide in {path} was written by a newer ppl-align: upgrade to read it")
        guide = AutoGuide(model or _no_model, index["kind"], index["rank"])
        guide.nesting = index["nesting"]
        made = index.get("provenance")
        guide.provenance = None if made is None else Provenance.from_json(json.dumps(made))
        adapted: dict[str, LoRAGuide] = {}
        for name, entry in index["sites"].items():
            own = {key: tensors[held] for key, held in entry["tensors"].items()}
            if entry["kind"] == LatentGuide.kind:
                guide.sites[name] = LatentGuide.restored(entry["settings"], own)
                continue
            lm = guide.lms[name] = _the_lm(path, entry, lms)
            if entry["kind"] == LoRAGuide.kind:
                if entry["fingerprint"] not in adapted:
                    adapted[entry["fingerprint"]] = LoRAGuide.restored(lm, {"folder": path}, {})
                guide.sites[name] = guide._adapters[id(lm)] = adapted[entry["fingerprint"]]
            else:
                guide.sites[name] = _KINDS[entry["kind"]].restored(lm, entry["settings"], own)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"the guide in {path} is incomplete ({first_line(error)[:120]}): save it again") from None
    return guide


def _the_lm(path: Path, entry: Mapping[str, Any], lms: tuple[LM, ...]) -> LM:
    """The LM that a site was trained for; raises ``InputError`` where it is not among ``lms``."""
    for lm in lms:
        if fingerprint(lm) == entry["fingerprint"]:
            return lm
    for lm in lms:
        known = parts(lm)
        if "rounded" in known and all(known.get(p) == entry["parts"].get(p) for p in _SAME_AT_ANY_PRECISION):
            return lm
    given = ", ".join(f"{lm.name} ({fingerprint(lm)})" for lm in lms) or "no LM"
    raise InputError(
        f"the guide in {path} was trained for {entry['lm']} ({entry['fingerprint']}), and was given {given}"
    )


def _no_model(*args: Any, **kwargs: Any) -> Any:
    raise InputError("a guide that was loaded does not know its program: load_guide(folder, lm, model=program)")
