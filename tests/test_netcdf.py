"""Our netCDF writer, object by object, against xarray's; our reader against what xarray wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from ppl_align.posterior import netcdf

TEXTS = np.array([["a", "", "\N{SNOWMAN}\n"], ["b", "  ", "long " * 40]], dtype=object)
GROUPS = {
    "/": xr.Dataset(attrs={"seed": 3, "empty": "", "said": "\N{SNOWMAN}", "seconds": 0.5}),
    "draws": xr.Dataset(
        {
            "x": (("chain", "draw"), np.array([[1.5, np.nan, -np.inf], [0.0, -0.0, 1e300]])),
            "small": (("chain", "draw", "x_dim_0"), np.arange(12, dtype=np.float32).reshape(2, 3, 2)),
            "said": (("chain", "draw"), TEXTS),
            "alone": ((), np.array(7.0)),
        },
        {"chain": [1, 4], "draw": np.arange(3)},
        attrs={"inference_library": "ppl_align"},
    ),
    "other": xr.Dataset({"worth": xr.DataArray([2.0, 3.0], dims=["reward"], coords={"reward": ["a", "\xe9"]})}),
    "kinds": xr.Dataset(
        {
            "truth": (("chain", "particle"), np.array([[True, False]])),
            "short": (("particle",), np.array([-1, 7], dtype=np.int32)),
            "bytes": (("particle",), np.array([0, 255], dtype=np.uint8)),
            "particle": (("chain", "particle"), np.ones((1, 2))),  # called like a dimension that it is not alone in
        }
    ),
    "nothing": xr.Dataset(
        {"steps": (("step", "chain"), np.zeros((0, 2))), "late": (("chain", "step"), np.zeros((2, 0)))}
    ),
}


def written(path: Path, by_xarray: bool) -> Path:
    if by_xarray:
        xr.DataTree.from_dict(GROUPS).to_netcdf(path, engine="h5netcdf")
    else:
        netcdf.write(GROUPS, path)
    return path


def objects(path: Path) -> dict[str, Any]:
    """Everything in an HDF5 file but chunks, and who says that it wrote it."""
    found: dict[str, Any] = {}

    def look(name: str, held: Any) -> None:
        attrs = {
            key: (repr(held.attrs[key]), held.attrs.get_id(key).shape, str(held.attrs.get_id(key).dtype))
            for key in held.attrs
            if key not in ("_NCProperties", "REFERENCE_LIST", "DIMENSION_LIST")
        }
        found[name] = [attrs, sorted(held) if isinstance(held, h5py.Group) else None]
        if isinstance(held, h5py.Dataset):
            at = [[scale.name for scale in dim.values()] for dim in held.dims] if not held.is_scale else held.is_scale
            string = h5py.check_string_dtype(held.dtype)
            fill = None if string else repr(held.fillvalue)
            found[name] += [held.dtype.str, string, held.shape, held.maxshape, fill, at, repr(held[()])]

    with h5py.File(path) as file:
        look("/", file)
        file.visititems(look)
    return found


def test_it_writes_what_xarray_writes(tmp_path: Path) -> None:
    ours, theirs = (objects(written(tmp_path / f"{by}.nc", by)) for by in (False, True))
    assert list(ours) == list(theirs)
    for name, said in theirs.items():
        assert ours[name] == said, name


@pytest.mark.parametrize("group", GROUPS)
def test_xarray_reads_what_was_given(tmp_path: Path, group: str) -> None:
    netcdf.write(GROUPS, tmp_path / "a.nc")
    found = xr.load_dataset(tmp_path / "a.nc", group=group, engine="h5netcdf")
    xr.testing.assert_identical(found, GROUPS[group])


@pytest.mark.parametrize("by_xarray", [False, True])
def test_it_reads_both(tmp_path: Path, by_xarray: bool) -> None:
    names = [name for name in GROUPS if name != "/"]
    attrs, groups = netcdf.read(written(tmp_path / "a.nc", by_xarray), *names, "absent")
    assert attrs.items() >= {"seed": 3, "empty": "", "said": "\N{SNOWMAN}", "seconds": 0.5}.items()
    assert list(groups) == names
    for name, arrays in groups.items():
        assert set(arrays) == {str(v) for v in GROUPS[name].variables}
        for variable, values in arrays.items():
            expected = GROUPS[name][variable].values
            assert values.dtype == (object if expected.dtype.kind == "U" else expected.dtype)
            np.testing.assert_array_equal(values, expected)
