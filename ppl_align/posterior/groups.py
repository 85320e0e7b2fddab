"""A posterior as named xarray datasets, in ArviZ's schema: what ``to_arviz`` shows and ``save`` writes.

``weighted``, ``history`` and the attributes of ``"/"`` hold everything ``load`` needs. All other groups are views for
ArviZ, made of equal-weight draws with dimensions (chain = replicate, draw).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
import xarray as xr

from ppl_align.core.version import __version__
from ppl_align.posterior.chains import acceptance_by_state
from ppl_align.posterior.estimates import functionals
from ppl_align.posterior.naming import inner_dimensions, is_ours, position_dimension
from ppl_align.posterior.prior import drew_from_prior, log_likelihood, log_prior
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.table import systematic

FORMAT = 2
"""Version of the file layout, raised when an older ``load`` could not read a newer file. Since 2, ``scale.`` and
``log_upper.`` of ``weighted`` hold a value for each particle; 1 has one for all, in the attribute ``scales``."""
EXACT_DRAWS = 1000  # an exact posterior has no particles that would suggest a number of draws
_AXES = {  # of the histories that ArviZ should show by step, in our order
    "step": ("step",),
    "ess": ("step", "chain"),
    "resampled": ("step", "chain"),
    "log_evidence_increment": ("step", "chain"),
    "moved": ("step", "chain"),
    "exponent": ("step",),
    "num_moves": ("step",),
    "move_accepted": ("step",),
    "move_correlation": ("step",),
    "loss": ("iteration",),
}


def escape(name: str) -> str:
    """A site name as a netCDF name, where a slash would mean a group; :func:`unescape` undoes it."""
    kept = name.replace("%", "%25").replace("/", "%2F")
    return kept.replace(".", "%2E") if not kept.strip(".") else kept  # "." and ".." are no names


def unescape(name: str) -> str:
    """Undo :func:`escape`."""
    return name.replace("%2E", ".").replace("%2F", "/").replace("%25", "%")


def to_groups(posterior: Posterior) -> dict[str, xr.Dataset]:
    """All groups by name; ``"/"`` carries the attributes."""
    attrs = {"inference_library": "ppl_align", "created_at": datetime.now(UTC).isoformat(timespec="seconds")}
    groups = {
        **_equal_weight(posterior),
        "constant_data": _constants(posterior),
        "weighted": _weighted(posterior),
        "history": _history(posterior),
    }
    groups = {name: data.assign_attrs(attrs) for name, data in groups.items() if data.variables}
    return {"/": xr.Dataset(attrs=attrs | _provenance(posterior)), **groups}


def _provenance(posterior: Posterior) -> dict[str, Any]:

    def text(value: Any) -> str:
        return json.dumps(value, default=str, ensure_ascii=False)

    other = {k: v for k, v in posterior.history.items() if _array(v) is None}
    return {
        "ppl_align_format": FORMAT,
        "inference_library_version": __version__,
        "engine": posterior.engine,
        "engine_config": text(dict(posterior.config)),
        "seed": posterior.seed,
        "model": posterior.model,
        "lm": posterior.lm,
        "cost": text(posterior.cost.as_dict()),
        "plates": text({name: list(plates) for name, plates in posterior.plates.items()}),
        "drawn_scales": text(list(posterior.drawn_scales)),
        "targets": text(dict(posterior.targets)),
        "kind": str(posterior.kind),
        "steered": int(posterior.steered),
        "independent": int(posterior.independent),
        "exact": int(posterior.exact),
        "draws_are_exact": int(posterior.draws_are_exact),
        "target": posterior.target,
        "environment": text(list(posterior.environment)),
        "optimism": "" if posterior.optimism is None else posterior.optimism.to_json(),
        "provenance": "" if posterior.provenance is None else posterior.provenance.to_json(),
        "sites": text(list(posterior.particles)),
        "terminal": text({name: list(site._terminal) for name, site in posterior.completions.items()}),
        "stop_text": text(_stop_texts(posterior)),
        "history_other": text(other),
        "sampling_time": posterior.cost.seconds,
    }


def _stop_texts(posterior: Posterior) -> dict[str, Any]:
    """The strings that end a text, for each completion that has some which several tokens may spell."""
    ends = {name: getattr(site._terminal, "text", None) for name, site in posterior.completions.items()}
    return {name: stop.as_dict() for name, stop in ends.items() if stop is not None}


def _numpy(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _array(value: Any) -> np.ndarray | None:
    """History entries that are arrays of numbers; anything else travels as JSON."""
    array = _numpy(value)
    return array if array.dtype.kind in "biuf" and array.ndim else None


def _storable(texts: list[str]) -> np.ndarray:
    """Strings that HDF5 can hold: no NUL, no lone surrogate. The token ids keep the exact truth."""
    clean = [t.replace("\x00", "\N{SYMBOL FOR NULL}").encode("utf-8", "replace").decode("utf-8") for t in texts]
    array = np.empty(len(clean), dtype=object)
    array[:] = clean
    return array


def _weighted(posterior: Posterior) -> xr.Dataset:
    """The particles as they are, (chain, particle), each variable named ``kind.site``; no dimension has a dot."""
    lead = ("chain", "particle")
    data: dict[str, Any] = {"log_weight": (lead, _numpy(posterior.log_weight))}
    if posterior.log_proposal is not None:
        data["log_proposal"] = (lead, _numpy(posterior.log_proposal))
    for kind, parts in (
        ("reward", posterior.rewards),
        ("scale", posterior.scales),
        ("factor", posterior.factors),
        ("log_upper", posterior.log_upper),
        ("log_prior", posterior.log_prior),
    ):
        data |= {f"{kind}.{escape(name)}": (lead, _numpy(value)) for name, value in parts.items()}
    for name, value in posterior.latents.items():
        data[f"latent.{escape(name)}"] = ((*lead, *_inner(posterior, name, _undotted)), _numpy(value))
    for name, site in posterior.completions.items():
        key, dims = escape(name), (*lead, *_inner(posterior, name, _undotted))
        data[f"tokens.{key}"] = ((*dims, position_dimension(_undotted(name))), _numpy(site.tokens).astype(np.int32))
        data[f"text.{key}"] = (dims, _storable(site.texts()).reshape(site.shape))
        prompts = site.prompt_texts()
        if prompts:
            distinct, index = np.unique(np.array(prompts, dtype=object), return_inverse=True)
            data[f"prompts.{key}"] = ((f"{_undotted(name)}_prompt",), _storable(list(distinct)))
            data[f"prompt_index.{key}"] = (dims, index.reshape(site.shape).astype(np.int32))
    return xr.Dataset(data)


def _undotted(name: str) -> str:
    return escape(name).replace(".", "%2E")


def _inner(posterior: Posterior, name: str, key: Callable[[str], str] = escape) -> tuple[str, ...]:
    """The dimensions of one particle at a site (tokens aside): plates by their names, others by number."""
    shape = posterior.particles[name].shape[2:]
    plates = posterior.plates.get(name, ())
    sizes = _plate_sizes(posterior)
    dims = list(inner_dimensions(key(name), len(shape)))
    for i, (plate, size) in enumerate(zip(plates, shape, strict=False)):
        if plate is not None and sizes[plate] == {size}:
            dims[i] = key(_dimension(posterior, plate))
    return tuple(dims)


def _plate_sizes(posterior: Posterior) -> dict[str, set[int]]:
    """The sizes that the plates of each name have: one, unless a program gives two plates one name."""
    sizes: dict[str, set[int]] = {}
    for name, plates in posterior.plates.items():
        for plate, size in zip(plates, posterior.particles[name].shape[2:], strict=False):
            if plate is not None:
                sizes.setdefault(plate, set()).add(size)
    return sizes


def _dimension(posterior: Posterior, plate: str) -> str:
    """The name of a plate as that of a dimension: no word of ours or of a site's, no column and no other plate."""
    sites = set(posterior.columns)
    others = {name for plates in posterior.plates.values() for name in plates if name is not None} - {plate}
    taken = others | set(posterior.columns.values())
    while is_ours(plate, sites) or plate in taken:
        plate += "_"
    return plate


