"""Forecasts of radars that are not KNMI's: read as the run's archive was packed, on the whole domain."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pyproj
import pytest

from rainspark.data.exit_codes import ExitCode
from rainspark.data.pack.__main__ import main as pack
from rainspark.data.sources.synthetic import main as write_storms
from rainspark.data.store.storage import open_storage
from rainspark.trainer.forecasting.forecaster import load_forecaster
from rainspark.trainer.forecasting.outputs import run as run_forecast
from rainspark.trainer.processes.entry import run_entry
from rainspark.trainer.settings.forecast import make_parser
from rainspark.trainer.watching.watch import start_watches
from tests.data.radar_files import LAEA, odim_name, storms, write_odim_file
from tests.integration.runs import nowcast_arguments, train
from tests.s3_server import S3, fault_rules, s3, s3_server  # noqa: F401

SIDE, TILE, FRAMES = 160, 64, 26
FIRST_S = 1_577_836_800
SETTINGS = {"data__guard_h": 0, "data__validation_share": 0, "run__steps": 2}


@pytest.fixture(scope="module")
def radar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write composites of reflectivity on OPERA's projection, 160 x 160 pixels of 2 km."""
    folder = tmp_path_factory.mktemp("odim") / "radar"
    folder.mkdir()
    for number, counts_hw in enumerate(storms(FRAMES, SIDE, SIDE, 7)):
        # Z = 200 R**1.6 in steps of half a dBZ, as radars store it; 0 is an echo too weak to see.
        rain_mmh_hw = np.maximum(counts_hw * 0.12, 1e-3)
        raw_hw = np.clip(np.rint((10 * np.log10(200 * rain_mmh_hw**1.6) + 32) / 0.5), 0, 254).astype(np.uint8)
        end_s = FIRST_S + number * 300
        path = folder / odim_name(end_s)
        write_odim_file(path, raw_hw, end_s, quantity="DBZH", levels=(0.5, -32.0, 255.0, 0.0))
    return folder


