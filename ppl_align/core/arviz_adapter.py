"""Everything that differs between ArviZ 0.x (Python 3.11) and ArviZ 1.x (Python 3.12 and later), and nothing else.

numpy and xarray in, ``InferenceData`` (0.x) or ``DataTree`` (1.x) out. No torch, and nothing of this package: the
file can be loaded on its own, which is how it is tested against the other line.

Differences that would go unnoticed: ``psislw`` takes log-weights in 0.x and their *negative* in 1.x; 0.x drops an
unknown group given to ``from_dict``; the intervals of ``summary`` are 94% HDI in 0.x and 89% equal-tailed in 1.x.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

GOOD_K = 0.7
"""Above it, importance weights have no usable variance at practical sizes (Vehtari et al., arXiv:1507.02646)."""


@cache
def _arviz() -> Any:
    """ArviZ, imported when first needed (it takes a second) and without its announcement of the next version."""
    with warnings.catch_warnings(action="ignore"):
        import arviz
    return arviz


def version() -> str:
    """The installed ArviZ, e.g. ``"0.23.4"``."""
    return str(_arviz().__version__)


def is_v1() -> bool:
    """True for ArviZ 1.x, where the container is xarray's DataTree."""
    return int(version().split(".")[0]) >= 1


def to_arviz(groups: Mapping[str, xr.Dataset]) -> Any:
    """``groups`` by name; the key ``"/"`` holds the attributes of the whole. Returns what this ArviZ works on."""
    if is_v1():
        return xr.DataTree.from_dict(dict(groups))
    named = {name: data for name, data in groups.items() if name != "/"}
    root = groups.get("/")
    return _arviz().InferenceData(attrs=None if root is None else dict(root.attrs), **named)


def read_netcdf(path: str | Path) -> Any:
    """A netCDF file, written by either line, as what this ArviZ works on."""
    if is_v1():
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            return tree.load()
    data = _arviz().from_netcdf(str(path), engine="h5netcdf")
    return data.load()


def write_netcdf(data: Any, path: str | Path) -> None:
    """What :func:`to_arviz` made, as a netCDF file."""
    data.to_netcdf(str(path), engine="h5netcdf")


class ChainStats(NamedTuple):
    """Of one number along Markov chains (Vehtari et al. 2021, arXiv:1903.08008), all chains together; NaN where nothing
    can be told.

    ``mcse``  standard error of the mean        ``ess``   effective draws of the mean
    ``rhat``  rank-normalised split R-hat       ``bulk``, ``tail``  effective draws of the bulk, and of its 5% and 95%
    quantiles, the fewer of both"""

    mcse: float
    ess: float
    rhat: float
    bulk: float
    tail: float


def chain_stats(values: np.ndarray) -> ChainStats:
    """Of ``values [chains, draws]``, finite and in their order. NaN for fewer than four draws of each and for values
    that never vary; R-hat is NaN for a single chain, and infinite for chains that never vary, but each elsewhere."""
    values, nan = np.asarray(values, dtype=float), float("nan")
    chains, draws = values.shape
    if draws < 4 or np.ptp(values) == 0:
        return ChainStats(nan, nan, nan, nan, nan)
    with warnings.catch_warnings(action="ignore"):
        if is_v1():
            stats, axes = import_module("arviz_stats.base").array_stats, {"chain_axis": 0, "draw_axis": 1}
            mcse = stats.mcse(values, method="mean", **axes)
            mean, bulk = (stats.ess(values, method=method, **axes) for method in ("mean", "bulk"))
            tail = stats.ess(values, method="tail", prob=(0.05, 0.95), **axes)
            rhat = stats.rhat(values, method="rank", **axes) if chains > 1 else nan
        else:
            mcse = _arviz().mcse(values, method="mean")
            mean, bulk, tail = (_arviz().ess(values, method=method) for method in ("mean", "bulk", "tail"))
            rhat = _arviz().rhat(values, method="rank") if chains > 1 else nan
    if chains > 1 and not np.ptp(values, axis=1).any():  # else rounding passes for a variance within chains
        rhat = float("inf")
    return ChainStats(float(mcse), float(mean), float(rhat), float(bulk), float(tail))


def autocorrelation(values: np.ndarray) -> np.ndarray:
    """Of ``values [chains, draws]`` along each chain, ``[chains, lags]``; NaN for a chain that never varies."""
    values = np.asarray(values, dtype=float)
    with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"):
        if is_v1():
            found = import_module("arviz_stats.base").array_stats.autocorr(values, axis=1)
        else:
            found = _arviz().autocorr(values)
    return np.where(np.ptp(values, axis=1, keepdims=True) == 0, np.nan, found)


