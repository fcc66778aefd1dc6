"""The NetCDF file, read back by another library: values, coordinates and the words that CF asks for."""

import contextlib
import io
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import numpy.typing as npt
import pytest
from pyproj import CRS, Transformer

from rainspark.data.errors import DataError
from rainspark.data.frames import Grid
from rainspark.data.sources.knmi_writer import KNMI_PROJECTION
from rainspark.trainer.forecasting.content import Content, Provenance
from rainspark.trainer.forecasting.grid import pixel_centres_m
from rainspark.trainer.forecasting.netcdf import write_forecast
from tests.trainer.forecasting.projections import PROJECTIONS, grid_of

GRID = Grid(rows=5, cols=4, pixel_km=1.0, x0_km=225.0, y0_km=-3934.0, projection=KNMI_PROJECTION)
REFERENCE_S = 1_282_780_800
"""2010-08-26T00:00:00Z."""
PROVENANCE = Provenance(
    model="a model", source="KNMI RAD_NL25_RAU_5mi", licence="CC BY 4.0, KNMI", history="2026-11-22T00:00:00Z: made"
)


def _rain() -> npt.NDArray[np.float32]:
    rain = np.random.default_rng(0).gamma(0.3, 4.0, (3, GRID.rows, GRID.cols)).astype(np.float32)
    rain[1, 2, 3], rain[2, 0, 0] = np.nan, np.inf
    return rain


def _content(**changes: Any) -> Content:
    arguments: dict[str, Any] = {
        "rain_mmh_thw": _rain(),
        "reference_time_s": REFERENCE_S,
        "cadence_s": 300,
        "grid": GRID,
        "provenance": PROVENANCE,
    }
    return Content(**(arguments | changes))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "made" / "forecast.nc"
    write_forecast(path, _content())
    assert [file.name for file in path.parent.iterdir()] == ["forecast.nc"]
    return path


def test_rain_comes_back_and_what_is_not_finite_is_missing(written: Path) -> None:
    with netCDF4.Dataset(written) as file:
        variable = file["rainfall_rate"]
        assert variable.dimensions == ("time", "y", "x")
        assert variable.dtype == np.float32
        assert np.isnan(variable.getncattr("_FillValue"))
        assert {"zlib": True, "shuffle": True}.items() <= variable.filters().items()
        assert variable.chunking() == [1, GRID.rows, GRID.cols]
        read = variable[:]
    rain = _rain()
    np.testing.assert_array_equal(np.ma.getmaskarray(read), ~np.isfinite(rain))
    np.testing.assert_array_equal(read.compressed(), rain[np.isfinite(rain)])


def test_times_are_the_ends_of_their_intervals(written: Path) -> None:
    with netCDF4.Dataset(written) as file:
        time = file["time"]
        ends = np.asarray(netCDF4.num2date(time[:], time.units, time.calendar))
        assert [str(end) for end in ends] == [f"2010-08-26 00:{minute:02d}:00" for minute in (5, 10, 15)]
        assert time.units == "seconds since 2010-08-26 00:00:00"
        assert file[time.bounds][:].tolist() == [[300 * k, 300 * (k + 1)] for k in range(3)]
        assert file["forecast_reference_time"][...].item() == REFERENCE_S
        assert file["forecast_period"][:].tolist() == [5, 10, 15]
        assert file["forecast_period"].units == "minutes"


def test_every_variable_says_what_cf_asks_for(written: Path) -> None:
    """CF 1.8: 2.6 (file), 3 (units, names), 4.4 (time), 5.6 (grid mapping), 7.1 (bounds), 7.3 (cell methods)."""
    names = {
        "time": ("time", "seconds since 2010-08-26 00:00:00"),
        "forecast_reference_time": ("forecast_reference_time", "seconds since 1970-01-01 00:00:00"),
        "forecast_period": ("forecast_period", "minutes"),
        "x": ("projection_x_coordinate", "m"),
        "y": ("projection_y_coordinate", "m"),
        "lat": ("latitude", "degrees_north"),
        "lon": ("longitude", "degrees_east"),
        "rainfall_rate": ("rainfall_rate", "mm h-1"),
    }
    with netCDF4.Dataset(written) as file:
        assert file.Conventions == "CF-1.8"
        # 2.2: no integers of 64 bits.
        assert {str(variable.dtype) for variable in file.variables.values()} <= {"float32", "float64", "int32"}
        for name in ("title", "institution", "source", "history", "references", "license", "comment"):
            assert file.getncattr(name)
        assert "KNMI RAD_NL25_RAU_5mi" in file.source
        assert file.license == "CC BY 4.0, KNMI"
        assert set(file.variables) == {*names, "time_bounds", "crs", "precip_intensity"}
        for name, (standard_name, units) in names.items():
            assert (file[name].standard_name, file[name].units) == (standard_name, units)
        assert file["time_bounds"].ncattrs() == []
        assert [file[name].axis for name in ("time", "y", "x")] == ["T", "Y", "X"]
        rain = file["rainfall_rate"]
        assert rain.cell_methods == "time: mean"
        assert all(name in file.variables for name in rain.coordinates.split())
        assert file[rain.grid_mapping].grid_mapping_name == "polar_stereographic"


