"""Forecasts made elsewhere: ours, pysteps' and xarray's files, matched by issue time and grid; what is refused."""

import contextlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import numpy.typing as npt
import pytest
import torch
import xarray as xr

from rainspark.data.errors import DataError
from rainspark.data.frames import Grid
from rainspark.data.sources.knmi_writer import KNMI_PROJECTION
from rainspark.trainer.contestants.entries import Entry
from rainspark.trainer.contestants.external import External, ForecastFolder, scan_forecasts
from rainspark.trainer.contestants.windows import WindowRain
from rainspark.trainer.forecasting.content import Content, Provenance
from rainspark.trainer.forecasting.grid import in_metres, pixel_centres_m
from rainspark.trainer.forecasting.netcdf import write_forecast
from tests.trainer.forecasting.members import content_of, make_small

ISSUE_S = 1_282_780_800
"""2010-08-26T00:00:00Z."""
CADENCE_S = 300
GRID = Grid(rows=5, cols=4, pixel_km=1.0, x0_km=225.0, y0_km=-3934.0, projection=KNMI_PROJECTION)


def rain_of(*leading: int, seed: int = 0) -> npt.NDArray[np.float32]:
    rain = np.random.default_rng(seed).gamma(0.5, 4.0, (*leading, GRID.rows, GRID.cols)).astype(np.float32)
    rain[..., 0, 1] = np.nan
    return rain


