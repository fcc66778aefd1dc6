"""What the launcher remembers of a run's starts, and what it does next."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from rainspark.launch.launches import (
    LAUNCHES_FILE,
    NO_CHECKPOINT,
    Ended,
    Launches,
    crashes_in_a_row,
    decide,
    newest_step,
    next_attempt,
    outcome_of,
    warned_in_a_row,
)
from rainspark.models.weights.manifest import MANIFEST_NAME
from tests.checkpoints import make_checkpoint


def ended(code: int, *, told: bool = False, running: bool = True, nodes_out: tuple[str, ...] = ()) -> Ended:
    return Ended(code=code, detail="", told=told, running=running, nodes_out=nodes_out)


@pytest.mark.parametrize(
    ("end", "crashes", "outcome", "verdict"),
    [
        (ended(0), 0, "done", "end"),
        (ended(0, told=True), 0, "done", "end"),
        *[(ended(code, told=told), 0, "fault", "end") for code in (3, 4, 5, 6) for told in (False, True)],
        # All ranks have saved, whoever told them.
        (ended(75), 0, "stopped", "requeue"),
        (ended(75, told=True), 0, "stopped", "requeue"),
        # Cancelled, requeued or out of time: Slurm acts, and a cancelled job must not come back.
        (ended(75, told=True, running=False), 0, "stopped", "leave"),
        (ended(137, told=True, running=False), 0, "stopped", "leave"),
        (ended(1, running=False), 1, "taken", "leave"),
        # The signal came before the ranks listened to it.
        (ended(140, told=True), 0, "stopped", "requeue"),
        (ended(140), 1, "crash", "again"),
        # A crash while saving for a stop is one, and the allocation is about to go.
        (ended(1, told=True), 1, "crash", "requeue"),
        (ended(1, told=True), 3, "crash", "give up"),
        *[(ended(code), 1, "crash", "again") for code in (1, 2, 7, 130, 134, 137, 139, 143, 255)],
        (ended(1), 2, "crash", "again"),
        (ended(1), 3, "crash", "give up"),
        (ended(7), 4, "crash", "give up"),
        # Ranks that stall because a node went have not failed.
        (ended(7, nodes_out=("node1",)), 2, "taken", "again"),
        (ended(7, nodes_out=("node1",)), 3, "taken", "again"),
    ],
)
def test_what_follows_from_an_end(end: Ended, crashes: int, outcome: str, verdict: str) -> None:
    assert outcome_of(end) == outcome
    assert decide(end, crashes) == verdict


def test_a_job_that_slurm_ends_is_never_requeued_or_started_again() -> None:
    for code, told, count in itertools.product(range(256), (False, True), range(5)):
        assert decide(ended(code, told=told, running=False), count, count) in ("end", "leave")


@pytest.mark.parametrize(
    ("end", "warned", "verdict"),
    [
        (ended(75, told=True), 2, "requeue"),
        (ended(75, told=True), 3, "give up"),
        (ended(140, told=True), 3, "give up"),
        (ended(0, told=True), 3, "end"),
        (ended(1, told=True), 3, "requeue"),
    ],
)
def test_the_third_warning_without_progress_ends_the_job(end: Ended, warned: int, verdict: str) -> None:
    assert decide(end, 1, warned) == verdict


def write_starts(folder: Path, *starts: tuple[int, str | None], job: str = "7") -> list[dict[str, Any]]:
    """Record starts as (newest step at the start, outcome; "signal": told to stop and never heard of again)."""
    found = Launches(folder)
    for attempt, (step, outcome) in enumerate(starts, start=1):
        found.append("start", job=job, attempt=attempt, step=step)
        if outcome == "signal":
            found.append("signal", job=job, attempt=attempt, name="SIGTERM")
        elif outcome is not None:
            kind = "crash" if outcome == "give up" else outcome
            found.append("end", job=job, attempt=attempt, code=1, outcome=kind, step=step)
            found.append("verdict", job=job, attempt=attempt, verdict=outcome if outcome == "give up" else "again")
    return found.read(job)


@pytest.mark.parametrize(
    ("starts", "step", "counted"),
    [
        ([], NO_CHECKPOINT, []),
        ([(-1, "crash")], -1, [1]),
        ([(-1, "crash"), (-1, "crash"), (-1, "crash")], -1, [1, 2, 3]),
        # Something newer was saved by the last one, then by the second, then by the first.
        ([(-1, "crash"), (-1, "crash"), (-1, "crash")], 5, []),
        ([(-1, "crash"), (-1, "crash"), (5, "crash")], 5, [3]),
        ([(-1, "crash"), (5, "crash"), (5, "crash")], 5, [2, 3]),
        # Nobody recorded an end: the batch step was killed with its node.
        ([(5, None), (5, None), (5, None)], 5, [1, 2, 3]),
        # ... after Slurm had announced it.
        ([(5, "signal"), (5, "signal"), (5, "crash")], 5, [3]),
        ([(5, "crash"), (5, "stopped"), (5, "taken"), (5, "crash")], 5, [1, 4]),
        # A job that was given up and is requeued by hand has three more.
        ([(5, "crash"), (5, "crash"), (5, "give up"), (5, "crash")], 5, [4]),
        # A checkpoint was found damaged, and the one before it is gone on from.
        ([(8, "crash"), (8, "crash")], 4, [1, 2]),
    ],
)
def test_crashes_without_progress_are_counted(
    tmp_path: Path, starts: list[tuple[int, str | None]], step: int, counted: list[int]
) -> None:
    entries = write_starts(tmp_path, *starts)
    assert [crash["attempt"] for crash in crashes_in_a_row(entries, step)] == counted
    assert next_attempt(entries) == len(starts) + 1


def test_a_crash_that_follows_a_stop_signal_is_still_one(tmp_path: Path) -> None:
    found = Launches(tmp_path)
    found.append("start", job="7", attempt=1, step=5)
    found.append("signal", job="7", attempt=1, name="SIGUSR2")
    found.append("end", job="7", attempt=1, code=1, outcome="crash", step=5)
    assert len(crashes_in_a_row(found.read("7"), 5)) == 1


def test_ranks_that_never_save_in_time_stop_the_job_at_last(tmp_path: Path) -> None:
    found = Launches(tmp_path)
    for attempt in (1, 2, 3):
        found.append("start", job="7", attempt=attempt, step=5)
        found.append("signal", job="7", attempt=attempt, name="SIGUSR2")
        found.append("late", job="7", attempt=attempt)
        if attempt == 2:
            found.append("end", job="7", attempt=attempt, code=137, detail="node0, rank 0: Killed", outcome="stopped")
    row = crashes_in_a_row(found.read("7"), 5)
    assert [crash["detail"] for crash in row] == ["the ranks had not saved before the time limit"] * 3
    assert crashes_in_a_row(found.read("7"), 6) == []


@pytest.mark.parametrize(
    ("starts", "step", "counted"),
    [
        ([], -1, []),
        ([(-1, "stopped", 180)] * 3, -1, [1, 2, 3]),
        # Slurm warns up to a minute early.
        ([(-1, "stopped", 180), (-1, "stopped", 240), (-1, "stopped", 185)], -1, [1, 2, 3]),
        # One of them has saved: the last, the second, the first.
        ([(-1, "stopped", 180)] * 3, 4, []),
        ([(-1, "stopped", 180), (-1, "stopped", 180), (4, "stopped", 180)], 4, [3]),
        ([(-1, "stopped", 180), (4, "stopped", 180), (4, "stopped", 180)], 4, [2, 3]),
        # Preempted, or told by a user: no limit was near, or it was another time before it.
        ([(-1, "stopped", None)] * 3, -1, []),
        ([(-1, "stopped", 3000), (-1, "stopped", 1200), (-1, "stopped", 180)], -1, [3]),
        ([(-1, "stopped", 180), (-1, "stopped", None), (-1, "taken", None), (-1, "stopped", 180)], -1, [1, 4]),
        # Crashes are counted elsewhere.
        ([(-1, "stopped", 180), (-1, "crash", 180), (-1, "stopped", 180)], -1, [1, 3]),
        # A job that was given up and is requeued by hand has three more.
        ([(-1, "stopped", 180), (-1, "give up", 180), (-1, "stopped", 180)], -1, [3]),
    ],
)
def test_warnings_without_progress_are_counted(
    tmp_path: Path, starts: list[tuple[int, str, float | None]], step: int, counted: list[int]
) -> None:
    found = Launches(tmp_path)
    for attempt, (newest, outcome, left_s) in enumerate(starts, start=1):
        kind = "stopped" if outcome == "give up" else outcome
        found.append("start", job="7", attempt=attempt, step=newest)
        found.append("signal", job="7", attempt=attempt, name="SIGTERM" if left_s is None else "SIGUSR2")
        found.append("end", job="7", attempt=attempt, code=75, outcome=kind, step=step, left_s=left_s)
        found.append("verdict", job="7", attempt=attempt, verdict=outcome if outcome == "give up" else "requeue")
    assert [start["attempt"] for start in warned_in_a_row(found.read("7"), step)] == counted


def test_a_disk_that_takes_no_line_ends_no_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    found = Launches(folder)
    found.append("start", job="7", attempt=1, step=5)
    found.path.unlink()
    # A folder in its place: root, as which this may run, is refused nothing else.
    found.path.mkdir()
    found.append("start", job="7", attempt=2, step=5)
    assert "launches.jsonl: Is a directory" in caplog.text
    assert [entry["attempt"] for entry in found.read("7")] == [2]


def test_other_jobs_of_the_run_are_not_counted(tmp_path: Path) -> None:
    write_starts(tmp_path, (5, "crash"), (5, "crash"), job="6")
    assert Launches(tmp_path).read("7") == []
    assert len(crashes_in_a_row(write_starts(tmp_path, (5, "crash")), 5)) == 1


def test_lines_that_a_kill_has_torn_are_passed_over(tmp_path: Path) -> None:
    found = Launches(tmp_path)
    found.append("start", job="7", attempt=1, step=5)
    found.append("start", job="7", attempt=2, step=5)
    whole = found.path.read_bytes()
    expected = found.read("7")
    second = whole.index(b"\n") + 1
    for length in range(second, len(whole)):
        found.path.write_bytes(whole[:length])
        found.append("start", job="7", attempt=3, step=5)
        steps = [entry["attempt"] for entry in found.read("7")]
        assert steps == ([1, 2, 3] if length == len(whole) - 1 else [1, 3])
    found.path.write_bytes(b"\xff\xfe\n[1, 2]\nnull\n" + b"[" * 100_000 + b"\n" + whole)
    assert found.read("7") == expected


def test_a_run_without_a_folder_has_no_history(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    assert Launches(folder).read("7") == []
    assert newest_step(folder) == NO_CHECKPOINT
    assert not folder.exists()
    Launches(folder).append("start", job="7", attempt=1, step=NO_CHECKPOINT)
    assert [path.name for path in folder.iterdir()] == [LAUNCHES_FILE]


def test_progress_is_the_newest_checkpoint_that_looks_whole(tmp_path: Path) -> None:
    for step in (4, 8, 12, 16):
        newest = make_checkpoint(tmp_path, step)
    (newest / MANIFEST_NAME).unlink()
    assert newest_step(tmp_path) == 12
    (tmp_path / "checkpoints" / "step-00000012" / "model.safetensors").write_bytes(b"weigh")
    assert newest_step(tmp_path) == 8
    (tmp_path / "checkpoints" / ".saving-x").mkdir()
    (tmp_path / "checkpoints" / "best-00000020").mkdir()
    assert newest_step(tmp_path) == 8
