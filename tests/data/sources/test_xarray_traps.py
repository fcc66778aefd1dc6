"""Data sets that xarray opens without a word and that say otherwise: zones, periods, edges, ranges, fill values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop
from rainspark.data.sources.foreign.xarray_source import XarraySource
from rainspark.data.sources.source import Header, Surveyed

xr = pytest.importorskip("xarray", reason="xarray (extra formats) is not installed")
pytest.importorskip("zarr", reason="zarr (extra formats) is not installed")

from tests.data.gridded import COLS, FIRST, ROWS, SERVICES, dataset_of, rain_mmh  # noqa: E402

RAIN = "rainfall_flux"
FIRST_S = int(FIRST.astype(np.int64) // 10**9)
WHOLE = Crop(row0=0, row1=ROWS, col0=0, col1=COLS)
MINUTES = 300.0 * np.arange(3)


def write(path: Path, change: Callable[[Any], Any], variable: str = RAIN, service: str = "denmark") -> Path:
    """Write a changed data set of three frames as NetCDF-4."""
    dataset = change(dataset_of(SERVICES[service], 3))
    encoding = {} if "_FillValue" in dataset[variable].attrs else {variable: {"_FillValue": None}}
    dataset.to_netcdf(path / "in.nc", engine="h5netcdf", encoding=encoding)
    return path / "in.nc"


def survey(path: Path, **options: Any) -> list[Surveyed]:
    source = XarraySource(**{"variable": RAIN, **options})
    return [source.survey(ref) for ref in source.scan([path]).refs]


def header(path: Path, **options: Any) -> Header:
    return survey(path, **options)[0].header


def timed(units: str, values: Any = MINUTES, **attributes: str) -> Callable[[Any], Any]:
    def change(dataset: Any) -> Any:
        attributes.update(units=units, standard_name="time")
        return dataset.drop_vars("time").assign_coords(time=("time", values, attributes))

    return change


@pytest.mark.parametrize(
    ("units", "attributes", "zone"),
    [
        ("seconds since 2024-06-01 00:00:00 CET", {}, "CET"),
        ("minutes since 2024-06-01T00:00 EST", {}, "EST"),
        ("seconds since 2024-06-01 Europe/Amsterdam", {}, "Europe/Amsterdam"),
        ("seconds since 2024-06-01", {"time_zone": "Europe/Amsterdam"}, "Europe/Amsterdam"),
        ("seconds since 2024-06-01", {"timezone": "+02:00"}, r"\+02:00"),
        ("seconds since 2024-06-01", {"utc_offset": "-3"}, "-3"),
        ("seconds since 2024-06-01", {"long_name": "local time of the scan"}, "local time of the scan"),
    ],
)
def test_times_of_other_zones_are_refused_by_name(
    tmp_path: Path, units: str, attributes: dict[str, str], zone: str
) -> None:
    path = write(tmp_path, timed(units, **attributes))
    with pytest.raises(DataError, match=f"{path}: time states the zone '{zone}' .*write them in UTC"):
        header(path)


@pytest.mark.parametrize(
    ("units", "attributes", "offset_h"),
    [
        ("seconds since 2024-06-01 00:00:00 +02:00", {}, 2),
        ("seconds since 2024-06-01 00:00:00 -6", {}, -6),
        ("seconds since 2024-06-01T00:00:00Z", {}, 0),
        ("seconds since 2024-06-01 00:00:00.0 UTC", {"time_zone": "UTC+00:00"}, 0),
        ("seconds since 2024-06-01", {"timezone": "Etc/UTC"}, 0),
    ],
)
def test_offsets_become_utc(tmp_path: Path, units: str, attributes: dict[str, str], offset_h: int) -> None:
    assert header(write(tmp_path, timed(units, **attributes))).end_time_s == FIRST_S - 3600 * offset_h


@pytest.mark.parametrize("name", ["t", "date", "valid"])
def test_a_dimension_of_times_needs_no_usual_name(tmp_path: Path, name: str) -> None:
    def change(dataset: Any) -> Any:
        dataset.time.attrs.clear()
        return dataset.rename(time=name)

    assert [ref.end_time_s for ref in XarraySource(variable=RAIN).scan([write(tmp_path, change)]).refs] == [
        FIRST_S,
        FIRST_S + 300,
        FIRST_S + 600,
    ]


def summed(methods: str) -> Callable[[Any], Any]:
    def change(dataset: Any) -> Any:
        dataset[RAIN].attrs["cell_methods"] = methods
        return dataset

    return change


@pytest.mark.parametrize(
    ("methods", "period_s", "noted"),
    [
        ("time: mean (interval: 1 hour)", 3600, False),
        ("area: mean time: maximum (interval: 60 minutes)", 3600, False),
        # Samples of a minute lie within a period of five or more.
        ("time: mean (interval: 1 minute)", None, True),
        ("time: sum", None, True),
        ("area: mean", None, False),
        ("time: point", 0, False),
    ],
)
def test_methods_over_time_are_never_silent(tmp_path: Path, methods: str, period_s: int | None, noted: bool) -> None:
    surveyed = survey(write(tmp_path, summed(methods)))[0]
    assert surveyed.header.period_s == period_s
    assert any("--period-min states it" in note for note in surveyed.notes) == noted


@pytest.mark.parametrize("name", ["time_bnds", "time_bounds"])
def test_bounds_count_without_an_attribute_that_names_them(tmp_path: Path, name: str) -> None:
    def change(dataset: Any) -> Any:
        times = dataset.time.values
        dataset[name] = (("time", "nv"), np.stack([times - np.timedelta64(60, "m"), times], axis=1))
        return dataset

    path = write(tmp_path, change)
    assert header(path).period_s == 3600
    with pytest.raises(DataError, match=f"{path}: rainfall_flux is of 60 min, as the file says; --period-min"):
        header(path, period_min=5)
    assert header(path, period_min=60).period_s == 3600


def bounded(low: float, high: float) -> Callable[[Any], Any]:
    def change(dataset: Any) -> Any:
        x = dataset.x.values
        dataset["x_bnds"] = (("x", "nv"), np.stack([x + low, x + high], axis=1))
        dataset.x.attrs["bounds"] = "x_bnds"
        return dataset

    return change


def transformed(transform: Any, *, unit: str = "m") -> Callable[[Any], Any]:
    def change(dataset: Any) -> Any:
        dataset["crs"].attrs["GeoTransform"] = transform
        if unit == "m":
            return dataset
        kilometres = {name: (name, dataset[name].values / 1000, {"units": "km"}) for name in "xy"}
        return dataset.assign_coords(kilometres)

    return change


def unitless(scale: float) -> Callable[[Any], Any]:
    def change(dataset: Any) -> Any:
        return dataset.assign_coords({name: (name, dataset[name].values * scale) for name in "xy"})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (bounded(0, 1000), "x starts at 10500, its bounds x_bnds at 10500 to 11500; expected .* centres"),
        (bounded(-1000, 0), "expected coordinates of the pixels' centres"),
        (transformed("10500 1000 0 -20500 0 -1000"), r"-0.50 and 0.50 pixels away; .* counts from their edge"),
        (transformed([10000.0, 1000.0, 0.0, -20000.0, 0.0, 1001.0]), "GeoTransform states pixels of 1000 by 1001"),
        (transformed("a b c d e f"), "GeoTransform is a b c d e f; expected six numbers"),
        (unitless(0.001), "pixels of 1 m, by the coordinates x and y .* 10 m to 200 km"),
        (unitless(1000), "pixels of 1e.06 m"),
    ],
)
def test_coordinates_that_are_no_centres_are_refused(
    tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        header(write(tmp_path, change))


@pytest.mark.parametrize(
    "change",
    [
        bounded(-500, 500),
        transformed("10000 1000 0 -20000 0 -1000"),
        transformed([10000.0, 1000.0, 0.0, -20000.0, 0.0, -1000.0]),
        # A part of a grid that keeps the whole one's.
        transformed("0 1000 0 0 0 -1000"),
        transformed("10000 1000 0 -20000 0 -1000", unit="km"),
    ],
)
def test_geometry_that_agrees_is_taken(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    grid = header(write(tmp_path, change)).grid
    assert (grid.pixel_km, grid.x0_km, grid.y0_km) == (1.0, 10.0, -20.0)


def eastwards(first: float, turn: float, *, bare: bool = False) -> Callable[[Any], Any]:
    def change(dataset: Any) -> Any:
        lon = (first + 0.005 + 0.01 * np.arange(COLS) + turn) % 360 - turn
        dataset = dataset.assign_coords(lon=("lon", lon, {} if bare else dataset.lon.attrs))
        if bare:
            dataset.lat.attrs.clear()
            dataset = dataset.rename(lon="x", lat="y")
            dataset["crs"] = ((), 0, {"crs_wkt": pyproj.CRS.from_epsg(4326).to_wkt()})
            dataset["rate"].attrs["grid_mapping"] = "crs"
        return dataset

    return change


@pytest.mark.parametrize(
    ("first", "turn", "bare", "left"), [(359.95, 0, False, -0.05), (179.95, 180, False, 179.95), (2, 0, True, 2)]
)
def test_longitudes_go_round_the_earth(tmp_path: Path, first: float, turn: float, bare: bool, left: float) -> None:
    path = write(tmp_path, eastwards(first, turn, bare=bare), "rate", "spain")
    assert header(path, variable="rate").grid.x0_km == pytest.approx(6371 * np.radians(left), abs=1e-3)


def test_latitudes_end_at_the_poles(tmp_path: Path) -> None:
    def change(dataset: Any) -> Any:
        return dataset.assign_coords(lat=("lat", 142.995 - 0.01 * np.arange(ROWS), dataset.lat.attrs))

    with pytest.raises(DataError, match="lat reaches beyond the poles"):
        header(write(tmp_path, change, "rate", "spain"), variable="rate")


STORED = np.arange(ROWS * COLS).reshape(ROWS, COLS)


def stored(dtype: str, code: float | None, **attributes: Any) -> Callable[[Any], Any]:
    """Store numbers from 0 on, north up, the first 30 of them as a code."""

    def change(dataset: Any) -> Any:
        values = STORED if code is None else np.where(STORED < 30, code, STORED)
        values = np.broadcast_to(values[::-1], (3, ROWS, COLS)).astype(dtype)
        dataset[RAIN] = (("time", "y", "x"), values, {"units": "mm/h", "grid_mapping": "crs", **attributes})
        return dataset

    return change


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (stored("u1", None, scale_factor=0.5, valid_range=np.array([10, 100], "u1")), (STORED < 10) | (STORED > 100)),
        (stored("u1", None, scale_factor=0.5, valid_max=np.uint8(100)), STORED > 100),
        # Of the decoded type: not packed.
        (stored("u1", None, scale_factor=0.5, valid_max=30.0), STORED > 60),
        (stored("f4", None, scale_factor=0.5, valid_min=np.float32(7)), STORED < 7),
        (stored("i1", None, _Unsigned="true", valid_max=np.int8(100)), STORED > 100),
        # What NetCDF fills with by itself, and no attribute names.
        (stored("f4", 9.969209968386869e36), STORED < 30),
        (stored("f8", 9.969209968386869e36), STORED < 30),
        (stored("i2", -32767, scale_factor=0.1), STORED < 30),
        (stored("u2", 65535, scale_factor=np.float32(0.1), add_offset=np.float32(0.3)), STORED < 30),
    ],
)
def test_ranges_and_fills_of_netcdf(tmp_path: Path, change: Callable[[Any], Any], missing: Any) -> None:
    path = write(tmp_path, change)
    source = XarraySource(variable=RAIN)
    counts = source.read(source.scan([path]).refs[0], WHOLE).counts
    np.testing.assert_array_equal(counts == 65535, missing)
    is_ranged = any(name.startswith("valid") for name in xr.open_dataset(path)[RAIN].attrs)
    assert any("outside of its valid range" in note for note in survey(path)[0].notes) == is_ranged


def test_a_code_that_is_not_stated_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, stored("f4", 9999.0))
    with pytest.raises(DataError, match=f"{path}.*is 9999 mm/h .one of 30.*stands for no data"):
        header(path)
    assert header(path, missing=(9999.0,)).period_s is None


@pytest.mark.parametrize(
    ("minutes", "message"),
    [(120, "T02:00:00Z, its content 2024-06-01T00:00:00Z.*UTC"), (-5, "T23:55:00Z, its content")],
)
def test_a_name_may_not_contradict_the_content(tmp_path: Path, minutes: int, message: str) -> None:
    time = (FIRST + np.timedelta64(minutes, "m")).astype("datetime64[s]").item()
    path = tmp_path / f"r_{time:%Y%m%d%H%M}.nc"
    dataset = dataset_of(SERVICES["denmark"], 2)
    dataset.isel(time=[0]).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(DataError, match=message):
        header(path, time_patterns=("r_%Y%m%d%H%M.nc",))

    # Nor may one name stand for several frames; a time that is none is what patterns are for.
    dataset.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(DataError, match="holds 2 frames, and --time-pattern states the time of one"):
        header(path, time_patterns=("r_%Y%m%d%H%M.nc",))
    dataset.isel(time=[0]).assign_coords(time=[np.datetime64("1970-01-01", "ns")]).to_netcdf(path, engine="h5netcdf")
    read = header(path, time_patterns=("r_%Y%m%d%H%M.nc",))
    assert read.end_time_s == FIRST_S + 60 * minutes
    assert np.isnan(rain_mmh(0)).any()