def ours(folder: Path, rain: npt.NDArray[np.float32], issue_s: int = ISSUE_S, name: str = "", **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / (name or f"{issue_s}.nc")
    provenance = Provenance(model="m", source="s", licence="l", history="h")
    content = {"reference_time_s": issue_s, "cadence_s": CADENCE_S, "grid": GRID, "provenance": provenance}
    write_forecast(path, Content(rain_mmh_thw=rain, **{**content, **changes}))
    return path


def foreign(
    folder: Path, rain: npt.NDArray[Any], dims: tuple[str, ...], coords: Mapping[str, Any], **attrs: Any
) -> Path:
    """Write what xarray makes of rain on our grid; rows run from south to north."""
    folder.mkdir(exist_ok=True)
    x_m, y_m = pixel_centres_m(GRID)
    attributes = {"units": "mm/h", "standard_name": "rainfall_rate", "grid_mapping": "crs", **attrs}
    dataset = xr.Dataset(
        {"rain": (dims, rain[..., ::-1, :], attributes), "crs": ((), 0, {"proj4": in_metres(KNMI_PROJECTION)})},
        coords={
            "x": ("x", x_m, {"standard_name": "projection_x_coordinate", "units": "m"}),
            "y": ("y", y_m[::-1], {"standard_name": "projection_y_coordinate", "units": "m"}),
            **coords,
        },
    )
    path = folder / "forecast.nc"
    dataset.to_netcdf(path, engine="netcdf4")
    return path


def scan(folder: Path) -> ForecastFolder:
    return scan_forecasts(Entry(name="theirs", kind="netcdf", folder=folder))


def read(folder: Path, frames_out: int = 2, issue_s: int = ISSUE_S) -> npt.NDArray[np.float32]:
    external = External(forecasts=scan(folder), frames_out=frames_out, cadence_s=CADENCE_S)
    assert external.marks_unknown
    return external.start(nothing_of(GRID), issue_s)()


def nothing_of(grid: Grid) -> WindowRain:
    nothing = torch.zeros(1, 1, grid.rows, grid.cols)
    return WindowRain(
        row=0, past_mmh_bthw=nothing, past_valid_bthw=None, future_mmh_bthw=nothing, future_valid_bthw=None
    )


def valid_times(num: int = 2) -> npt.NDArray[Any]:
    return (ISSUE_S + CADENCE_S * np.arange(1, num + 1)).astype("datetime64[s]").astype("datetime64[ns]")


def test_our_own_files_come_back(tmp_path: Path) -> None:
    rain = rain_of(3)
    for number in range(2):
        ours(tmp_path / "f", rain + number, ISSUE_S + CADENCE_S * number)
    folder = scan(tmp_path / "f")
    assert (list(folder.by_issue), folder.members) == ([ISSUE_S, ISSUE_S + CADENCE_S], 0)
    assert folder.num_leads(CADENCE_S) == 3
    folder.check_grid(GRID)
    np.testing.assert_array_equal(read(tmp_path / "f"), rain[:2])
    np.testing.assert_array_equal(read(tmp_path / "f", 3, ISSUE_S + CADENCE_S), rain + 1)


@pytest.mark.parametrize("units", ["mm/h", "mm h-1", "kg m-2 s-1", "m s-1"])
def test_units_of_rates_become_millimetres_an_hour(tmp_path: Path, units: str) -> None:
    factor = {"kg m-2 s-1": 1 / 3600, "m s-1": 1 / 3.6e6}.get(units, 1.0)
    rain = rain_of(2)
    coords = {"time": valid_times(), "forecast_reference_time": np.datetime64(ISSUE_S, "s").astype("datetime64[ns]")}
    words = {"units": units, "standard_name": "rainfall_flux" if units.startswith("kg") else "rainfall_rate"}
    foreign(tmp_path / "f", rain.astype(np.float64) * factor, ("time", "y", "x"), coords, **words)
    scan(tmp_path / "f").check_grid(GRID)
    np.testing.assert_allclose(read(tmp_path / "f"), rain, rtol=1e-6)


def test_members_many_issue_times_and_lead_times_in_one_file(tmp_path: Path) -> None:
    rain = rain_of(2, 3, 4, seed=1)  # issue times, members, lead times
    issues = np.array([ISSUE_S, ISSUE_S + 600]).astype("datetime64[s]").astype("datetime64[ns]")
    coords = {
        "issue": ("issue", issues, {"standard_name": "forecast_reference_time"}),
        "realization": ("realization", np.arange(3)),
        "step": ("step", np.array([0.0, 5, 10, 15]), {"standard_name": "forecast_period", "units": "minutes"}),
    }
    foreign(tmp_path / "f", rain, ("issue", "realization", "step", "y", "x"), coords)
    folder = scan(tmp_path / "f")
    assert (list(folder.by_issue), folder.members, folder.num_leads(CADENCE_S)) == ([ISSUE_S, ISSUE_S + 600], 3, 3)
    # The lead time of 0 is nobody's.
    np.testing.assert_array_equal(read(tmp_path / "f", 2, ISSUE_S + 600), rain[1, :, 1:3])
    assert External(forecasts=folder, frames_out=2, cadence_s=CADENCE_S).gives == "members"


def test_an_ensemble_that_pysteps_wrote(tmp_path: Path) -> None:
    rain = rain_of(3, 2)
    (tmp_path / "f").mkdir()
    # Its exporter knows conic projections: the grid is one of them.
    projection = "+proj=lcc +lon_0=4.55 +lat_1=50.8 +lat_2=50.8 +lat_0=50.8 +a=6371229 +es=0 +x_0=0 +y_0=0"
    metadata = {
        "projection": projection,
        "cartesian_unit": "m",
        "x1": 0.0,
        "y1": 0.0,
        "x2": 4000.0,
        "y2": 5000.0,
        "xpixelsize": 1000.0,
        "ypixelsize": 1000.0,
        "unit": "mm/h",
        "transform": None,
        "threshold": 0.1,
        "zerovalue": 0.0,
        "accutime": 5,
        "yorigin": "upper",
        "institution": "a test",
    }
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from pysteps.io import exporters

        start = datetime.fromtimestamp(ISSUE_S, UTC).replace(tzinfo=None)
        exporter = exporters.initialize_forecast_exporter_netcdf(
            str(tmp_path / "f"), "theirs", start, 5, 2, (5, 4), metadata, n_ens_members=3
        )
        exporters.export_forecast_dataset(rain, exporter)
        exporters.close_forecast_files(exporter)
    folder = scan(tmp_path / "f")
    assert (list(folder.by_issue), folder.members) == ([ISSUE_S], 3)
    folder.check_grid(Grid(rows=5, cols=4, pixel_km=1.0, x0_km=0.0, y0_km=5.0, projection=projection))
    np.testing.assert_allclose(read(tmp_path / "f"), rain, rtol=1e-5, atol=1e-3)


def test_an_ensemble_of_ours_comes_back(tmp_path: Path) -> None:
    ensemble = make_small(num_leads=2)
    content = content_of(ensemble)
    (tmp_path / "f").mkdir()
    write_forecast(tmp_path / "f" / "forecast.nc", content)
    folder = scan(tmp_path / "f")
    assert folder.members == ensemble.num_members
    assert folder.num_leads(content.cadence_s) == 2
    folder.check_grid(content.grid)
    external = External(forecasts=folder, frames_out=2, cadence_s=content.cadence_s)
    (issue_s,) = folder.by_issue
    members = external.start(nothing_of(content.grid), issue_s)()
    np.testing.assert_allclose(members, ensemble.members_mmh_mthw, rtol=1e-6)


def test_windows_are_matched_by_issue_time(tmp_path: Path) -> None:
    for number in (1, 3):
        ours(tmp_path / "f", rain_of(2), ISSUE_S + CADENCE_S * number)
    folder = scan(tmp_path / "f")
    issue_s = ISSUE_S + CADENCE_S * np.arange(5)
    assert folder.has_any(issue_s).tolist() == [False, True, False, True, False]
    message = (
        r"none of its 2 forecasts, issued 2010-08-26T00:05:00Z to 2010-08-26T00:15:00Z, starts where a window does "
        r"\(such as 2010-08-27"
    )
    with pytest.raises(DataError, match=message):
        folder.has_any(issue_s + 86_400)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rows": 6}, "5 x 4 pixels, and the archive has 6 x 4; expected forecasts on the archive's grid"),
        ({"pixel_km": 1.1}, "pixels of 1 km, and the archive has 1.1 km"),
        ({"x0_km": 225.2}, "its upper left corner is x 225, y -3934 km, and the archive's x 225.2, y -3934 km"),
        ({"projection": "+proj=stere +lat_0=90 +lon_0=10 +lat_ts=60 +a=6378.137 +b=6356.752"}, "its projection is '.*"),
    ],
)
def test_another_grid_is_refused(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    path = ours(tmp_path / "f", rain_of(2))
    folder = scan(tmp_path / "f")
    folder.check_grid(replace(GRID, x0_km=225.05))
    with pytest.raises(DataError, match=f"{path}: {text}"):
        folder.check_grid(replace(GRID, **changes))


def edited(path: Path, edit: str) -> None:
    """Spoil one of our files."""
    with netCDF4.Dataset(path, "r+") as file:
        match edit:
            case "units":
                file["rainfall_rate"].units = "dBZ"
            case "amount":
                file["rainfall_rate"].units = "mm"
                file["rainfall_rate"].standard_name = "rainfall_amount"
            case "no units":
                del file["rainfall_rate"].units
            case "name":
                for name in ("rainfall_rate", "precip_intensity"):
                    file.renameVariable(name, f"{name}_2")
                    file[f"{name}_2"].units = "K"
            case "reference":
                file.renameVariable("forecast_reference_time", "analysis")
                file["analysis"].standard_name = "x"
                file["time"].units = "minutes"
            case "epoch":
                file.renameVariable("forecast_reference_time", "analysis")
                file["analysis"].standard_name = "x"
                file["time"][:] = file["time"][:] + ISSUE_S
                file["time"].units = "seconds since 1970-01-01"
            case "leads":
                file["time"][:] = file["time"][:] + 60


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        ("units", "rainfall_rate has the units 'dBZ'; expected a rain rate in mm/h, mm h-1, kg m-2 s-1 or m s-1"),
        ("amount", "rainfall_rate has the units 'mm'; expected a rain rate in mm/h"),
        ("no units", "rainfall_rate has the units None; expected a rain rate"),
        ("name", r"its variables are .*rainfall_rate_2 \(K\).*; expected a rain rate in .*, named rainfall_rate"),
        ("reference", "does not say when its forecast was issued; expected a variable forecast_reference_time"),
        ("epoch", r"does not say when .* forecast_reference_time, and its times count from 1970-01-01T00:00:00Z"),
        ("leads", r"its lead times are 6, 11\.\.\. min; expected one of 5 min, and then every frame of the archive"),
    ],
)
def test_what_cannot_be_understood_names_the_file(tmp_path: Path, edit: str, text: str) -> None:
    path = ours(tmp_path / "f", rain_of(2))
    edited(path, edit)
    with pytest.raises(DataError, match=f"{path}: {text}"):
        scan(tmp_path / "f").num_leads(CADENCE_S)


