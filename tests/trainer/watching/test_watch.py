"""What a watch publishes, reports and scores of what lies in a folder or a bucket, a look at a time."""

import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import pytest
import torch

from rainspark.data.errors import DataError
from rainspark.data.exit_codes import ExitCode
from rainspark.data.sources.knmi_writer import write_knmi_file
from rainspark.data.store.storage import hold_folder, open_storage
from rainspark.data.units import MISSING_COUNT
from rainspark.models.baselines.extrapolation import Extrapolation
from rainspark.trainer.forecasting.forecaster import load_forecaster
from rainspark.trainer.processes.entry import run_entry
from rainspark.trainer.settings.forecast import make_parser
from rainspark.trainer.verification.rows import Rows, Settings, WindowId, score_window
from rainspark.trainer.watching.publishing import Shelf, stamp_of
from rainspark.trainer.watching.status import write_status
from rainspark.trainer.watching.watch import RadarWatch, start_watches, watch
from tests.data import knmi_frames
from tests.s3_server import S3, s3, s3_server  # noqa: F401
from tests.trainer.watching.tiny import FRAMES_IN, FRAMES_OUT, counts_of, make_run, radar_bytes, radar_name, time_of

Looker = Callable[..., RadarWatch]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    scratch = tmp_path_factory.mktemp("frames")
    return [radar_bytes(scratch, counts_hw, number) for number, counts_hw in enumerate(counts_of(10))]


@pytest.fixture
def started(run: Path, tmp_path: Path) -> Looker:
    """Start the watch of a folder, with a clock of its own."""

    def start(now_s: Sequence[float], where: str | Path = tmp_path / "radar", *more: str) -> RadarWatch:
        words = ["--watch", "--run", str(run), "--input", str(where), "--out", str(tmp_path / "out"), "--no-pictures"]
        options = make_parser().parse_args([*words, *more])
        options.poll_s = 0
        (tmp_path / "radar").mkdir(exist_ok=True)
        (made,) = start_watches(options, words, load_forecaster(run), lambda: now_s[-1])
        return made

    return start


def deliver(folder: Path, data: Sequence[bytes], numbers: Sequence[int]) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        (folder / radar_name(number)).write_bytes(data[number])


def work(watched: RadarWatch) -> list[str]:
    """Look, and publish all that can be; gives the stamps of what is published."""
    watched.look()
    while watched.make_next():
        pass
    return [stamp_of(time_s) for time_s in sorted(watched.shelf.cycles)]


def test_a_folder_that_is_full_gives_its_newest_cycle_first(started: Looker, tmp_path: Path, data: list[bytes]) -> None:
    deliver(tmp_path / "radar", data, range(5))
    watched = started([time_of(5)])
    assert work(watched) == [stamp_of(time_of(4))]
    assert (tmp_path / "out" / "latest").readlink() == Path(stamp_of(time_of(4)))
    deliver(tmp_path / "radar", data, [5, 6])
    watched.clock = lambda: time_of(6)
    assert work(watched) == [stamp_of(time_of(number)) for number in (4, 5, 6)]
    # A second start knows what is published, and makes up for what came meanwhile.
    deliver(tmp_path / "radar", data, [7])
    assert work(started([time_of(7)])) == [stamp_of(time_of(number)) for number in (4, 5, 6, 7)]


def test_a_damaged_newest_frame_is_not_published_until_it_is_whole(
    started: Looker, tmp_path: Path, data: list[bytes]
) -> None:
    deliver(tmp_path / "radar", data, range(3))
    broken = tmp_path / "radar" / radar_name(3)
    broken.write_bytes(data[3][:-300])
    watched = started([time_of(3)])
    assert work(watched) == [stamp_of(time_of(2))]
    report = watched.report()
    assert [cycle["reference_time"] for cycle in report["not_published"]] == ["2020-01-01T00:15:00Z"]
    assert "its newest frame is damaged" in report["not_published"][0]["why"]
    assert broken.name in report["damaged"][0]
    broken.write_bytes(data[3])
    assert work(watched) == [stamp_of(time_of(number)) for number in (2, 3)]
    assert watched.report()["damaged"] == []


