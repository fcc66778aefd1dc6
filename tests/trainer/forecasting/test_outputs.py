"""`trainer/forecast.py` from a small run's checkpoint: what it writes, and what it refuses with which exit code."""

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import pytest
import torch
from PIL import Image

from rainspark.data.exit_codes import ExitCode
from rainspark.data.frames import Crop
from rainspark.data.sources.knmi_writer import file_name as name_of
from rainspark.data.sources.knmi_writer import write_knmi_file
from rainspark.data.sources.odim import OdimSource
from rainspark.data.store.storage import open_storage
from rainspark.data.units import MISSING_COUNT
from rainspark.trainer.checkpoint.folder import save
from rainspark.trainer.forecasting.build import build_nowcaster
from rainspark.trainer.forecasting.forecaster import load_forecaster
from rainspark.trainer.forecasting.outputs import _note_age, make_forecast, write_outputs
from rainspark.trainer.forecasting.outputs import run as run_forecast
from rainspark.trainer.processes.agreement import NonFiniteError
from rainspark.trainer.processes.entry import run_entry
from rainspark.trainer.settings.data import NowcastDataConfig
from rainspark.trainer.settings.experiment import FinetuneConfig
from rainspark.trainer.settings.forecast import make_parser
from rainspark.trainer.settings.model import NowcastConfig
from rainspark.trainer.settings.parse import as_dict
from rainspark.trainer.settings.run import NowcastRunConfig
from tests.data import knmi_frames
from tests.data.radar_files import FIRST_S, change, read_header, set_attribute, storms
from tests.integration.faults import state_of
from tests.s3_server import S3, s3, s3_server  # noqa: F401

SIZE = 64
FRAMES_IN, FRAMES_OUT = 3, 2
END_S = 1_577_836_800


