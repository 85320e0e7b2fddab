"""Learned rewards as ``.npz`` files: arrays and JSON, nothing that could run."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppl_align.core.errors import InputError
from ppl_align.core.files import written_beside
from ppl_align.lm.causal import CausalLM
from ppl_align.preferences.belief import Belief
from ppl_align.preferences.features import Features, LMFeatures, Remembered, Scale
from ppl_align.preferences.posterior import RewardPosterior
from ppl_align.rewards.embedding import Embedder

FORMAT = 1
_PLAIN = ("method", "prior_scale", "num_pairs", "include_prompt")
"""Fields of a posterior that JSON holds as they are."""


def save(posterior: RewardPosterior, path: str | Path) -> Path:
    """See :meth:`RewardPosterior.save`."""
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"cannot save to {path}: a learned reward is an .npz file")
    belief, scale = posterior.belief, posterior.scale
    arrays = {"mean": belief.mean, "covariance": belief.covariance, "centre": scale.centre, "axes": scale.projection}
    if belief.draws is not None:
        arrays["draws"] = belief.draws
    about = {
        "ppl_align_learned_reward": FORMAT,
        **{name: getattr(posterior, name) for name in _PLAIN},
        "features": _describe(posterior.features),
    }
    held: dict[str, Any] = {name: array.numpy() for name, array in arrays.items()}
    with written_beside(path) as temporary, temporary.open("wb") as file:  # given a name, savez would add to it
        np.savez(file, about=np.array(json.dumps(about)), **held)
    return path


def load(path: str | Path, features: Features | None = None) -> RewardPosterior:
    """See :meth:`RewardPosterior.load`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no learned reward at {path}")
    try:
        with np.load(path, allow_pickle=False) as held:
            about = json.loads(str(held["about"]))
            arrays = {name: torch.from_numpy(held[name]) for name in held.files if name != "about"}
        version = int(about["ppl_align_learned_reward"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        raise InputError(f"{path} cannot be read as a learned reward: RewardPosterior.save writes them") from None
    if version > FORMAT:
        raise InputError(f"{path} was written by a newer ppl-align: upgrade to read it")
    return RewardPosterior(
        features if features is not None else _restore(path, about["features"]),
        Scale(arrays["centre"], arrays["axes"]),
        Belief(arrays["mean"], arrays["covariance"], arrays.get("draws")),
        **{name: about[name] for name in _PLAIN},
    )


def _describe(features: Features) -> dict[str, Any]:
    if isinstance(features, Remembered):
        return _describe(features.features)
    if isinstance(features, Embedder):
        return {"kind": "embedding", "folder": features.folder}
    if isinstance(features, LMFeatures):
        return {"kind": "lm", "name": features.lm.name}
    return {"kind": "own", "name": getattr(features, "__name__", type(features).__name__)}


def _restore(path: Path, said: dict[str, Any]) -> Features:
    if said["kind"] == "embedding":
        return Embedder(said["folder"])
    if said["kind"] == "lm":
        return LMFeatures(CausalLM(said["name"]))
    raise InputError(f"{path} was learned with {said['name']}: give these features, load(path, features)")