def test_a_damaged_copy_does_not_hide_a_sound_one(started: Looker, tmp_path: Path, data: list[bytes]) -> None:
    deliver(tmp_path / "radar", data, range(4))
    copy = tmp_path / "radar" / radar_name(3).replace("RAP", "RAX")
    copy.write_bytes(data[3][:500])
    os.utime(copy, (time.time() + 5, time.time() + 5))
    assert work(started([time_of(3)])) == [stamp_of(time_of(3))]


def test_a_frame_of_another_grid_does_not_hide_the_radars_own(
    started: Looker, tmp_path: Path, data: list[bytes]
) -> None:
    deliver(tmp_path / "radar", data, range(4))
    other = tmp_path / "radar" / radar_name(3).replace("RAP", "RAX")
    write_knmi_file(other, counts_of(1)[0], time_of(3))
    with h5py.File(other, "r+") as file:
        file["geographic"].attrs["geo_row_offset"] = np.array([3650.3], np.float32)
    os.utime(other, (time.time() + 5, time.time() + 5))
    watched = started([time_of(3)])
    assert work(watched) == [stamp_of(time_of(3))]
    assert "the pixels do not lie on the run's" in watched.report()["damaged"][0]


def test_frames_of_the_future_and_other_files_change_nothing(
    started: Looker, tmp_path: Path, data: list[bytes]
) -> None:
    deliver(tmp_path / "radar", data, [*range(3), 8])
    (tmp_path / "radar" / "README.txt").write_text("hello")
    (tmp_path / "radar" / f".{radar_name(4)}.a1b2").write_bytes(data[4][:99])
    (tmp_path / "radar" / "gone.h5").symlink_to(tmp_path / "nowhere")
    watched = started([time_of(3)])
    assert work(watched) == [stamp_of(time_of(2))]
    report = watched.report()
    assert [Path(name).name for name in report["future"]] == [radar_name(8)]
    assert any("README.txt" in line for line in report["not_read"])
    # When its time has come it is a frame as others are; that of its hour that are missing stay so.
    watched.clock = lambda: time_of(8)
    assert work(watched) == [stamp_of(time_of(2))]
    assert "missing or damaged, more than 3" not in str(watched.report()["not_published"])


def test_a_latest_forecast_that_is_old_is_reported(started: Looker, tmp_path: Path, data: list[bytes]) -> None:
    deliver(tmp_path / "radar", data, range(3))
    watched = started([time_of(2)])
    assert watched.report()["is_stale"] is True
    work(watched)
    for number, is_stale in ((2, False), (5, False), (6, True)):
        watched.clock = partial(time_of, number)
        report = watched.report()
        assert report["is_stale"] is is_stale
        write_status(tmp_path, [report], "now")
        page = (tmp_path / "status.html").read_text()
        assert ("The latest forecast is old: it starts from 2020-01-01T00:10:00Z" in page) is is_stale
        assert json.loads((tmp_path / "status.json").read_text())["radars"][0]["latest"] == "2020-01-01T00:10:00Z"