def _history(posterior: Posterior) -> xr.Dataset:
    arrays = {name: _array(value) for name, value in posterior.history.items()}
    data = {
        escape(name): (tuple(f"{escape(name)}_axis_{i}" for i in range(array.ndim)), array)
        for name, array in arrays.items()
        if array is not None
    }
    return xr.Dataset(data)


def _constants(posterior: Posterior) -> xr.Dataset:
    """What is the same for all draws."""
    names = [name for name in posterior.scales if name not in posterior.drawn_scales]
    values = [float(torch.as_tensor(posterior.scales[name], dtype=torch.float64).reshape(-1)[0]) for name in names]
    scales = xr.DataArray(values, dims=["reward"], coords={"reward": names})
    return xr.Dataset({"nats_per_unit": scales}) if names else xr.Dataset()


def _equal_weight(posterior: Posterior) -> dict[str, xr.Dataset]:
    """Shuffled equal-weight draws of every replicate (a chain as it is); one that died has none and is left out."""
    replicates, particles = posterior.log_weight.shape
    generator = np.random.default_rng(posterior.seed)
    chains = [r for r in range(replicates) if bool(posterior.log_weight[r].isfinite().any())]
    weights = torch.softmax(posterior.log_weight, -1).numpy()
    n = EXACT_DRAWS if posterior.exact else particles
    if posterior.kind.is_ordered:  # a chain is what its draws are, one after the other
        index = np.tile(np.arange(n), (len(chains), 1))
    else:
        index = np.stack([systematic(weights[r], n, generator) for r in chains])
    rows = np.array(chains)[:, None]
    coords = {"chain": chains, "draw": np.arange(n)}

    def pick(value: Any, *extra: str) -> tuple[tuple[str, ...], np.ndarray]:
        return ("chain", "draw", *extra), _numpy(value)[rows, index]

    numbers = {escape(column): value for column, value in functionals(posterior).items()}
    safe = {name: escape(column) for name, column in posterior.columns.items()}
    draws: dict[str, Any] = {column: pick(value) for column, value in numbers.items()}
    for name, value in posterior.latents.items():
        draws[safe[name]] = pick(value, *_inner(posterior, name))
    texts: dict[str, Any] = {}
    for name, site in posterior.completions.items():
        inner = _inner(posterior, name)
        texts[f"{escape(name)}_tokens"] = pick(
            _numpy(site.tokens).astype(np.int32), *inner, position_dimension(escape(name))
        )
        texts[f"{escape(name)}_text"] = pick(_storable(site.texts()).reshape(site.shape), *inner)
    joint = log_prior(posterior) + log_likelihood(posterior)
    stats: dict[str, Any] = {"lp": pick(joint), "log_weight": pick(posterior.log_weight)}
    for name in posterior.drawn_scales:
        stats[f"nats_per_unit_{escape(name)}"] = pick(posterior.scales[name])
    stats["log_evidence"] = (("chain",), _numpy(posterior.log_evidence)[chains])
    stats |= _steps(posterior.history, chains, replicates)
    rate = acceptance_by_state(posterior)
    if rate is not None:
        stats["acceptance_rate"] = pick(rate)
    groups = {
        "posterior": xr.Dataset(draws, coords),
        "sample_stats": xr.Dataset(stats, coords),
        "log_likelihood": xr.Dataset({safe[n]: pick(v) for n, v in posterior.factors.items()}, coords),
        "log_prior": xr.Dataset({safe[n]: pick(v) for n, v in posterior.log_prior.items()}, coords),
        "completions": xr.Dataset(texts, coords),
    }
    if drew_from_prior(posterior):
        raw = {name: (("chain", "draw"), _numpy(value)) for name, value in numbers.items()}
        groups["prior"] = xr.Dataset(raw, {"chain": np.arange(replicates), "draw": np.arange(particles)})
    return groups


def _steps(history: Mapping[str, Any], chains: list[int], replicates: int) -> dict[str, Any]:
    """What engines record step by step, chains first as ArviZ expects."""
    found: dict[str, Any] = {}
    for name, dims in _AXES.items():
        array = _array(history[name]) if name in history else None
        if array is None or array.ndim != len(dims):
            continue
        if dims[-1] == "chain":
            if array.shape[1] == replicates:
                found[f"step_{name}"] = (("chain", "step"), array.T[chains])
        else:
            found["step_number" if name == "step" else name] = (dims, array)
    return found
