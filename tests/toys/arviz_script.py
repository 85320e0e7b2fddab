"""Run by test_arviz_lines.py under either ArviZ line: ``python arviz_script.py ADAPTER FOLDER``.

Imports nothing of this package but the adapter, by its path; prints what it found as JSON.
"""

import importlib.util
import json
import sys
from pathlib import Path


def main(adapter_path: str, folder: Path) -> dict:
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    import xarray as xr

    spec = importlib.util.spec_from_file_location("arviz_adapter", adapter_path)
    adapter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(adapter)

    # a file that Posterior.save wrote, and one that the other line's own writer wrote
    runs = {name: adapter.read_netcdf(folder / f"{name}.nc") for name in ("importance", "smc", "by_arviz")}
    data = runs["importance"]
    summary = adapter.summary(data)

    for name, figure in {
        "forest": adapter.plot_forest({"is": data, "smc": runs["smc"]}, var_names=["praise"]),
        "posterior": adapter.plot_posterior(data, var_names=["praise"]),
        "prior": adapter.plot_prior_posterior(data, var_names=["praise"]),
        "khat": adapter.plot_khat([0.2, 0.6, 0.9]),
    }.items():
        figure.savefig(folder / f"{name}-{adapter.version()}.png")

    with xr.open_datatree(folder / "importance.nc", engine="h5netcdf") as tree:
        groups = {"/": tree.to_dataset(inherit=False).load()}
        groups |= {name: child.to_dataset(inherit=False).load() for name, child in tree.children.items()}
    adapter.write_netcdf(adapter.to_arviz(groups), folder / f"rewritten-{adapter.version()}.nc")

    log_weights = np.load(folder / "log_weights.npy")
    smoothed, k = adapter.psislw(log_weights)
    chains = np.load(folder / "chains.npy")
    return {
        "chains": list(adapter.chain_stats(chains)),
        "single": list(adapter.chain_stats(chains[:1])),
        "apart": adapter.chain_stats(np.repeat(chains[:, :1], 50, axis=1)).rhat,
        "nothing": [*adapter.chain_stats(np.ones((4, 50))), *adapter.chain_stats(chains[:, :3])],
        "autocorrelation": adapter.autocorrelation(chains)[:, :4].tolist(),
        "version": adapter.version(),
        "is_v1": adapter.is_v1(),
        "container": type(data).__name__,
        "torch": "torch" in sys.modules or "ppl_align" in sys.modules,
        "mean": float(summary.loc["praise", "mean"]),
        "columns": [str(c) for c in summary.columns],
        "by_arviz": float(runs["by_arviz"]["posterior"]["praise"].mean()),
        "k": k.tolist(),
        "normalised": float(np.exp(smoothed).sum(-1).mean()),
        # smoothing cuts the largest weights off at one value, so they may tie
        "heaviest_stay": bool((smoothed[range(3), log_weights.argmax(-1)] == smoothed.max(-1)).all()),
    }


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