def test_nothing_that_files_are_called_is_run_by_the_page(started: Looker, tmp_path: Path, data: list[bytes]) -> None:
    deliver(tmp_path / "radar", data, range(3))
    (tmp_path / "radar" / "<script>alert(1)<").mkdir()
    (tmp_path / "radar" / "<script>alert(1)<" / "x.h5").write_bytes(b"no radar")
    watched = started([time_of(2)])
    work(watched)
    write_status(tmp_path, [watched.report()], "now")
    page = (tmp_path / "status.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


def test_the_scores_are_those_of_the_verification_beside_extrapolation(
    started: Looker, tmp_path: Path, data: list[bytes]
) -> None:
    deliver(tmp_path / "radar", data, range(3))
    watched = started([time_of(6)])
    published = tmp_path / "out" / work(watched)[0]
    assert not watched.score_next()
    deliver(tmp_path / "radar", data, range(3, 6))
    watched.look()
    assert watched.score_next()
    assert not watched.score_next()

    # A second way to the same numbers: hits, misses and false alarms counted plainly.
    frames = [knmi_frames.read(tmp_path / "radar" / radar_name(number)) for number in range(5)]
    counts = np.stack([frame.counts for frame in frames])
    rain = np.where(counts == MISSING_COUNT, 0, counts.astype(np.float32) * np.float32(0.12))
    past, measured = torch.from_numpy(rain[:3])[None], torch.from_numpy(counts[:3] != MISSING_COUNT)[None]
    carried = Extrapolation().forecast(past, measured, FRAMES_OUT)
    valid = (counts[3:] != MISSING_COUNT) & torch.isfinite(carried)[0].numpy()
    with netCDF4.Dataset(published / f"forecast_{published.name}.nc") as file:
        forecast = file["rainfall_rate"][:].filled(np.nan)

    scores = watched.report()["scores"]
    assert scores["cycles"] == 1
    for name, rain_thw in (("tiny", forecast), ("extrapolation", carried[0].numpy())):
        event, came = rain_thw[1] > 0.5, rain[4] > 0.5
        hits, either = (event & came & valid[1]).sum(), ((event | came) & valid[1]).sum()
        assert scores["models"][name]["CSI > 0.5 mm/h at 10 min"] == pytest.approx(hits / either, nan_ok=True)
        error = (rain_thw - rain[3:])[valid].astype(np.float64)
        assert scores["models"][name]["MSE, (mm/h)^2"] == pytest.approx(np.square(error).mean(), rel=1e-5)
    write_status(tmp_path, [watched.report()], "now")
    assert "last day's 1 forecasts" in (tmp_path / "status.html").read_text()


def test_the_next_day_the_scores_are_of_other_cycles(started: Looker, tmp_path: Path, data: list[bytes]) -> None:
    deliver(tmp_path / "radar", data, range(3))
    watched = started([time_of(6)])
    work(watched)
    deliver(tmp_path / "radar", data, range(3, 6))
    watched.look()
    watched.score_next()
    assert watched.report()["scores"]["cycles"] == 1
    watched.clock = lambda: time_of(6) + 86_400
    assert watched.report()["scores"]["cycles"] == 0


def test_scores_read_back_and_what_is_none_is_refused(tmp_path: Path) -> None:
    settings = Settings(leads_min=(5.0, 10.0), thresholds_mmh=(0.5,), scales_px=(1, 3))
    rain = np.random.default_rng(1).gamma(0.5, 2, (2, 2, 16, 16)).astype(np.float32)
    rows = score_window(settings, WindowId(issue_s=7, name="a"), rain[0], rain[1], None)
    rows.save(tmp_path / "a.npz")
    again = Rows.load(tmp_path / "a.npz")
    assert again.settings == settings
    assert again.windows == rows.windows
    assert np.array_equal(again.fss_numerator, rows.fss_numerator)
    for content in (b"no zip", (tmp_path / "a.npz").read_bytes()[:200]):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.npz|pickle"):
            Rows.load(tmp_path / "b.npz")


def test_old_cycles_go_and_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "out", keep=2)

    def write(folder: Path) -> list[Path]:
        (folder / "a").write_text("a")
        return [folder / "a"]

    def fail(folder: Path) -> list[Path]:
        write(folder)
        raise OSError(28, "No space left on device")

    for number in range(4):
        shelf.publish(time_of(number), write, {"model": "x"})
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [stamp_of(time_of(2)), stamp_of(time_of(3)), "latest"]
    with pytest.raises(DataError, match=r"202001010020: could not be published: No space left on device"):
        shelf.publish(time_of(4), fail, {})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_what_a_killed_watch_leaves_is_put_right(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "out", keep=9)
    for number in range(2):
        shelf.publish(time_of(number), lambda _: [], {})
    # Killed while writing, while removing, and before `latest` was replaced.
    (tmp_path / "out" / ".making-202001010010").mkdir()
    (tmp_path / "out" / ".making-202001010010" / "half.nc").touch()
    (tmp_path / "out" / ".removing-201912312355").mkdir()
    (tmp_path / "out" / ".status.json.86de3aea295b.partial").write_text("{")
    (tmp_path / "out" / "latest").unlink()
    (tmp_path / "out" / "latest").symlink_to(stamp_of(time_of(0)))
    # Somebody else's folders are no cycles, and stay.
    (tmp_path / "out" / "notes").mkdir()
    (tmp_path / "out" / "notes" / "cycle.json").write_text("{}")
    again = Shelf(tmp_path / "out", keep=9)
    assert sorted(again.cycles) == [time_of(0), time_of(1)]
    assert (tmp_path / "out" / "latest").readlink() == Path(stamp_of(time_of(1)))
    assert not list((tmp_path / "out").glob(".*"))
    assert (tmp_path / "out" / "notes").exists()


