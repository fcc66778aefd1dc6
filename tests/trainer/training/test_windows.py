"""The archive of a run, split in time: which windows belong to which part, and what is said where one has none."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.frames import Crop, Grid
from rainspark.data.sequences import TimeSpan
from rainspark.data.shards.index import Index
from rainspark.data.windows.selection import WindowTable
from rainspark.trainer.record.announcements import announce_sources
from rainspark.trainer.settings.data import WindowsConfig
from rainspark.trainer.settings.experiment import PretrainConfig
from rainspark.trainer.settings.parse import parse_config
from rainspark.trainer.training.windows import (
    Windows,
    absent_sources,
    check_frames,
    open_stream,
    open_windows,
    wettest,
)
from tests.data.mixed import pack_mixed
from tests.integration.runs import make_shards

WINDOW = 5
DAY_S = 86_400


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five hours of five-minute frames from 2020-06-01T00:00."""
    return make_shards(tmp_path_factory.mktemp("storms"))


def split(shards: Path, **settings: Any) -> Windows:
    return open_windows(WindowsConfig(shards=str(shards), **settings), WINDOW)


def test_a_mask_that_hides_nothing_is_refused(shards: Path) -> None:
    words = ["--data.shards", str(shards), "--run.dir", "run", "--model.mask_ratio"]
    index = split(shards, validation_share=0).index
    check_frames(parse_config([*words, "0.6"], PretrainConfig, prog="test"), index)
    with pytest.raises(ConfigError, match=r"mask_ratio 0\.1 hides none of the 2 x 2 patches"):
        check_frames(parse_config([*words, "0.1"], PretrainConfig, prog="test"), index)


def times_s(table: WindowTable | None, index: Index) -> list[set[int]]:
    """End times of every window's frames."""
    if table is None:
        return []
    firsts = [
        index.sequences[int(sequence)].start_s + int(start) * index.cadence_s
        for sequence, start in zip(table.sequence, table.start, strict=True)
    ]
    return [{first + frame * index.cadence_s for frame in range(table.window)} for first in firsts]


def test_stated_times_are_taken_to_the_frame(shards: Path) -> None:
    """START is in, STOP is not."""
    windows = split(
        shards,
        guard_h=0,
        train_times=("2020-06-01T00:00/2020-06-01T01:00", "2020-06-01T02:00/2020-06-01T02:25"),
        validation_times=("2020-06-01T01:00/2020-06-01T01:30",),
    )
    start = 1_590_969_600
    train, held_out = times_s(windows.train, windows.index), times_s(windows.held_out, windows.index)
    hour, other = start + 12 * 300, start + 24 * 300
    assert len(train) == (12 - WINDOW + 1) + 1
    assert set().union(*train) == set(range(start, hour, 300)) | set(range(other, other + 5 * 300, 300))
    assert set().union(*held_out) == set(range(hour, hour + 6 * 300, 300))
    assert windows.spans["test"] == ()


def test_what_is_recorded_reads_back(shards: Path) -> None:
    windows = split(shards, test_share=0.2, guard_h=0.25)
    said = windows.described()
    expected = {"source", "sources", "licence", "fingerprint", "grid", "cadence_s", "scale_mmh", "readers", "spans"}
    assert expected == said.keys()
    learned = said["readers"]["synthetic storms"]
    assert (learned["recipe"], learned["period_s"]) == ({"kind": "knmi", "options": {}}, 300)
    assert Grid.from_json(learned["grid"]).cropped(Crop(**learned["crop"])) == Grid.from_json(said["grid"])
    assert said["sources"] == [said["source"]] == ["synthetic storms"]
    assert {part: tuple(TimeSpan(**span) for span in some) for part, some in said["spans"].items()} == windows.spans
    assert (said["cadence_s"], said["scale_mmh"]) == (300, pytest.approx(0.12))
    assert (said["grid"]["rows"], said["grid"]["cols"]) == (windows.index.rows, windows.index.cols)


