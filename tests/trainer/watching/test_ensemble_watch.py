"""A watch of an ensemble: cycles with members, a page that shows how likely rain is, and scores of the mean."""

import json
from pathlib import Path

import netCDF4
import numpy as np
import pytest

from rainspark.data.exit_codes import ExitCode
from rainspark.trainer.forecasting.forecaster import load_forecaster
from rainspark.trainer.processes.entry import run_entry
from rainspark.trainer.settings.forecast import make_parser
from rainspark.trainer.verification.rows import Rows
from rainspark.trainer.watching.status import write_status
from rainspark.trainer.watching.watch import RadarWatch, start_watches, watch
from tests.trainer.forecasting.members import MadeEnsemble
from tests.trainer.watching.tiny import FRAMES_IN, counts_of, make_run, radar_bytes, radar_name, time_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", tmp_path_factory.mktemp("scratch"))


def _start(run: Path, tmp_path: Path, *words: str) -> RadarWatch:
    argv = ["--watch", "--run", str(run), "--input", str(tmp_path / "radar"), "--out", str(tmp_path / "out"), *words]
    options = make_parser().parse_args(argv)
    options.poll_s = 0
    (watched,) = start_watches(options, argv, MadeEnsemble(**vars(load_forecaster(run))), lambda: time_of(6))
    return watched


def _deliver(tmp_path: Path, numbers: range) -> None:
    (tmp_path / "radar").mkdir(exist_ok=True)
    counts = counts_of(numbers.stop)
    for number in numbers:
        (tmp_path / "radar" / radar_name(number)).write_bytes(radar_bytes(tmp_path, counts[number], number))


def test_cycles_hold_members_and_the_page_shows_probabilities(run: Path, tmp_path: Path) -> None:
    _deliver(tmp_path, range(FRAMES_IN))
    watched = _start(run, tmp_path, "--members", "3", "--place", "Here=52.5,4.9")
    assert watched.report()["picture"] is None
    watched.look()
    assert watched.make_next(), watched.failures
    cycle = tmp_path / "out" / "202001010010"
    assert json.loads((cycle / "cycle.json").read_text())["members"] == 3
    assert (cycle / "plume_Here.png").exists()

    write_status(tmp_path / "out", [watched.report()], "now")
    assert '<img src="latest/probabilities.png?2020-01-01T00:10:00Z"' in (tmp_path / "out" / "status.html").read_text()
    assert (tmp_path / "out" / "latest" / "probabilities.png").exists()

    # What is scored of an ensemble here is its mean.
    _deliver(tmp_path, range(FRAMES_IN, 5))
    watched.look()
    assert watched.score_next()
    with netCDF4.Dataset(cycle / "forecast_202001010010.nc") as file:
        mean = file["rainfall_rate_mean"][:].filled(np.nan)
        assert file["rainfall_rate"].shape[0] == 3
    rows = Rows.load(tmp_path / "out" / "scores" / "202001010010-forecast.npz")
    assert mean.shape[0] == len(rows.settings.leads_min)


def test_a_place_outside_the_radar_is_named_on_the_page_and_the_watch_goes_on(run: Path, tmp_path: Path) -> None:
    _deliver(tmp_path, range(FRAMES_IN))
    watched = _start(run, tmp_path, "--members", "2", "--place", "10,10")
    watched.look()
    assert not watched.make_next()
    assert "--place 10 N, 10 E lies outside" in watched.report()["not_published"][0]["why"]


def test_without_pictures_there_is_none_on_the_page(run: Path, tmp_path: Path) -> None:
    _deliver(tmp_path, range(FRAMES_IN))
    watched = _start(run, tmp_path, "--members", "2", "--no-pictures")
    watched.look()
    assert watched.make_next()
    write_status(tmp_path / "out", [watched.report()], "now")
    assert "<img" not in (tmp_path / "out" / "status.html").read_text()


def test_a_watch_of_one_forecast_is_refused_members(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--watch", "--run", str(run), "--input", str(tmp_path), "--out", str(tmp_path / "out"), "--members", "2"]
    assert run_entry(lambda: watch(make_parser().parse_args(argv), argv)) == ExitCode.CONFIG
    assert "gives one forecast, and no ensemble" in capsys.readouterr().err