def test_two_watches_of_one_folder_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: list[bytes]
) -> None:
    deliver(tmp_path / "radar", data, range(3))
    words = ["--watch", "--run", str(run), "--input", str(tmp_path / "radar"), "--out", str(tmp_path / "out")]
    with hold_folder(tmp_path / "out", "busy"):
        code = run_entry(lambda: watch(make_parser().parse_args(words), words, stop=threading.Event()))
    assert code == ExitCode.DATA
    assert "another watch publishes there" in capsys.readouterr().err


def test_a_folder_that_is_not_there_yet_is_waited_for(started: Looker, tmp_path: Path, data: list[bytes]) -> None:
    watched = started([time_of(3)], tmp_path / "later")
    assert work(watched) == []
    assert watched.report()["not_read"] == [f"{tmp_path / 'later'}: is not there"]
    deliver(tmp_path / "later", data, range(4))
    assert work(watched) == [stamp_of(time_of(3))]


def test_a_time_is_refused_beside_a_watch(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--watch", "--run", str(run), "--input", "x", "--out", str(tmp_path / "out"), "--at", "2020-01-01T00:00"]
    assert run_entry(lambda: watch(make_parser().parse_args(words), words, stop=threading.Event())) == ExitCode.CONFIG
    assert "--at has no effect beside --watch" in capsys.readouterr().err


def test_frames_of_a_tar_are_told_apart(started: Looker, tmp_path: Path, data: list[bytes]) -> None:
    (tmp_path / "radar").mkdir()
    with tarfile.open(tmp_path / "radar" / "day.tar", "w") as tar:
        for number in range(5):
            content = data[number] if number != 3 else data[number][:400]
            member = tarfile.TarInfo(radar_name(number))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    watched = started([time_of(4)])
    assert work(watched) == [stamp_of(time_of(4))]
    about = json.loads((tmp_path / "out" / "latest" / "cycle.json").read_text())
    assert about["bridged"] == ["2020-01-01T00:15:00Z"]
    assert len(watched.report()["damaged"]) == 1


def test_a_bucket_is_watched(started: Looker, data: list[bytes], s3: S3) -> None:  # noqa: F811
    storage = open_storage(s3.url)
    for number in range(FRAMES_IN):
        storage.write(f"2020/01/01/{radar_name(number)}", data[number])
    watched = started([time_of(3)], f"{s3.url}/%Y/%m/%d/*.h5")
    assert work(watched) == [stamp_of(time_of(2))]
    s3.inject([{"match": "GET", "skip": 1, "times": 2, "do": "503"}])
    storage.write(f"2020/01/01/{radar_name(3)}", data[3])
    assert work(watched) == [stamp_of(time_of(number)) for number in (2, 3)]