TIMES = {"train_times": ("2020-06-01T00:00/2020-06-01T02:00",), "guard_h": 0.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"validation_share": 0.05, "guard_h": 0.0},
            r"the held-out part .*data\.validation_share 0\.05.* has no window",
        ),
        ({"test_share": 0.05, "guard_h": 0.0}, r"the test part .*data\.test_share 0\.05.* set data\.test_share 0"),
        (
            {"validation_share": 0.5, "test_share": 0.48, "guard_h": 0.0},
            r"the training part .*data\.validation_share 0\.5, data\.test_share 0\.48.*Hold out less",
        ),
        ({"validation_share": 0.5, "test_share": 0.5}, r"data\.test_share 0\.5.*leave .*for training"),
        ({"guard_h": 50.0}, r"data\.guard_h 50.*the archive spans"),
        ({"train_times": ("2021-01-01/2021-02-01",)}, r"the training part .*data\.train_times\) has no window"),
        (
            {**TIMES, "validation_times": ("2020-06-01T03:00/2020-06-01T03:20",)},
            r"the held-out part .*data\.validation_times\) has no window.*State other times",
        ),
        (
            {**TIMES, "test_times": ("2020-06-02/2020-06-03",)},
            r"the test part .*data\.test_times\) has no window.*State other times",
        ),
        ({"min_rain_fraction": 1.0, "guard_h": 0.0}, r"highest rain fraction"),
        (
            {"validation_share": 0.5, "test_share": 0.48, "guard_h": 0.0},
            r"Hold out less$",
        ),
        # What the whole archive does not hold, no other split gives.
        ({"min_rain_fraction": 1.0, "validation_share": 0.5, "guard_h": 0.0}, r"^(?!.*[Hh]old out).*at least 1\.0"),
    ],
)
def test_a_part_without_windows_is_named_with_the_settings_that_made_it(
    shards: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        split(shards, **settings)


def test_no_guard_is_said(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    split(shards, guard_h=0, validation_share=0)
    assert "data.guard_h is 0" not in caplog.text
    split(shards, guard_h=0, validation_share=0, test_share=0.2)
    assert "data.guard_h is 0" in caplog.text


def test_the_wettest_window_has_the_most_rain(shards: Path) -> None:
    windows = split(shards, guard_h=0.25)
    index, table = windows.index, windows.train
    shares = [
        np.sum(index.sequences[int(sequence)].rain_fraction[int(start) : int(start) + WINDOW])
        for sequence, start in zip(table.sequence, table.start, strict=True)
    ]
    (chosen,) = wettest(index, table).start.tolist()
    assert chosen == int(table.start[int(np.argmax(shares))])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A radar that it rains on for the first half of three hours, and one that it rains on always."""
    half = np.repeat([1, 0], 18).astype(np.uint16)[:, None, None] * np.ones((32, 32), np.uint16)
    frames = {"Half": half, "Wet": np.ones_like(half)}
    folder = tmp_path_factory.mktemp("mixed") / "shards"
    pack_mixed(folder, frames, scales_mmh=(0.12, 0.12), window=WINDOW, max_frames=12, num_shards=2)
    return folder


def introduced(shards: Path, caplog: pytest.LogCaptureFixture, **settings: Any) -> list[str]:
    config = WindowsConfig(shards=str(shards), global_batch=2, guard_h=0.0, **settings)
    windows = open_windows(config, WINDOW)
    caplog.clear()
    stream = open_stream(windows, config, seed=0, rank=0, world_size=1, pin=False)
    announce_sources(stream.shares, absent_sources(windows))
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [line for line in found if "whole lanes" not in line]


def test_a_source_that_a_part_has_no_window_of_is_named(mixed: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert introduced(mixed, caplog, validation_share=0.5) == []
    (line,) = introduced(mixed, caplog, validation_share=0.4, min_rain_fraction=0.5)
    assert line.startswith("no window of Half is in the held-out part (2010-01-01T01:")
    assert "state data.train_times and the other parts' so that each has some of it, or choose data.source" in line
    first, last = "2010-01-01T00:00/2010-01-01T01:00", "2010-01-01T02:00/2010-01-01T03:00"
    (line,) = introduced(
        mixed, caplog, train_times=(last,), validation_times=(first,), validation_share=0, min_rain_fraction=0.5
    )
    assert line.startswith("no window of Half is in the training part (2010-01-01T02:00:00Z to 2010-01-01T03:00:00Z)")
    assert introduced(mixed, caplog, validation_share=0.4, min_rain_fraction=0.5, source="Wet") == []


def test_parts_without_windows_of_a_mixed_archive_advise_stated_times(mixed: Path) -> None:
    with pytest.raises(DataError, match=r"has no window.*sources are of different years, state data.train_times"):
        open_windows(WindowsConfig(shards=str(mixed), validation_share=0.05, guard_h=0), WINDOW)