def test_pysteps_reads_the_same_field_and_times(written: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        pysteps_io = pytest.importorskip("pysteps.io")
    field, metadata = pysteps_io.import_netcdf_pysteps(str(written), onerror="raise")
    rain = _rain()
    np.testing.assert_array_equal(field, np.where(np.isfinite(rain), rain, np.nan))
    assert (metadata["unit"], metadata["transform"], metadata["yorigin"]) == ("mm/h", None, "upper")
    assert metadata["accutime"] == 5
    assert list(metadata["leadtimes"]) == [5, 10, 15]
    assert [str(time) for time in metadata["timestamps"]] == [
        f"2010-08-26 00:{minute:02d}:00" for minute in (5, 10, 15)
    ]
    assert (metadata["x1"], metadata["x2"]) == (225_000, 229_000)
    assert (metadata["y1"], metadata["y2"]) == (-3_939_000, -3_934_000)


def test_the_second_name_takes_no_room(written: Path) -> None:
    with h5py.File(written) as file:
        assert file["precip_intensity"].id == file["rainfall_rate"].id
        assert file["precip_intensity"] == file["rainfall_rate"]


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
def test_xarray_opens_it_with_times_and_coordinates(written: Path, engine: str) -> None:
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(written, engine=engine, decode_timedelta=True) as data:
        rain = data["rainfall_rate"]
        assert set(rain.coords) == {"time", "y", "x", "lat", "lon", "forecast_period", "forecast_reference_time"}
        assert data.time.values[0] == np.datetime64("2010-08-26T00:05")
        assert data.forecast_reference_time.values == np.datetime64("2010-08-26T00:00")
        assert (data.forecast_period.values == np.array([5, 10, 15], "timedelta64[m]")).all()
        np.testing.assert_array_equal(rain.values, np.where(np.isfinite(_rain()), _rain(), np.nan))


@pytest.mark.parametrize("name", PROJECTIONS)
def test_the_mapping_of_the_file_leads_to_its_degrees(tmp_path: Path, name: str) -> None:
    grid = grid_of(name, rows=6, cols=5)
    rain = np.zeros((1, 6, 5), np.float32)
    path = tmp_path / "forecast.nc"
    write_forecast(path, _content(rain_mmh_thw=rain, reference_time_s=0, grid=grid))
    with netCDF4.Dataset(path) as file:
        x_m, y_m, latitude, longitude = (file[key][:].data for key in ("x", "y", "lat", "lon"))
        crs = CRS.from_cf(dict(vars(file["crs"])))
    lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*np.meshgrid(x_m, y_m))
    # Coordinates are float32: near the date line its steps are 1.5e-5 of a degree.
    np.testing.assert_allclose(longitude, lon, rtol=0, atol=1e-5)
    np.testing.assert_allclose(latitude, lat, rtol=0, atol=1e-5)


def test_coordinates_are_pixel_centres_and_the_mapping_leads_to_their_degrees(written: Path) -> None:
    with netCDF4.Dataset(written) as file:
        x_m, y_m, latitude, longitude = (file[name][:].data for name in ("x", "y", "lat", "lon"))
        mapping = dict(vars(file["crs"]))
    expected_x, expected_y = pixel_centres_m(GRID)
    np.testing.assert_array_equal(x_m, expected_x)
    np.testing.assert_array_equal(y_m, expected_y)
    assert y_m[0] > y_m[-1], "row 0 lies in the north"
    assert mapping["semi_major_axis"] == 6_378_137.0
    from_words = {key: value for key, value in mapping.items() if key not in ("crs_wkt", "proj4")}
    for crs in (CRS.from_cf(from_words), CRS.from_wkt(mapping["crs_wkt"]), CRS.from_proj4(mapping["proj4"])):
        to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
        lon, lat = to_degrees.transform(*np.meshgrid(x_m, y_m))
        np.testing.assert_allclose(latitude, lat, atol=1e-5)
        np.testing.assert_allclose(longitude, lon, atol=1e-5)


def test_what_cannot_be_written_is_refused_and_leaves_the_old_file(tmp_path: Path) -> None:
    other = Grid.from_json(GRID.to_json() | {"projection": "+proj=longlat +datum=WGS84"})
    with pytest.raises(DataError, match="expected a map projection in metres"):
        write_forecast(tmp_path / "a.nc", _content(grid=other))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(DataError, match="could not write"):
        write_forecast(tmp_path / "file" / "a.nc", _content())
    assert (tmp_path / "file").read_bytes() == b"old"
