"""Checks of where a run writes: may it, is there room, do the operations of a save work, and how long does one take."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ...data.whole_file import make_durable, write_whole
from .findings import CHECKPOINT, GIB, MIB, SETTINGS, Finding, Job, fail, guarded, ok, warn

CHECKPOINT_FILES: Final = 5
MAX_TRIAL_BYTES: Final = 2 * GIB
"""A save is tried with so much at most, and taken to grow in proportion."""
EARLY_S: Final = 60
"""Slurm may send the signal up to so many seconds before the time asked for (sbatch, --signal), never after."""
_BLOCK: Final = 8 * MIB
_NO_PLACE: Final = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG)
"""What a folder says that nothing can be written to; `check_folder` has failed there."""


def nearest(folder: Path) -> Path:
    """Find a folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


@contextmanager
def _trial(folder: Path) -> Iterator[Path]:
    """Make a folder to try things in, and leave nothing of it."""
    path = Path(tempfile.mkdtemp(prefix=".doctor-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def write_once(folder: Path) -> None:
    """Write a file durably and remove it.

    Raises:
        OSError: Something of that does not work.
    """
    with _trial(folder) as trial:
        write_whole(trial / "file", b"rainspark")


def guarded_writing(what: str, code: int, work: Callable[[], list[Finding]]) -> list[Finding]:
    """Do a check that writes to the run's folder; where nothing can be written, that is one failure and not several.

    Args:
        what: What is looked at.
        code: Exit code of any other failure.
        work: The check.
    """

    def look() -> list[Finding]:
        try:
            return work()
        except OSError as error:
            if error.errno not in _NO_PLACE:
                raise
            return [warn(what, "not checked: run.dir cannot be written")]

    return guarded(what, code, look)


def check_folder(job: Job) -> list[Finding]:
    """Try every operation of a save in the run's folder, or in the one that it would be made in."""
    return guarded("run.dir", CHECKPOINT, lambda: _try_folder(job))


def _try_folder(job: Job) -> list[Finding]:
    folder = Path(job.config.run.dir)
    if folder.exists() and not folder.is_dir():
        return [
            fail(
                "run.dir",
                f"{folder} is a file",
                SETTINGS,
                expected="the folder of the run",
                advice="choose another name",
            )
        ]
    place = nearest(folder)
    if not place.is_dir():
        return [
            fail(
                "run.dir",
                f"{place} is a file, and {folder} would lie in it",
                SETTINGS,
                expected="a folder",
                advice="choose another run.dir",
            )
        ]
    for name, operation in (("write, fsync, rename", _rename), ("flock", _lock)):
        try:
            with _trial(place) as trial:
                operation(trial)
        except OSError as error:
            return [
                fail(
                    "run.dir",
                    f"{place}: {name}: {error.strerror or error}",
                    CHECKPOINT,
                    expected="a folder where a save's operations work",
                    advice="check permissions, mount and quota, or choose another run.dir",
                )
            ]
    return [ok("run.dir", f"{place}: write, fsync, rename and flock work"), *_held(folder)]


def _rename(trial: Path) -> None:
    inside = trial / "saving"
    inside.mkdir()
    write_whole(inside / "file", b"rainspark")
    inside.rename(trial / "saved")
    make_durable(trial)
    if (trial / "saved" / "file").read_bytes() != b"rainspark":
        raise OSError("a renamed file is not what was written")


def _lock(trial: Path) -> None:
    with (trial / "lock").open("w") as first, (trial / "lock").open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise OSError("a second lock on a locked file was granted: two runs in one folder would not see each other")


def _held(folder: Path) -> list[Finding]:
    """Look whether another run holds the folder now."""
    path = folder / ".lock"
    if not path.exists():
        return []
    with path.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return [
                warn(
                    "run.dir",
                    f"{folder}: another run is at work there",
                    expected="nobody",
                    advice="wait until it has ended, or choose another run.dir",
                )
            ]
    return []


def num_kept(job: Job) -> int:
    """Count the checkpoints that stand in a run's folder at its worst moment: kept ones, a new one, one aside."""
    run = job.config.run
    return run.keep_last + 2 + (run.steps // run.keep_every if run.keep_every else 0)


def check_space(job: Job, checkpoint_bytes: int) -> list[Finding]:
    """Compare free space and inodes with what the checkpoints will take."""
    place = nearest(Path(job.config.run.dir))
    disk, count = os.statvfs(place), num_kept(job)
    free, needed = disk.f_bavail * disk.f_frsize, count * checkpoint_bytes
    text = f"{count} checkpoints of {checkpoint_bytes / MIB:.0f} MiB: {needed / GIB:.2f} GiB"
    advice = "free space, lower run.keep_last, raise run.keep_every, or choose another run.dir"
    found = []
    if free < needed:
        found.append(fail("space", f"{place}: {free / GIB:.2f} GiB free", CHECKPOINT, expected=text, advice=advice))
    else:
        found.append(ok("space", f"{place}: {free / GIB:.2f} GiB free, {text}"))
    files = count * (CHECKPOINT_FILES + 1)
    # Some file systems make inodes as they go, and say 0.
    if disk.f_files and disk.f_favail < files:
        found.append(
            fail("inodes", f"{place}: {disk.f_favail} free", CHECKPOINT, expected=f"{files} or more", advice=advice)
        )
    return found


def last_measured(folder: Path) -> dict[str, float]:
    """Read the newest figure of each metric that a run has written; torn or foreign lines are passed over."""
    found: dict[str, float] = {}
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            document: Any = json.loads(line)
        except ValueError:
            continue
        figures = document.get("metrics") if isinstance(document, dict) else None
        if isinstance(figures, dict):
            found |= {str(name): float(value) for name, value in figures.items() if isinstance(value, int | float)}
    return found


def time_save(place: Path, checkpoint_bytes: int) -> float:
    """Write, fsync, rename, read back and hash as many bytes as a checkpoint has; seconds.

    Raises:
        OSError: It does not work, or there is no room.
    """
    tried = min(max(checkpoint_bytes, 1), MAX_TRIAL_BYTES)
    # Random: file systems that compress or leave holes would be faster than they are.
    block = os.urandom(min(_BLOCK, tried))
    with _trial(place) as trial:
        began = time.monotonic()
        inside = trial / "saving"
        inside.mkdir()
        with (inside / "file").open("wb") as file:
            left = tried
            while left:
                left -= file.write(block[:left])
        make_durable(inside / "file")
        make_durable(inside)
        inside.rename(trial / "saved")
        make_durable(trial)
        # The manifest's digest, and the proof that what was written is there.
        for _ in range(2):
            digest = hashlib.sha256()
            with (trial / "saved" / "file").open("rb") as file:
                while data := file.read(_BLOCK):
                    digest.update(data)
        return (time.monotonic() - began) * checkpoint_bytes / tried


def lead_time_s(script: Path) -> float | None:
    """Read the seconds between warning and end from a batch script's `#SBATCH --signal=...@SECONDS`."""
    try:
        text = script.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^#SBATCH\s+--signal=\S*@(\d+)", text, re.MULTILINE)
    return float(found.group(1)) if found else None


def check_lead_time(job: Job, checkpoint_bytes: int) -> list[Finding]:
    """Compare the warning before the time limit with what a stop takes: steps, save, copy, services."""
    run = job.config.run
    folder = Path(run.dir)

    def look() -> list[Finding]:
        measured = last_measured(folder)
        save_s = measured.get("save/write_s")
        origin = "measured by this run" if save_s is not None else "tried here, without gathering from the ranks"
        if save_s is None:
            save_s = time_save(nearest(folder), checkpoint_bytes)
        else:
            save_s += measured.get("save/gather_s", 0.0)
        step_s = measured.get("step_time_s")
        push_s = run.push_deadline_s if run.checkpoint_url is not None else 0.0
        # Services are waited for after the save.
        close_s = job.config.tracking.close_s if job.config.tracking.services else 0.0
        total_s = save_s + push_s + close_s + 2 * (step_s or 0.0)
        parts = f"save {save_s:.1f} s ({origin})"
        parts += ", steps not measured yet" if step_s is None else f", two steps {2 * step_s:.1f} s"
        parts += f", copy up to {push_s:g} s" if push_s else ""
        parts += f", tracking.close_s up to {close_s:g} s" if close_s else ""
        text = f"{total_s:.1f} s from the signal to the end: {parts}"
        early = f"the signal comes {job.lead_s:g} s before the limit, or up to {EARLY_S} s earlier, never later"
        longer = max(60, 2 * int(total_s + 1))
        advice = f"ask for a longer one (sbatch --signal=B:USR2@{longer}, launch.submit --signal-s {longer})"
        if total_s > job.lead_s:
            advice += ", or lower run.push_deadline_s" if push_s else ""
            return [
                fail("signal lead time", text, CHECKPOINT, expected=f"below {job.lead_s:g} s: {early}", advice=advice)
            ]
        if total_s > job.lead_s / 2:
            return [warn("signal lead time", text, expected=f"below half of {job.lead_s:g} s: {early}", advice=advice)]
        return [ok("signal lead time", f"{text}; {early}")]

    return guarded_writing("signal lead time", CHECKPOINT, look)
