"""Cloud Optimized GeoTIFFs of a forecast, read back by rasterio and judged by rio-cogeo, on every projection."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pyproj import CRS, Transformer

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.frames import Grid
from rainspark.trainer.forecasting.content import Content, Provenance
from rainspark.trainer.forecasting.geotiff import write_cogs
from rainspark.trainer.forecasting.grid import to_degrees
from tests.trainer.forecasting.projections import PROJECTIONS, grid_of, outer_corners_m

rasterio = pytest.importorskip("rasterio")
REFERENCE_S = 1_282_780_800
"""2010-08-26T00:00:00Z."""
PROVENANCE = Provenance(
    model="a model", source="KNMI RAD_NL25_RAU_5mi", licence="CC BY 4.0, © KNMI", history="2026-11-22T00:00:00Z: made"
)


def _rain(grid: Grid, leads: int) -> npt.NDArray[np.float32]:
    rain = np.random.default_rng(0).gamma(0.3, 4.0, (leads, grid.rows, grid.cols)).astype(np.float32)
    rain[:, 0, 1] = np.nan
    rain[-1, 1, 0] = np.inf
    return rain


def _write(folder: Path, grid: Grid, rain_mmh_thw: npt.NDArray[np.floating], cadence_s: int = 300) -> list[Path]:
    arguments: dict[str, Any] = {"reference_time_s": REFERENCE_S, "cadence_s": cadence_s, "provenance": PROVENANCE}
    return write_cogs(folder, Content(rain_mmh_thw=rain_mmh_thw, grid=grid, **arguments))


@pytest.mark.parametrize("name", PROJECTIONS)
def test_pixels_and_corners_come_back(tmp_path: Path, name: str) -> None:
    grid = grid_of(name, rows=17, cols=13)
    rain = _rain(grid, 1)
    with rasterio.open(_write(tmp_path, grid, rain)[0]) as file:
        np.testing.assert_array_equal(file.read(1), np.where(np.isfinite(rain[0]), rain[0], np.nan))
        crs = CRS.from_wkt(file.crs.to_wkt())
        bounds = tuple(file.bounds)
    x_m, y_m = outer_corners_m(grid)
    np.testing.assert_allclose(bounds, (x_m[0], y_m[-1], x_m[-1], y_m[0]), rtol=0, atol=1e-6)
    longitude, latitude = to_degrees(grid.projection, x_m, y_m)
    read_longitude, read_latitude = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x_m, y_m)
    east_m = 111_320 * np.cos(np.radians(latitude)) * (read_longitude - longitude)
    assert np.hypot(east_m, 111_320 * (read_latitude - latitude)).max() < 1


def test_files_are_cloud_optimized_with_units_times_and_sums(tmp_path: Path) -> None:
    cogeo = pytest.importorskip("rio_cogeo.cogeo")
    grid = grid_of("laea", rows=700, cols=520)
    rain = _rain(grid, 7)
    paths = _write(tmp_path / "made", grid, rain, 1200)
    minutes = [20 * lead for lead in range(1, 8)]
    names = [f"forecast_201008260000_{minute:03d}min.tif" for minute in minutes]
    sums = [f"forecast_201008260000_{minute:03d}min_sum_060min.tif" for minute in (60, 120)]
    assert [path.name for path in paths] == names + sums
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == sorted(names + sums)

    for path in (paths[1], paths[-1]):
        is_valid, errors, warnings = cogeo.cog_validate(path, strict=True)
        assert is_valid, (errors, warnings)
        with rasterio.open(path) as file:
            assert file.profile["tiled"]
            assert file.overviews(1) == [2]
            assert np.isnan(file.nodata)
            tags = file.tags()
            times = (tags["start_time"], tags["valid_time"], tags["TIFFTAG_DATETIME"], tags["lead_minutes"])
            about = (tags["TIFFTAG_SOFTWARE"], tags["source"], tags["reference_time"], tags["licence"])
            assert about == ("a model", PROVENANCE.source, "2010-08-26T00:00:00Z", PROVENANCE.licence)
            values, unit, quantity = file.read(1), file.units[0], file.descriptions[0]
        if path == paths[1]:
            assert (unit, quantity) == ("mm h-1", "rainfall_rate")
            assert times == ("2010-08-26T00:20:00Z", "2010-08-26T00:40:00Z", "2010:08:26 00:40:00", "40")
            np.testing.assert_array_equal(values, rain[1])
        else:
            assert (unit, quantity) == ("mm", "rainfall_amount")
            assert times == ("2010-08-26T01:00:00Z", "2010-08-26T02:00:00Z", "2010:08:26 02:00:00", "120")
            plain = [
                [sum(float(rain[lead, row, col]) / 3 for lead in (3, 4, 5)) for col in range(520)] for row in (0, 1)
            ]
            np.testing.assert_allclose(values[:2], plain, rtol=1e-6)
            assert np.isnan(values[0, 1])


@pytest.mark.parametrize(
    ("leads", "cadence_s", "name"),
    [
        (12, 300, "060min_sum_060min"),
        (5, 300, "025min_sum_025min"),
        (11, 360, "060min_sum_060min"),
        (1, 7200, "120min_sum_120min"),
    ],
)
def test_sums_are_of_whole_hours_or_of_what_there_is(tmp_path: Path, leads: int, cadence_s: int, name: str) -> None:
    grid = grid_of("utm", rows=3, cols=4)
    paths = _write(tmp_path, grid, np.full((leads, 3, 4), 6.0), cadence_s)
    sums = [path for path in paths if "sum" in path.name]
    assert [path.stem for path in sums] == [f"forecast_201008260000_{name}"]
    with rasterio.open(sums[0]) as file:
        np.testing.assert_allclose(file.read(1), 6.0 * min(leads, max(3600 // cadence_s, 1)) * cadence_s / 3600)


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As where the extra is not installed.
    monkeypatch.setitem(sys.modules, "rasterio", None)
    grid = grid_of("utm", rows=3, cols=4)
    with pytest.raises(ConfigError, match=r"pip install 'rainspark\[formats\]'"):
        _write(tmp_path / "made", grid, np.zeros((1, 3, 4)))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    grid = grid_of("utm", rows=3, cols=4)
    degrees = Grid.from_json(grid.to_json() | {"projection": "+proj=longlat +datum=WGS84"})
    with pytest.raises(DataError, match="expected a map projection in metres"):
        _write(tmp_path, degrees, np.zeros((1, 3, 4)))
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(DataError, match="could not write"):
        _write(tmp_path / "file", grid, np.zeros((1, 3, 4)))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