@pytest.mark.parametrize("origin", ["2010-08-26 00:00:00 UTC", "2010-08-26T00:00:00Z", "2010-8-26 0:0:0"])
def test_times_count_from_the_issue_time_however_it_is_written(tmp_path: Path, origin: str) -> None:
    times = ("time", [300.0, 600.0], {"units": f"seconds since {origin}"})
    foreign(tmp_path / "f", rain_of(2), ("time", "y", "x"), {"time": times})
    np.testing.assert_array_equal(read(tmp_path / "f"), rain_of(2))


def test_a_code_for_what_is_missing_is_not_scored_as_rain(tmp_path: Path) -> None:
    rain = rain_of(2)
    rain[:, 0] = -9999
    coords = {"time": valid_times(), "forecast_reference_time": np.datetime64(ISSUE_S, "s").astype("datetime64[ns]")}
    path = foreign(tmp_path / "f", rain, ("time", "y", "x"), coords)
    with pytest.raises(DataError, match=f"{path}: .* holds -9999 mm/h; expected no negative rain: .*_FillValue"):
        read(tmp_path / "f")


def test_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    first, second = ours(tmp_path / "f", rain_of(2)), ours(tmp_path / "f", rain_of(2), name="copy.nc")
    with pytest.raises(DataError, match=f"{second} and {first} both hold the forecast issued 2010-08-26T00:00:00Z"):
        scan(tmp_path / "f")
    second.unlink()
    coords = {
        "time": valid_times() + np.timedelta64(600, "s"),
        "forecast_reference_time": np.datetime64(ISSUE_S + 600, "s").astype("datetime64[ns]"),
    }
    foreign(tmp_path / "f", rain_of(3, 2), ("realization", "time", "y", "x"), coords)
    with pytest.raises(DataError, match=r"expected as many in every file"):
        scan(tmp_path / "f")
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "a.nc").write_bytes(b"\x89HDF\r\n\x1a\n" + b"x" * 200)
    with pytest.raises(DataError, match=r"a\.nc"):
        scan(tmp_path / "g")
