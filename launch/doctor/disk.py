"""Check where a run writes: may it, is there room, do the operations of a save work, and how long does one take."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ...data.exit_codes import ExitCode
from ...data.whole_file import make_durable
from .findings import GIB, MIB, Finding, Job, checked, fail, ok, warn

MAX_TRIAL_BYTES: Final = 2 * GIB
"""A save is tried with so much at most, and taken to grow in proportion."""
EARLY_S: Final = 60
"""Slurm may send the signal up to so many seconds before the time asked for (sbatch, --signal), never after."""
_BLOCK_BYTES: Final = 8 * MIB


def nearest(folder: Path) -> Path:
    """Find a folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


@checked("run.dir", ExitCode.CHECKPOINT)
def check_folder(job: Job) -> Iterator[Finding]:
    """Try every operation of a save in the run's folder, or in the one that it would be made in."""
    folder = Path(job.config.run.dir)
    above = nearest(folder)
    if not above.is_dir():
        text = f"{above} is a file" + ("" if above == folder.absolute() else f", and {folder} would lie in it")
        expected = "the folder of the run"
        yield fail("run.dir", text, ExitCode.CONFIG, expected=expected, advice="choose another run.dir")
        return

    try:
        time_save(above, 1)
    except OSError as error:
        text = f"{above}: write, fsync, rename: {error.strerror or error}"
        expected = "a folder where a save's operations work"
        advice = "check permissions, mount and quota, or choose another run.dir"
        yield fail("run.dir", text, ExitCode.CHECKPOINT, expected=expected, advice=advice)
    else:
        yield ok("run.dir", f"{above}: write, fsync and rename work")


def num_kept(job: Job) -> int:
    """Count the checkpoints that stand in a run's folder at its worst moment: kept ones, a new one, one aside."""
    run = job.config.run
    return run.keep_last + 2 + (run.steps // run.keep_every if run.keep_every else 0)


@checked("space", ExitCode.CHECKPOINT, writes=True)
def check_space(job: Job, checkpoint_bytes: int) -> Iterator[Finding]:
    """Compare free space with what the checkpoints will take."""
    folder = nearest(Path(job.config.run.dir))
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    count = num_kept(job)
    needed = count * checkpoint_bytes
    text = f"{count} checkpoints of {checkpoint_bytes / MIB:.0f} MiB: {needed / GIB:.2f} GiB"
    if free >= needed:
        yield ok("space", f"{folder}: {free / GIB:.2f} GiB free, {text}")
    else:
        advice = "free space, lower run.keep_last, raise run.keep_every, or choose another run.dir"
        there = f"{folder}: {free / GIB:.2f} GiB free"
        yield fail("space", there, ExitCode.CHECKPOINT, expected=text, advice=advice)


def last_measured(folder: Path) -> dict[str, float]:
    """Read the newest figure of each metric that a run has written; torn or foreign lines are passed over."""
    figures: dict[str, float] = {}
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return figures
    for line in lines:
        try:
            document: Any = json.loads(line)
        except ValueError:
            continue
        metrics = document.get("metrics") if isinstance(document, dict) else None
        if isinstance(metrics, dict):
            figures |= {str(name): float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    return figures


def time_save(folder: Path, checkpoint_bytes: int) -> float:
    """Write, fsync, rename, read back and hash as many bytes as a checkpoint has; seconds.

    Raises:
        OSError: It does not work, or there is no room.
    """
    num_bytes = min(max(checkpoint_bytes, 1), MAX_TRIAL_BYTES)
    # Random: file systems that compress or leave holes would be faster than they are.
    block = os.urandom(min(_BLOCK_BYTES, num_bytes))
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder, ignore_cleanup_errors=True) as name:
        trial = Path(name)
        # What a save does, in its order: a folder beside, files, fsync, a rename, fsync of the folder.
        began = time.monotonic()
        inside = trial / "saving"
        inside.mkdir()
        with (inside / "file").open("wb") as file:
            left = num_bytes
            while left:
                left -= file.write(block[:left])
        make_durable(inside / "file")
        make_durable(inside)
        inside.rename(trial / "saved")
        make_durable(trial)

        # Twice: the manifest's digest, and the proof that what was written is there.
        for _ in range(2):
            with (trial / "saved" / "file").open("rb") as file:
                hashlib.file_digest(file, "sha256")
        return (time.monotonic() - began) * checkpoint_bytes / num_bytes


@checked("signal lead time", ExitCode.CHECKPOINT, writes=True)
def check_lead_time(job: Job, checkpoint_bytes: int) -> Iterator[Finding]:
    """Compare the warning before the time limit with what a stop takes: steps, save, copy, services."""
    run = job.config.run
    measured = last_measured(Path(run.dir))

    # Services are waited for after the save, a copy beside it.
    push_s = run.push_deadline_s if run.checkpoint_url is not None else 0.0
    close_s = job.config.tracking.close_s if job.config.tracking.services else 0.0
    step_s = measured.get("step_time_s")
    if "save/write_s" in measured:
        save_s = measured["save/write_s"] + measured.get("save/gather_s", 0.0)
        origin = "measured by this run"
    else:
        save_s = time_save(nearest(Path(run.dir)), checkpoint_bytes)
        origin = "tried here, without gathering from the ranks"

    total_s = save_s + push_s + close_s + 2 * (step_s or 0.0)
    summands = [
        f"save {save_s:.1f} s ({origin})",
        "steps not measured yet" if step_s is None else f"two steps {2 * step_s:.1f} s",
        f"copy up to {push_s:g} s" if push_s else "",
        f"tracking.close_s up to {close_s:g} s" if close_s else "",
    ]
    text = f"{total_s:.1f} s from the signal to the end: {', '.join(filter(None, summands))}"
    early = f"the signal comes {job.lead_s:g} s before the limit, or up to {EARLY_S} s earlier, never later"
    longer = max(60, 2 * int(total_s + 1))
    advice = f"ask for a longer one (sbatch --signal=B:USR2@{longer}, rainspark submit --signal-s {longer})"

    # Half of the warning is kept for a slower disk than today's, and for the signal's own delay.
    if total_s > job.lead_s:
        advice += ", or lower run.push_deadline_s" if push_s else ""
        expected = f"below {job.lead_s:g} s: {early}"
        yield fail("signal lead time", text, ExitCode.CHECKPOINT, expected=expected, advice=advice)
    elif total_s > job.lead_s / 2:
        yield warn("signal lead time", text, expected=f"below half of {job.lead_s:g} s: {early}", advice=advice)
    else:
        yield ok("signal lead time", f"{text}; {early}")