def psislw(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smoothed, normalised log-weights and k-hat, over the last axis: ``[..., N] -> [..., N], [...]``.

    Arguments are *log-weights* on both lines. k-hat is infinite where there is no tail to fit."""
    log_weights = np.asarray(log_weights, dtype=float)
    with warnings.catch_warnings(action="ignore"):  # 0.x warns of large k-hat; the caller shows it
        if is_v1():
            smoothed, k = import_module("arviz_stats.base").array_stats.psislw(-log_weights, axis=-1)
        else:
            smoothed, k = _arviz().psislw(log_weights)
    return np.asarray(smoothed), np.asarray(k)


def summary(data: Any, var_names: Sequence[str] | None = None) -> Any:
    """Means, standard deviations and intervals of the equal-weight draws, a pandas frame at full precision.

    Without ESS and R-hat columns: resampled draws have no order that these could be computed from."""
    with warnings.catch_warnings(action="ignore"):
        return _arviz().summary(data, var_names=var_names, kind="stats", round_to="none")


def plot_posterior(data: Any, var_names: Sequence[str] | None = None, **options: Any) -> Any:
    """Densities of the draws: ``plot_posterior`` (0.x), ``plot_dist`` (1.x). Returns the matplotlib figure."""
    return _figure(_plot("plot_posterior", "plot_dist")(data, var_names=var_names, **options))


def plot_forest(named: Mapping[str, Any], var_names: Sequence[str] | None = None, **options: Any) -> Any:
    """Intervals of several runs beside each other, ``{"is": a, "smc": b}``. Returns the matplotlib figure."""
    plot = _plot("plot_forest", "plot_forest")
    if is_v1():
        return _figure(plot(dict(named), var_names=var_names, **options))
    options = {"combined": True, **options}
    return _figure(plot(list(named.values()), model_names=list(named), var_names=var_names, **options))


def plot_prior_posterior(data: Any, var_names: Sequence[str] | None = None, **options: Any) -> Any:
    """Prior beside posterior; needs the group ``prior``. Returns the matplotlib figure."""
    return _figure(_plot("plot_dist_comparison", "plot_prior_posterior")(data, var_names=var_names, **options))


def plot_khat(k: Sequence[float], **options: Any) -> Any:
    """k-hat of several sets of weights (say, replicates) against the line at 0.7. Returns the matplotlib figure."""
    values = xr.DataArray(np.asarray(k, dtype=float), dims=["replicate"])
    plot = _plot("plot_khat", "plot_khat")
    if is_v1():
        return _figure(plot(SimpleNamespace(pareto_k=values, good_k=GOOD_K, kind="loo"), **options))
    return _figure(plot(values, **options))


def plot_pit(values: Mapping[str, np.ndarray]) -> Any:
    """ECDFs of values that should be uniform on (0, 1), minus the diagonal, in a 99% simultaneous band.

    ``plot_ecdf`` (0.x; Säilynoja, Bürkner & Vehtari 2022), ``plot_ecdf_pit`` (1.x). Returns the matplotlib figure."""
    if is_v1():
        data = {name: (("chain", "draw"), np.asarray(v)[None]) for name, v in values.items()}
        tree = xr.DataTree.from_dict({"prior_sbc": xr.Dataset(data)})
        return _figure(_plot("", "plot_ecdf_pit")(tree, envelope_prob=0.99))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(values), 3.2), layout="constrained")
    axes = figure.subplots(1, len(values), squeeze=False)[0]
    for ax, (name, v) in zip(axes, values.items(), strict=True):
        _plot("plot_ecdf", "")(
            np.asarray(v),
            eval_points=np.linspace(0, 1, 101),
            cdf=lambda x: x,
            difference=True,
            confidence_bands="optimized",
            ci_prob=0.99,
            ax=ax,
        )
        ax.set(title=name, xlabel="rank / number of draws", ylabel="ECDF - uniform")
    return figure


def _plot(v0: str, v1: str) -> Any:
    function = getattr(_arviz(), v1 if is_v1() else v0)

    def quiet(*args: Any, **options: Any) -> Any:
        with warnings.catch_warnings(action="ignore"):
            return function(*args, **{k: v for k, v in options.items() if v is not None})

    return quiet


def _figure(result: Any) -> Any:
    """1.x returns a PlotCollection, 0.x axes or an array of axes."""
    if hasattr(result, "viz"):
        return result.viz["figure"].item()
    return np.ravel(np.asarray(result, dtype=object))[0].figure