@pytest.fixture(scope="module")
def tiles_run(radar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on the four whole tiles of the composites."""
    folder = tmp_path_factory.mktemp("tiles")
    words = ["odim", radar, "--zr", "200,1.6", "--tile", TILE, "--out", folder / "shards"]
    assert pack([str(word) for word in words]) == 0
    model = {"model__head": "advected", "model__loss": "csi"}
    assert train(nowcast_arguments(folder / "shards", folder / "run", **SETTINGS, **model)) == ExitCode.DONE
    return folder / "run"


def forecast(*words: str | Path) -> Callable[[], ExitCode]:
    argv = [*map(str, words), "--products", "netcdf"]
    return lambda: run_forecast(make_parser().parse_args(argv), argv)


def test_what_learned_on_tiles_forecasts_the_whole_domain(
    radar: Path, tiles_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_entry(forecast("--run", tiles_run, "--input", radar, "--out", tmp_path)) == ExitCode.DONE
    assert "as rain by Z = 200 R**1.6, 160 x 160 pixels of 2 km" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.nc")
    with netCDF4.Dataset(path) as file:
        rain_mmh_thw = file["rainfall_rate"][:].filled(np.nan)
        assert rain_mmh_thw.shape == (3, SIDE, SIDE)
        assert np.isfinite(rain_mmh_thw).all()
        # No part of the domain is left out: it rains beyond the four tiles too.
        assert rain_mmh_thw[:, 2 * TILE :].max() > 0.1
        # The outermost pixels' centres lie where the files' corners say.
        for row, col in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            x_m, y_m = float(file["x"][col]), float(file["y"][row])
            assert (x_m, y_m) == (1000.0 + 2000 * (col % SIDE), -1000.0 - 2000 * (row % SIDE))
            lon, lat = pyproj.Proj(LAEA)(x_m, y_m, inverse=True)
            assert (file["lon"][row, col], file["lat"][row, col]) == pytest.approx((lon, lat), abs=1e-5)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--crop", "run"], ExitCode.DATA, r"learned on tiles of .*--crop run names no area"),
        (["--crop", "0:64,0:161"], ExitCode.DATA, "reaches outside the grid of 160 rows and 160 columns"),
        (["--reader", "odim --quantity RATE"], ExitCode.DATA, "holds DBZH"),
        (["--reader", "odim --zr"], ExitCode.CONFIG, "argument --zr: expected one argument"),
        (["--reader", "odim --zr '7"], ExitCode.CONFIG, "No closing quotation"),
        (["--reader", "knmi"], ExitCode.DATA, "the sub-command odim|the name holds no time"),
        (["--source", "OPERA"], ExitCode.DATA, r"did not learn from --source 'OPERA'; its sources: 'ODIM ORG:247 DBZH"),
    ],
)
def test_what_cannot_be_forecast_says_why(
    radar: Path,
    tiles_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: ExitCode,
    message: str,
) -> None:
    out = tmp_path / "out"
    assert run_entry(forecast("--run", tiles_run, "--input", radar, "--out", out, *words)) == code
    assert re.search(message, capsys.readouterr().err)
    assert not out.exists()


def test_a_crop_is_what_was_asked_for(radar: Path, tiles_run: Path, tmp_path: Path) -> None:
    assert (
        forecast("--run", tiles_run, "--input", radar, "--out", tmp_path, "--crop", "32:96,64:160")() is ExitCode.DONE
    )
    (path,) = tmp_path.glob("*.nc")
    with netCDF4.Dataset(path) as file:
        assert file["rainfall_rate"].shape == (3, 64, 96)
        assert (float(file["x"][0]), float(file["y"][0])) == (1000.0 + 2000 * 64, -1000.0 - 2000 * 32)


def test_a_run_on_two_radars_forecasts_each(radar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_storms(["--out", str(tmp_path / "knmi"), "--hours", "2", "--seed", "3", "--size", "64"])
    words = ["knmi", tmp_path / "knmi", "--out", tmp_path / "shards"]
    more = ["+", "odim", radar, "--zr", "200,1.6", "--crop", "0:64,0:64"]
    assert pack([str(word) for word in (*words, *more)]) == 0
    run = tmp_path / "run"
    small = {"model__name": "smaat_unet", "model__smaat_width": 2}
    assert train(nowcast_arguments(tmp_path / "shards", run, **SETTINGS, **small)) == ExitCode.DONE

    both = forecast("--run", run, "--input", tmp_path / "knmi", radar, "--out", tmp_path / "both")
    assert run_entry(both) == ExitCode.DONE
    shapes = {}
    for path in (tmp_path / "both").rglob("*.nc"):
        with netCDF4.Dataset(path) as file:
            shapes[path.parent.name] = file["rainfall_rate"].shape
    assert shapes == {
        "synthetic_storms": (3, 64, 64),
        "ODIM_ORG_247_DBZH_as_rain_by_Z_200_R_1.6": (3, SIDE, SIDE),
    }

    # One of them has no files: the other is forecast, and the run says so.
    capsys.readouterr()
    one = forecast("--run", run, "--input", tmp_path / "knmi", "--out", tmp_path / "one")
    assert run_entry(one) == ExitCode.DONE
    assert "not forecast: ODIM ORG:247 DBZH as rain" in capsys.readouterr().err
    assert len(list((tmp_path / "one").rglob("*.nc"))) == 1
    # A watch publishes both, each in a folder of its own.
    argv = ["--watch", "--run", str(run), "--out", str(tmp_path / "watched"), "--no-pictures"]
    options = make_parser().parse_args([*argv, "--input", str(tmp_path / "knmi"), str(radar)])
    options.poll_s = 0
    for radar_watch in start_watches(options, argv, load_forecaster(run), time.time):
        radar_watch.look()
        assert radar_watch.make_next()
    assert {path.parent.parent.name for path in (tmp_path / "watched").glob("*/latest/*.nc")} == shapes.keys()

    chosen = forecast("--run", run, "--input", radar, "--out", tmp_path / "chosen", "--source", "synthetic storms")
    assert run_entry(chosen) == ExitCode.DATA


def rain_of(out: Path) -> Any:
    (path,) = out.glob("*.nc")
    with netCDF4.Dataset(path) as file:
        return int(file["forecast_reference_time"][()]), file["rainfall_rate"][:].filled(np.nan)


def test_a_bucket_gives_the_forecast_of_its_files_as_of_a_time(
    radar: Path,
    tiles_run: Path,
    tmp_path: Path,
    s3: S3,  # noqa: F811
) -> None:
    store = open_storage(s3.url, to_write=True)
    contents = {path.name: path.read_bytes() for path in radar.iterdir()}
    for name, content in contents.items():
        day = datetime.fromtimestamp(FIRST_S, UTC)
        store.write(f"{day:%Y/%m/%d}/{name}", content)
    s3.inject(fault_rules(0.05, 200, min(map(len, contents.values()))))

    at = ("--at", "2020-01-01T01:02")
    pattern = f"{s3.url}/%Y/%m/%d/*.hdf"
    remote = forecast("--run", tiles_run, "--input", pattern, "--out", tmp_path / "remote", *at)
    assert run_entry(remote) == ExitCode.DONE
    assert run_entry(forecast("--run", tiles_run, "--input", radar, "--out", tmp_path / "local", *at)) == ExitCode.DONE
    # The newest frame up to that time is the forecast's first: what came later was not there.
    (time_s, rain_mmh_thw), (local_s, local_mmh_thw) = rain_of(tmp_path / "remote"), rain_of(tmp_path / "local")
    assert time_s == local_s == FIRST_S + 12 * 300
    np.testing.assert_array_equal(rain_mmh_thw, local_mmh_thw)
    early = forecast("--run", tiles_run, "--input", radar, "--out", tmp_path / "early", "--at", "2019-01-01")
    assert run_entry(early) == ExitCode.DATA