def _write_radar(folder: Path, num_frames: int = FRAMES_IN, missing_rows: int = 0) -> Path:
    folder.mkdir()
    for number, counts in enumerate(storms(num_frames, SIZE, SIZE, 3)):
        end_time_s = END_S + (number - num_frames + 1) * 300
        counts[:missing_rows] = MISSING_COUNT
        write_knmi_file(folder / name_of(end_time_s), counts, end_time_s)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run's folder with one checkpoint of a tiny SmaAt-UNet with fresh weights."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    model = NowcastConfig(name="smaat_unet", frames_in=FRAMES_IN, frames_out=FRAMES_OUT, smaat_width=4)
    run, data = NowcastRunConfig(dir=str(folder)), NowcastDataConfig(shards="none")
    config = as_dict(FinetuneConfig(run=run, data=data, model=model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = build_nowcaster(model).state_dict()
    radar = _write_radar(tmp_path_factory.mktemp("radar") / "one", 1)
    grid = read_header(next(radar.iterdir())).grid
    about = {"grid": grid.to_json(), "cadence_s": 300, "scale_mmh": 0.12, "source": "synthetic storms", "spans": {}}
    save(folder, replace(state_of(1), config=config, data=about), weights, {}, keep_last=2)
    return folder


def _main(*words: str | Path) -> Callable[[], ExitCode]:
    argv = [str(word) for word in words]
    return lambda: run_forecast(make_parser().parse_args(argv), argv)


def test_a_forecast_is_written_with_its_pictures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    radar, out = _write_radar(tmp_path / "radar", 5), tmp_path / "out"
    assert run_entry(_main("--run", run, "--input", radar, "--out", out, "--name", "my model")) == 0
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == [
        "forecast.gif",
        "forecast_202001010000.nc",
        "frames/forecast_202001010000_005min.png",
        "frames/forecast_202001010000_010min.png",
    ]
    printed = capsys.readouterr().out
    assert "my model: 2020-01-01T00:05:00Z to 2020-01-01T00:10:00Z from 3 radar files" in printed
    assert str(out / "forecast_202001010000.nc") in printed
    forecaster = load_forecaster(run)
    latest = [knmi_frames.read(path) for path in sorted(radar.iterdir())[-FRAMES_IN:]]
    rain = torch.from_numpy(np.stack([frame.counts for frame in latest]).astype(np.float32) * np.float32(0.12))
    expected = forecaster.forecast(rain[None], None)[0].numpy()
    with netCDF4.Dataset(out / "forecast_202001010000.nc") as file:
        np.testing.assert_allclose(file["rainfall_rate"][:].filled(np.nan), expected, rtol=1e-6)
        assert "my model" in file.source
        assert "rainspark forecast --run" in file.history
    with Image.open(out / "forecast.gif") as picture:
        assert getattr(picture, "n_frames", 1) == FRAMES_IN + FRAMES_OUT


def test_the_newest_objects_of_a_bucket_are_forecast_from(run: Path, tmp_path: Path, s3: S3) -> None:  # noqa: F811
    radar = _write_radar(tmp_path / "radar", 5)
    storage = open_storage(s3.url)
    for path in radar.iterdir():
        time = datetime.strptime(path.stem[-12:], "%Y%m%d%H%M")
        storage.write(f"{time:%Y/%m/%d}/{path.name}", path.read_bytes())
    storage.write("2019/12/30/RAD_NL25_RAP_5min_201912302300.h5", b"of no interest")
    s3.inject([{"match": "GET", "skip": 2, "times": 1, "do": "503"}, {"match": "GET", "skip": 3, "do": "corrupt"}])
    # Of the pattern, that day and those before it are searched.
    options = ("--run", run, "--no-pictures", "--at", "2020-01-01T00:00", "--out")
    assert _main(*options, tmp_path / "remote", "--input", f"{s3.url}/%Y/%m/%d/*.h5")() is ExitCode.DONE
    assert _main(*options, tmp_path / "local", "--input", radar)() is ExitCode.DONE
    (remote,), (local,) = ((tmp_path / where).glob("*.nc") for where in ("remote", "local"))
    with netCDF4.Dataset(remote) as ours, netCDF4.Dataset(local) as theirs:
        np.testing.assert_array_equal(ours["rainfall_rate"][:], theirs["rainfall_rate"][:])
        np.testing.assert_array_equal(ours["time"][:], theirs["time"][:])


def test_without_pictures_only_the_file_is_written(run: Path, tmp_path: Path) -> None:
    files = sorted(_write_radar(tmp_path / "radar").iterdir())
    assert _main("--run", run, "--input", *files, "--out", tmp_path / "out", "--no-pictures")() is ExitCode.DONE
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["forecast_202001010000.nc"]


def test_pixels_that_no_radar_saw_have_no_forecast(run: Path, tmp_path: Path) -> None:
    forecast = make_forecast(load_forecaster(run), [_write_radar(tmp_path / "radar", missing_rows=10)])
    assert np.isnan(forecast.rain_mmh_thw[:, :10]).all()
    assert np.isfinite(forecast.rain_mmh_thw[:, 10:]).all()
    assert forecast.num_nonfinite == 0


class _Broken(torch.nn.Module):
    """Gives NaN in its first rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, frames_bthw: torch.Tensor, _visible: None, _valid: None) -> torch.Tensor:
        output = frames_bthw[:, :FRAMES_OUT].clone()
        output[:, :, : self.rows] = torch.nan
        return output


def test_what_is_not_finite_is_counted_and_nothing_finite_is_refused(run: Path, tmp_path: Path) -> None:
    radar = _write_radar(tmp_path / "radar")
    broken = replace(load_forecaster(run), model=_Broken(5))
    forecast = make_forecast(broken, [radar])
    assert forecast.num_nonfinite == FRAMES_OUT * 5 * SIZE
    paths = write_outputs(forecast, tmp_path / "out", command="c", institution="i")
    with netCDF4.Dataset(paths[0]) as file:
        assert np.ma.getmaskarray(file["rainfall_rate"][:]).sum() == FRAMES_OUT * 5 * SIZE
    with pytest.raises(NonFiniteError, match="not one pixel of the forecast is a finite number"):
        make_forecast(replace(broken, model=_Broken(SIZE)), [radar])


def test_refusals_have_their_exit_code_and_write_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    radar, out = _write_radar(tmp_path / "radar"), tmp_path / "out"
    (tmp_path / "file").write_text("x")
    files = sorted(radar.iterdir())
    none = tmp_path / "none"
    cases: list[tuple[list[str | Path], ExitCode, str]] = [
        (["--run", run, "--input", radar, "--out", tmp_path / "file"], ExitCode.DATA, "is a file; expected a folder"),
        (["--run", none, "--input", radar, "--out", out], ExitCode.CHECKPOINT, "does not exist"),
        (["--run", run, "--input", *files[1:], "--out", out], ExitCode.DATA, "2 radar files were given"),
        (["--run", run, "--input", none, "--out", out], ExitCode.DATA, "is not there"),
        (["--run", run, "--input", radar, "--out", out, "--device", "cuda"], ExitCode.CONFIG, "no CUDA device"),
    ]
    for words, code, message in cases[: 4 if torch.cuda.is_available() else 5]:
        assert run_entry(_main(*words)) == code
        assert message in capsys.readouterr().err
        assert not out.exists()


def test_products_are_read_back_and_a_missing_package_is_named_before_any_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rasterio = pytest.importorskip("rasterio")
    radar, out = _write_radar(tmp_path / "radar"), tmp_path / "out"
    words = ("--run", run, "--input", radar, "--out", out, "--products", "netcdf", "cog", "odim")
    assert run_entry(_main(*words)) == 0
    with netCDF4.Dataset(out / "forecast_202001010000.nc") as file:
        rain = file["rainfall_rate"][:].filled(np.nan)
    for lead in range(FRAMES_OUT):
        with rasterio.open(out / "cog" / f"forecast_202001010000_{5 * lead + 5:03d}min.tif") as file:
            np.testing.assert_array_equal(file.read(1), rain[lead])
    with rasterio.open(out / "cog" / "forecast_202001010000_010min_sum_010min.tif") as file:
        np.testing.assert_allclose(file.read(1), rain.sum(axis=0) / 12, rtol=1e-6)
    refs = OdimSource().scan([out / "odim"]).refs
    for lead, ref in enumerate(refs):
        counts = OdimSource().read(ref, Crop(row0=0, row1=SIZE, col0=0, col1=SIZE)).counts
        np.testing.assert_allclose(counts / 100, rain[lead], atol=0.00501)

    # As where the extra is not installed.
    monkeypatch.setitem(sys.modules, "rasterio", None)
    again = tmp_path / "again"
    assert run_entry(_main(*words[:5], again, *words[6:])) == ExitCode.CONFIG
    assert "pip install 'rainspark[formats]'" in capsys.readouterr().err
    assert not again.exists()


def test_a_run_that_does_not_record_its_cadence_says_so(run: Path, tmp_path: Path) -> None:
    forecaster = load_forecaster(run)
    unknown = replace(forecaster, data={key: value for key, value in forecaster.data.items() if key != "cadence_s"})
    with pytest.raises(ValueError, match="records no cadence_s"):
        make_forecast(unknown, [tmp_path / "radar"])


@pytest.mark.parametrize(("before_s", "noted"), [(FIRST_S + 1, False), (FIRST_S + 300, False), (FIRST_S + 301, True)])
def test_a_forecast_of_old_frames_says_so(capsys: pytest.CaptureFixture[str], before_s: int, noted: bool) -> None:
    _note_age((FIRST_S - 300, FIRST_S), before_s)
    assert ("the newest frame ends at" in capsys.readouterr().err) == noted


def test_every_product_says_that_a_frame_was_bridged(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    radar, out = _write_radar(tmp_path / "radar", FRAMES_IN + 1), tmp_path / "out"
    (radar / name_of(END_S - 300)).unlink()
    rasterio = pytest.importorskip("rasterio")
    words: list[str | Path] = ["--run", run, "--input", radar, "--out", out, "--products", "netcdf", "cog", "odim"]
    assert run_entry(_main(*words)) == ExitCode.DATA
    assert "--allow-missing 1" in capsys.readouterr().err
    assert run_entry(_main(*words, "--allow-missing", "1")) == 0

    note = "1 of 3 input frames were missing or damaged and were bridged by carrying rain along: 2019-12-31T23:55:00Z."
    assert f"warning: {note}" in capsys.readouterr().out
    with netCDF4.Dataset(out / "forecast_202001010000.nc") as file:
        assert file.comment.endswith(note)
    for path in (out / "cog").iterdir():
        with rasterio.open(path) as file:
            assert note in " ".join(file.tags().values())
    for path in (out / "odim").iterdir():
        with h5py.File(path) as file:
            assert file["how"].attrs["comment"].decode().endswith(note)


def test_files_of_another_product_than_the_runs_are_forecast_with_a_note(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    radar = _write_radar(tmp_path / "radar")
    for path in radar.iterdir():
        change(path, set_attribute("overview", "product_group_name", np.bytes_("RAD_NL25_RAC")))
    words = ("--run", run, "--input", radar, "--products", "netcdf", "--out", tmp_path / "out")
    assert run_entry(_main(*words)) == 0
    assert "note: the run learned from synthetic storms; these are KNMI RAD_NL25_RAC" in capsys.readouterr().err
