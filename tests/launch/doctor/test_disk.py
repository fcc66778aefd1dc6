"""Where a run writes: every check fails on a place that really is wrong, and leaves nothing behind."""

import json
import subprocess
from pathlib import Path

import pytest

from rainspark.data.exit_codes import ExitCode
from rainspark.launch.doctor.__main__ import LEAD_S
from rainspark.launch.doctor.disk import (
    check_folder,
    check_lead_time,
    check_space,
    last_measured,
    num_kept,
    time_save,
)
from rainspark.launch.doctor.findings import MIB
from rainspark.launch.doctor.machine import check_clock
from tests.disks import small_disk
from tests.launch.doctor.cases import failure, job_of, levels

REPOSITORY = Path(__file__).resolve().parents[3]


def test_a_good_folder_is_left_as_it_was(tmp_path: Path) -> None:
    job = job_of(tmp_path, tmp_path / "not" / "yet")
    assert levels(check_folder(job)) == ["ok"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    found = failure(check_folder(job_of(tmp_path, tmp_path / "run")))
    assert (found.code, "is a file" in found.found) == (ExitCode.CONFIG, True)
    below = failure(check_folder(job_of(tmp_path, tmp_path / "run" / "one")))
    assert "would lie in it" in below.found
    inside = job_of(tmp_path, tmp_path / "run" / "one")
    assert [finding.found for finding in check_lead_time(inside, MIB)] == ["not checked: run.dir cannot be written"]


def test_a_name_that_no_disk_takes(tmp_path: Path) -> None:
    found = failure(check_folder(job_of(tmp_path, tmp_path / ("x" * 300))))
    assert (found.code, "name too long" in found.found) == (ExitCode.CHECKPOINT, True)


def test_a_read_only_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        found = failure(check_folder(job_of(tmp_path, disk / "run")))
        others = [*check_lead_time(job_of(tmp_path, disk / "run"), MIB), *check_clock(disk / "run")]
    assert found.code == ExitCode.CHECKPOINT
    assert [str(other)[:6] for other in others] == ["warn  "] * 2
    assert {other.found for other in others} == {"not checked: run.dir cannot be written"}
    assert "Read-only file system" in found.found
    assert "choose another run.dir" in found.advice


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=1m") as disk:
        (disk / "fill").write_bytes(b"x" * MIB)
        job = job_of(tmp_path, disk / "run")
        full = failure(check_folder(job))
        with pytest.raises(OSError, match="No space left"):
            time_save(disk, 2 * MIB)
        assert sorted(path.name for path in disk.iterdir()) == ["fill"]
    assert full.code == ExitCode.CHECKPOINT
    assert "No space left" in full.found


def test_too_little_space(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8m") as disk:
        too_full = failure(check_space(job_of(tmp_path, disk / "run"), 4 * MIB))
        assert "5 checkpoints of 4 MiB" in too_full.expected
        assert levels(check_space(job_of(tmp_path, tmp_path / "run"), 4 * MIB)) == ["ok"]


def test_checkpoints_that_stay_for_ever_are_counted(tmp_path: Path) -> None:
    job = job_of(tmp_path, tmp_path, run__steps=1000, run__save_every=100, run__keep_every=200, run__keep_last=3)
    assert num_kept(job) == 3 + 2 + 5


def test_a_lead_time_that_is_too_short(tmp_path: Path) -> None:
    found = failure(check_lead_time(job_of(tmp_path, tmp_path / "run", job__lead_s=1e-6), 16 * MIB))
    assert found.code == ExitCode.CHECKPOINT
    assert "tried here" in found.found
    assert "--signal=B:USR2@60" in found.advice
    assert levels(check_lead_time(job_of(tmp_path, tmp_path / "run", job__lead_s=600), MIB)) == ["ok"]


def test_a_save_that_a_run_has_measured_counts(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "metrics": {"save/write_s": 1.0, "save/gather_s": 1.0}},
        {"step": 2, "metrics": {"save/write_s": 100.0, "save/gather_s": 5.0}},
        {"step": 3, "metrics": {"step_time_s": 10.0, "loss": 0.5}},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 4, "metr'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert last_measured(tmp_path)["save/write_s"] == 100.0
    found = check_lead_time(job_of(tmp_path, tmp_path, job__lead_s=180), MIB)
    assert levels(found) == ["warn"]
    assert found[0].found.startswith("125.0 s from the signal to the end: save 105.0 s (measured by this run)")
    copied = check_lead_time(job_of(tmp_path, tmp_path, run__checkpoint_url=tmp_path / "copy"), MIB)
    assert "copy up to 60 s" in failure(copied).found
    tracked = job_of(tmp_path, tmp_path, tracking__services='["mlflow"]', tracking__close_s=100)
    assert "225.0 s" in failure(check_lead_time(tracked, MIB)).found


def test_the_lead_time_is_that_of_the_batch_script() -> None:
    script = (REPOSITORY / "launch" / "multinode.sh").read_text()
    assert f"#SBATCH --signal=B:USR2@{LEAD_S:g}" in script
