"""ODIM_H5 composites of a forecast, read back by our own reader and by pysteps, on every projection."""

import contextlib
import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop, Grid
from rainspark.data.sources.odim import OdimSource
from rainspark.data.units import MISSING_COUNT
from rainspark.trainer.forecasting.content import Content, Provenance
from rainspark.trainer.forecasting.grid import same_projection, to_degrees
from rainspark.trainer.forecasting.odim import write_odim
from tests.trainer.forecasting.projections import PROJECTIONS, grid_of, outer_corners_m

REFERENCE_S = 1_282_780_800
"""2010-08-26T00:00:00Z."""
PROVENANCE = Provenance(
    model="a model", source="KNMI RAD_NL25_RAU_5mi", licence="CC BY 4.0, © KNMI", history="2026-11-22T00:00:00Z: made"
)


def _counts(grid: Grid, leads: int = 3) -> npt.NDArray[np.uint16]:
    """Make rain in hundredths of mm/h: half of it dry, some missing."""
    random = np.random.default_rng(0)
    counts = random.integers(0, 6000, (leads, grid.rows, grid.cols)).astype(np.uint16)
    counts[random.random(counts.shape) < 0.5] = 0
    counts[random.random(counts.shape) < 0.1] = MISSING_COUNT
    return counts


def _rain_mmh(counts: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return np.where(counts == MISSING_COUNT, np.nan, counts / 100).astype(np.float32)


def _write(folder: Path, grid: Grid, rain_mmh_thw: npt.NDArray[np.floating], **more: Any) -> list[Path]:
    times = {"reference_time_s": REFERENCE_S, "cadence_s": 300}
    return write_odim(folder, Content(rain_mmh_thw=rain_mmh_thw, grid=grid, provenance=PROVENANCE, **{**times, **more}))


@pytest.mark.parametrize("name", PROJECTIONS)
def test_our_own_reader_and_pysteps_read_the_same_back(tmp_path: Path, name: str) -> None:
    grid = grid_of(name, rows=17, cols=13, pixel_km=0.5)
    counts_thw = _counts(grid)
    paths = _write(tmp_path, grid, _rain_mmh(counts_thw))
    with contextlib.redirect_stdout(io.StringIO()):
        pysteps_io = pytest.importorskip("pysteps.io")

    # Ours finds the files by their content: each name holds two times.
    source = OdimSource()
    refs = source.scan([tmp_path]).refs
    assert [ref.end_time_s for ref in refs] == [REFERENCE_S + 300 * lead for lead in (1, 2, 3)]
    for ref, path, counts_hw in zip(refs, paths, counts_thw, strict=True):
        header = source.survey(ref).header
        assert str(ref) == str(path)
        assert (header.grid.rows, header.grid.cols, header.grid.pixel_km) == (17, 13, 0.5)
        assert (header.grid.x0_km, header.grid.y0_km) == (grid.x0_km, grid.y0_km)
        np.testing.assert_array_equal(source.read(ref, Crop(row0=0, row1=17, col0=0, col1=13)).counts, counts_hw)

        field, _, metadata = pysteps_io.import_odim_hdf5(str(path), qty="RATE")
        np.testing.assert_array_equal(field, _rain_mmh(counts_hw))
        edges_m = [1000 * grid.x0_km, 1000 * grid.y0_km - 8500, 1000 * grid.x0_km + 6500, 1000 * grid.y0_km]
        np.testing.assert_allclose([metadata[key] for key in ("x1", "y1", "x2", "y2")], edges_m, rtol=0, atol=0.01)
        assert (metadata["unit"], metadata["xpixelsize"], metadata["yorigin"]) == ("mm/h", 500, "upper")


@pytest.mark.parametrize("name", [name for name in PROJECTIONS if not name.startswith("wkt")])
def test_corners_and_projection_are_those_of_the_grid(tmp_path: Path, name: str) -> None:
    grid = grid_of(name, rows=4, cols=5)
    path = _write(tmp_path, grid, np.zeros((1, 4, 5), np.float32))[0]
    with h5py.File(path) as file:
        where = dict(file["where"].attrs)
    assert same_projection(grid, where["projdef"].decode())
    longitude, latitude = to_degrees(grid.projection, *outer_corners_m(grid))
    for at, corner in enumerate(("UL", "UR", "LL", "LR")):
        assert (where[f"{corner}_lon"], where[f"{corner}_lat"]) == pytest.approx(
            (longitude[at], latitude[at]), abs=1e-6
        )


def test_it_says_what_odim_asks_for(tmp_path: Path) -> None:
    grid = grid_of("laea", rows=4, cols=5)
    rain = np.full((2, 4, 5), 1.5)
    rain[1, 0] = np.nan, np.inf, -np.inf, -0.25, 0.0
    paths = _write(tmp_path / "made", grid, rain, cadence_s=900)
    assert [path.name for path in paths] == [
        "forecast_201008260000_201008260015.h5",
        "forecast_201008260000_201008260030.h5",
    ]
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [path.name for path in paths]
    with h5py.File(paths[1]) as file:
        assert file.attrs["Conventions"] == b"ODIM_H5/V2_4"
        what = dict(file["what"].attrs)
        assert (what["object"], what["version"], what["source"]) == (
            b"COMP",
            b"H5rad 2.4",
            b"CMT:KNMI RAD_NL25_RAU_5mi",
        )
        assert (what["date"], what["time"]) == (b"20100826", b"003000")
        period = dict(file["dataset1/what"].attrs)
        assert (period["product"], period["startdate"], period["starttime"]) == (b"SURF", b"20100826", b"001500")
        assert (period["enddate"], period["endtime"]) == (b"20100826", b"003000")
        assert dict(file["dataset1/data1/what"].attrs) == {
            "quantity": b"RATE",
            "gain": 1.0,
            "offset": 0.0,
            "nodata": -9_999_000.0,
            "undetect": 0.0,
        }
        assert file["dataset1/data1/data"].dtype == np.float32
        assert file["dataset1/data1/data"][0].tolist() == [-9_999_000.0] * 3 + [0.0, 0.0]
        how = dict(file["how"].attrs)
        assert (how["software"], how["reference_time"], how["lead_minutes"]) == (
            b"a model",
            b"2010-08-26T00:00:00Z",
            30,
        )
        assert how["licence"] == b"CC BY 4.0, ? KNMI"


def test_what_has_no_degrees_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    beyond = Grid.from_json(grid_of("laea", rows=4, cols=5).to_json() | {"x0_km": 30_000.0})
    with pytest.raises(DataError, match="has no degrees for the corner"):
        _write(tmp_path, beyond, np.zeros((1, 4, 5)))
    unknown = Grid.from_json(beyond.to_json() | {"projection": "+proj=stere +nadgrids=/etc/passwd"})
    with pytest.raises(DataError, match="is not known"):
        _write(tmp_path, unknown, np.zeros((1, 4, 5)))
    assert list(tmp_path.iterdir()) == []
