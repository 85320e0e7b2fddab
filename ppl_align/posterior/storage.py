"""Posteriors as netCDF files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import netCDF4
import torch
import xarray as xr
from torch import Tensor
from xarray.backends import NetCDF4DataStore

from ppl_align.core.cost import Cost
from ppl_align.core.errors import InputError, first_line
from ppl_align.core.files import written_beside
from ppl_align.core.text import Texts
from ppl_align.lm.completions import Completion
from ppl_align.lm.stopping import StopIds, StopText
from ppl_align.posterior.groups import FORMAT, escape, to_groups, unescape
from ppl_align.posterior.kind import Kind, kind_of_flags
from ppl_align.posterior.optimism import Optimism
from ppl_align.posterior.result import Posterior
from ppl_align.program.provenance import Provenance

_PLAIN = re.compile(r"[A-Za-z0-9_\x80-\U0010ffff][^\x00-\x1f\x7f]*(?<! )")


def save(posterior: Posterior, path: str | Path) -> Path:
    """See :meth:`ppl_align.Posterior.save`."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"cannot save to {path}: it is a folder; give a file name such as {path / 'posterior.nc'}")
    with written_beside(path) as temporary:
        groups = to_groups(posterior)
        xr.DataTree.from_dict(groups).to_netcdf(temporary, engine=_writer(groups))
    return path


def _writer(groups: Mapping[str, xr.Dataset]) -> Literal["netcdf4", "h5netcdf"]:
    """netCDF's own library takes a fifth of the time, but refuses names that HDF5, and itself when it reads, allows."""
    names = {str(name) for data in groups.values() for name in (*data.variables, *data.dims)}
    return "netcdf4" if all(_PLAIN.fullmatch(name) for name in names) else "h5netcdf"


def load(path: str | Path) -> Posterior:
    """See :meth:`ppl_align.Posterior.load`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no saved posterior at {path}")
    try:
        attrs, groups = _read(path)
    except Exception as error:  # netCDF4 and xarray each have their own for a broken file
        raise InputError(f"{path} cannot be read as a saved posterior ({first_line(error)[:120]})") from None
    if attrs.get("inference_library") != "ppl_align" or "weighted" not in groups:
        raise InputError(f"{path} was not written by Posterior.save")
    written = _format(attrs)
    if written is None:
        raise InputError(
            f"{path} does not say which format it has: it was not written by Posterior.save, or is damaged"
        )
    if written > FORMAT:
        version = attrs.get("inference_library_version", "unknown")
        raise InputError(
            f"{path} was written by a newer ppl-align ({version}; file format {written}, this one reads {FORMAT} and "
            "older): upgrade to read it"
        )
    try:
        return _rebuild(attrs, groups["weighted"], groups.get("history"))
    except KeyError as error:
        raise InputError(f"{path} is incomplete: {error.args[0]} is missing") from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, xr.Dataset]]:
    """The file's attributes, and of its groups those that are no views for ArviZ."""
    with netCDF4.Dataset(path) as file:
        attrs = {name: file.getncattr(name) for name in file.ncattrs()}
        ours = {name: file.groups[name] for name in ("weighted", "history") if name in file.groups}
        return attrs, {name: xr.open_dataset(NetCDF4DataStore(group)).load() for name, group in ours.items()}


def _format(attrs: Any) -> int | None:
    """The version of the file's layout, None where there is no such number."""
    try:
        found = int(attrs["ppl_align_format"])
    except (KeyError, TypeError, ValueError):
        return None
    return found if found > 0 else None


def _rebuild(attrs: Mapping[str, Any], weighted: xr.Dataset, steps: xr.Dataset | None) -> Posterior:
    def of_kind(kind: str) -> dict[str, Tensor]:
        names = [str(v) for v in weighted.data_vars if str(v).startswith(kind + ".")]
        return {unescape(v[len(kind) + 1 :]): _tensor(weighted[v]) for v in names}

    terminal, latents = json.loads(attrs["terminal"]), of_kind("latent")
    for name, saved in json.loads(attrs.get("stop_text", "{}")).items():
        terminal[name] = StopIds(terminal[name], StopText.from_dict(saved))
    particles: dict[str, Completion | Tensor] = {
        name: latents[name] if name in latents else _completion(weighted, name, terminal[name])
        for name in json.loads(attrs["sites"])
    }
    history: dict[str, Any] = json.loads(attrs["history_other"])
    if steps is not None:
        history |= {unescape(str(name)): _tensor(steps[name]) for name in steps.data_vars}
    optimism = str(attrs.get("optimism", ""))
    return Posterior(
        engine=str(attrs["engine"]),
        log_weight=_tensor(weighted["log_weight"]),
        particles=particles,
        rewards=of_kind("reward"),
        scales=of_kind("scale") if _format(attrs) != 1 else json.loads(attrs["scales"]),
        drawn_scales=tuple(json.loads(attrs.get("drawn_scales", "[]"))),
        log_upper=of_kind("log_upper"),
        plates={name: tuple(plates) for name, plates in json.loads(attrs.get("plates", "{}")).items()},
        targets=json.loads(attrs.get("targets", "{}")),
        factors=of_kind("factor"),
        log_prior=of_kind("log_prior"),
        log_proposal=_tensor(weighted["log_proposal"]) if "log_proposal" in weighted else None,
        config=json.loads(attrs["engine_config"]),
        seed=int(attrs["seed"]),
        model=str(attrs["model"]),
        lm=str(attrs["lm"]),
        cost=Cost(**json.loads(attrs["cost"])),
        history=history,
        kind=_kind(attrs),
        steered=_steered(attrs, history),
        environment=tuple(json.loads(attrs.get("environment", "[]"))),
        optimism=Optimism.from_json(optimism) if optimism else None,
        provenance=Provenance.from_json(made) if (made := str(attrs.get("provenance", ""))) else None,
    )


def _kind(attrs: Mapping[str, Any]) -> Kind:
    if "kind" in attrs:
        return Kind(str(attrs["kind"]))
    draws_are_exact = bool(attrs.get("draws_are_exact", False))  # the oldest files do not say
    flags = bool(attrs["exact"]), bool(attrs["independent"]), draws_are_exact, str(attrs.get("target", "posterior"))
    return kind_of_flags(*flags, str(attrs["engine"]))


def _steered(attrs: Mapping[str, Any], history: Mapping[str, Any]) -> bool:
    if "steered" in attrs:
        return bool(attrs["steered"])
    return "loss" in history or json.loads(attrs["engine_config"]).get("proposal") is not None


def _completion(weighted: xr.Dataset, name: str, terminal: list[int]) -> Completion:
    key = escape(name)
    prompt = None
    if f"prompts.{key}" in weighted:
        prompt = Texts(weighted[f"prompts.{key}"].values[weighted[f"prompt_index.{key}"].values].astype(object))
    text = Texts(weighted[f"text.{key}"].values.astype(object))
    return Completion(_tensor(weighted[f"tokens.{key}"]).long(), text=text, prompt=prompt, terminal=terminal)


def _tensor(array: xr.DataArray) -> Tensor:
    return torch.tensor(array.values)
