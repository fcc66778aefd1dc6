"""Sinks of metrics: what they hold, how a resume cuts them, and that none of them can stop a run."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rainspark.trainer.settings.tracking import TrackingConfig
from rainspark.trainer.tracking.trackers import JsonlTracker, TensorBoardTracker, Trackers, open_trackers
from tests.disks import limited_files
from tests.trainer.tracking.tracked import Remembers


def _lines(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def _picture(path: Path) -> Path:
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path


def test_one_strict_json_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    tracker.log(1, {"loss": 0.5, "rate": 0.25})
    tracker.log(2, {"loss": float("nan"), "up": float("inf"), "down": float("-inf")})
    tracker.image(2, "reconstruction", tmp_path / "new" / "pictures" / "a.png")
    tracker.image(2, "elsewhere", Path("/elsewhere/b.png"))
    assert len(_lines(path)) == 4, "a line is on the disk when log returns"
    tracker.close()
    tracker.close()
    lines = _lines(path)
    assert all(list(line)[:2] == ["step", "time_s"] and 1.5e9 < line["time_s"] < 1e10 for line in lines)
    assert [{key: line[key] for key in line if key != "time_s"} for line in lines] == [
        {"step": 1, "metrics": {"loss": 0.5, "rate": 0.25}},
        {"step": 2, "metrics": {"loss": "NaN", "up": "Infinity", "down": "-Infinity"}},
        {"step": 2, "image": {"name": "reconstruction", "path": "pictures/a.png"}},
        {"step": 2, "image": {"name": "elsewhere", "path": "/elsewhere/b.png"}},
    ]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.floats(width=64), min_size=1, max_size=12),
    resume_step=st.integers(0, 13),
    torn=st.binary(max_size=10).filter(lambda tail: b"\n" not in tail),
)
def test_a_resume_cuts_later_lines_and_a_torn_one(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], resume_step: int, torn: bytes
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    for step, value in enumerate(values, start=1):
        tracker.log(step, {"loss": value})
    tracker.close()
    before = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(before) + torn)
    tracker = JsonlTracker(path, resume_step)
    assert path.read_bytes() == b"".join(before[:resume_step])
    tracker.log(resume_step + 1, {"loss": 1.0})
    tracker.close()
    assert [line["step"] for line in _lines(path)] == [*range(1, min(resume_step, len(values)) + 1), resume_step + 1]
    assert [item.name for item in path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_in_an_old_folder_starts_its_metrics_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "time_s": 1.0, "metrics": {}}\nnot metrics\n[]\n{"step": "x"}\n')
    with caplog.at_level(logging.WARNING):
        JsonlTracker(path, None).close()
    assert path.read_bytes() == b""
    assert "3 lines were torn" in caplog.text


def test_tensorboard_holds_the_numbers_and_the_picture_and_drops_later_steps(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = _picture(tmp_path / "a.png")
    for resume_step, steps in ((None, range(1, 9)), (4, range(5, 7))):
        tracker = TensorBoardTracker(tmp_path / "tensorboard", resume_step)
        for step in steps:
            tracker.log(step, {"train/loss": step * (10.0 if resume_step else 1.0)})
        tracker.image(steps[-1], "reconstruction", picture)
        tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert points == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 50.0), (6, 60.0)]
    shown = events.Images("reconstruction")[-1]
    assert (shown.step, shown.width, shown.height) == (6, 4, 4)


def test_a_failing_sink_is_switched_off_alone_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = Remembers("good"), Remembers("bad", fails_at=2)
    trackers = Trackers([bad, good])
    with caplog.at_level(logging.WARNING):
        for step in range(1, 5):
            trackers.log(step, {"loss": 1.0 / step})
        trackers.image(4, "picture", Path("a.png"))
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith("bad was switched off after ConnectionError: the server is gone")
        trackers.close()
        assert len(caplog.messages) == 2, "said again at the end"
        trackers.close()
    assert len(caplog.messages) == 2
    assert trackers.problems == ["bad was switched off after ConnectionError: the server is gone"]
    assert bad.calls == [(1, {"loss": 1.0})]
    assert good.calls == [*((s, {"loss": 1.0 / s}) for s in range(1, 5)), (4, "picture", Path("a.png")), "closed"]


def test_a_disk_that_fills_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trackers = open_trackers(tmp_path, TrackingConfig(tensorboard=False), resume_step=None)
    with caplog.at_level(logging.WARNING), limited_files(200):
        for step in range(10):
            trackers.log(step, {"loss": 0.5})
    assert len(trackers.problems) == 1
    assert trackers.problems[0].startswith("metrics.jsonl was switched off after OSError")
    trackers.close()
    whole = JsonlTracker(tmp_path / "metrics.jsonl", 100)
    whole.log(11, {})
    whole.close()
    assert len(_lines(tmp_path / "metrics.jsonl")) >= 3, "the torn line is gone, those before it are there"


def test_sinks_that_cannot_be_opened_are_named_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    (tmp_path / "tensorboard").write_bytes(b"a file, not a folder")
    trackers = open_trackers(tmp_path, TrackingConfig(), resume_step=3)
    trackers.log(1, {"loss": 1.0})
    trackers.close()
    assert [problem.split()[0] for problem in trackers.problems] == ["metrics.jsonl", "TensorBoard"]
