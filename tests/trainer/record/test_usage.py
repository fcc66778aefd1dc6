"""The cost of a run's attempts, whatever ended them, and the summary of a finished run."""

import json
import time
from pathlib import Path

import pytest

from rainspark.trainer.record.announcements import RunFacts
from rainspark.trainer.record.summary import SUMMARY_FILE, Summary, finite_or_text, summary_lines
from rainspark.trainer.record.usage import Usage, write_json


def started(folder: Path, *, first_step: int = 0, ago_s: float = 0.0, processes: int = 4) -> Usage:
    facts = RunFacts(
        model="resnet18",
        num_parameters=1,
        device="cpu",
        processes=processes,
        started_s=time.monotonic() - ago_s,
        num_windows=1,
        num_held_out=0,
        steps_per_epoch=1,
        data={},
    )
    return Usage(folder, facts, first_step=first_step)


def test_hours_of_all_attempts_are_added_up(tmp_path: Path) -> None:
    started(tmp_path, ago_s=1800).end("stopped", 10)
    killed = started(tmp_path, first_step=10, ago_s=900, processes=2)
    killed.note_alive(12)
    last = started(tmp_path, first_step=10, ago_s=3600)
    last.end("done", 20)
    assert last.device_hours == pytest.approx(4 * 0.5 + 2 * 0.25 + 4 * 1, rel=1e-2)
    attempts = json.loads((tmp_path / "usage.json").read_text())
    assert [entry["outcome"] for entry in attempts] == ["stopped", "killed", "done"]
    assert [entry["first_step"] for entry in attempts] == [0, 10, 10]
    # Not written again within ten seconds: a kill loses what came since.
    assert [entry["last_step"] for entry in attempts] == [10, 10, 20]
    assert all(entry["started_utc"] <= entry["ended_utc"] for entry in attempts)
    assert "in 3 attempts (now 4 x cpu)" in last.describe()


def test_a_damaged_record_is_kept_beside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for content in ("{", '[{"outcome": "done"}]', '["x"]', "7", '[{"started_utc": 1}]'):
        (tmp_path / "usage.json").write_text(content)
        assert len(started(tmp_path).attempts) == 1
        assert (tmp_path / "usage.json.damaged").read_text() == content
    assert "device hours count from here" in caplog.text


def test_a_record_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    usage = started(tmp_path / "missing")
    usage.end("done", 1)
    assert "was not written" in caplog.text


def summary_of(usage: Usage) -> Summary:
    return {
        "model": "resnet18",
        "parameters": 11_300_000,
        "data": {"fingerprint": "ab" * 32, "source": "s", "licence": "l"},
        "steps": 20,
        "skipped_steps": 2,
        "metrics": finite_or_text({"loss": float("nan"), "held_out_loss": 0.5}),
        "device_hours": usage.device_hours,
        "trackers": ["W&B: 3 lines were dropped"],
    }


def test_a_summary_is_strict_json_and_says_what_matters(tmp_path: Path) -> None:
    usage = started(tmp_path, ago_s=3600)
    usage.end("done", 20)
    summary = summary_of(usage)
    write_json(tmp_path / SUMMARY_FILE, summary)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["metrics"] == {"loss": "nan", "held_out_loss": 0.5}
    assert written["data"]["fingerprint"] == "ab" * 32
    assert written["device_hours"] == pytest.approx(4, rel=1e-2)
    lines = summary_lines(summary, usage)
    assert lines["model"] == "resnet18, 11.3 million parameters"
    assert lines["skipped"] == "2 of 20 steps"
    assert lines["trackers"] == "W&B: 3 lines were dropped"
    assert "4 device hours in 1 attempt" in lines["cost"]
