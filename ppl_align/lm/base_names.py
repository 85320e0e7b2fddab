"""What a network is called wherever it is: a hub name, a folder's own name, never a path of one machine."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath
from typing import Any

from ppl_align.lm.names import SMOLLM2

SMOLLM2_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_CACHE = re.compile(r"models--([^/\\]+?)--([^/\\]+?)[/\\]snapshots")


def base_name(lm: Any) -> str:
    """The name of an LM's base model for what is saved: see :func:`portable`."""
    return portable(str(lm.name))


def portable(name: str) -> str:
    """A hub name as it is; of a path, what it ends in; the built-in model by its name on the hub.

    >>> portable("org/model"), portable("/home/me/models/my-model/"), portable("smollm2-135m")
    ('org/model', 'my-model', 'HuggingFaceTB/SmolLM2-135M-Instruct')
    >>> portable("/cache/models--org--model/snapshots/12ab")
    'org/model'
    """
    if name == SMOLLM2:
        return SMOLLM2_ON_HUB
    found = _HUB_CACHE.search(name)
    if found:
        return f"{found[1]}/{found[2]}"
    relative = name.startswith((".", "~")) or "\\" in name or name.count("/") > 1
    if relative or Path(name).is_absolute() or Path(name).exists():
        return PureWindowsPath(name).name or Path(name).expanduser().resolve().name
    return name
