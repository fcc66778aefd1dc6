"""Record a run's starts in RUN/launches.jsonl, and decide what follows from them.

One JSON object a line, only ever appended: `start` (job, attempt, restart, step of the newest checkpoint), `signal`
(the batch step was told to stop), `late` (the ranks had not saved when the time limit came), `end` (exit code, outcome,
seconds that were left when the time limit's warning came) and `verdict`. A line that a kill has torn is passed over.
"""

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from ..data.exit_codes import ExitCode
from ..models.weights.manifest import CheckpointError, read_manifest, step_folders

LAUNCHES_FILE: Final = "launches.jsonl"
MAX_CRASHES: Final = 3
"""Crashes, or stops by the time limit's warning, in a row without a newer checkpoint that stop a job."""
OWN_FAULT: Final = (ExitCode.CONFIG, ExitCode.DATA, ExitCode.NONFINITE, ExitCode.CHECKPOINT)
"""Exit codes of settings, data, non-finite values and checkpoints: what another start would meet again."""
NO_CHECKPOINT: Final = -1
_SAME_WARNING_S: Final = 90.0
"""Slurm warns up to a minute sooner than it was asked to."""
_STOPPED_BY_SIGNAL: Final = tuple(128 + number for number in (2, 9, 10, 12, 15))
LOG = logging.getLogger(__name__)

Outcome = Literal["done", "fault", "stopped", "crash", "taken"]
Verdict = Literal["end", "requeue", "again", "give up", "leave"]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a start ended.

    Attributes:
        code: The first bad exit code of a rank, or srun's own.
        detail: Who ended with it, in srun's words.
        told: A stop signal had reached the batch step.
        running: Slurm counts the job as running: it was neither cancelled, nor requeued, nor has it lost a node.
        nodes_out: Nodes of the allocation that are down or do not answer.
    """

    code: int
    detail: str
    told: bool
    running: bool
    nodes_out: tuple[str, ...] = ()


def outcome_of(ended: Ended) -> Outcome:
    """Name what happened.

    A rank that a signal has ended before it listened to it was stopped, not broken; a rank that fell while its job or
    one of its nodes went has not failed either: Slurm has taken them.
    """
    if ended.code == ExitCode.DONE:
        return "done"
    if ended.code == ExitCode.REQUEUE or (ended.told and ended.code in _STOPPED_BY_SIGNAL):
        return "stopped"
    if not ended.running or ended.nodes_out:
        return "taken"
    return "fault" if ended.code in OWN_FAULT else "crash"


def decide(ended: Ended, crashes: int, warned: int = 0) -> Verdict:
    """Say what follows.

    Args:
        ended: How the start ended.
        crashes: Crashes in a row without a newer checkpoint, this one included.
        warned: Starts in a row that the time limit's warning stopped without a newer checkpoint, this one included.

    Returns:
        `end`: end the job with the code; `requeue`: have Slurm queue it again; `again`: start in this allocation, once
        it is whole; `give up`: end the job, with the reason; `leave`: Slurm acts itself.
    """
    outcome = outcome_of(ended)
    if outcome in ("done", "fault"):
        return "end"

    # A job that was cancelled must not come back, and one that lost a node is requeued by Slurm.
    if not ended.running:
        return "leave"
    if (outcome == "crash" and crashes >= MAX_CRASHES) or (outcome == "stopped" and warned >= MAX_CRASHES):
        return "give up"
    return "requeue" if ended.told or outcome == "stopped" else "again"


class Launches:
    """The starts of one run.

    Args:
        folder: The run's folder; made at the first line.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LAUNCHES_FILE
        self._unsaved: list[dict[str, Any]] = []

    def append(self, event: str, **values: Any) -> None:
        """Add a line and make it durable; a full disk costs the line, which this process remembers, and no job."""
        entry = {"event": event, "utc": datetime.now(UTC).isoformat(timespec="seconds"), **values}
        try:
            self._write(json.dumps(entry).encode())
        except OSError as error:
            LOG.warning("%s: %s; this job's starts are counted without it", self.path, error.strerror)
            self._unsaved.append(entry)

    def _write(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            # A line that a kill has torn is ended, so that this one stands by itself.
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            torn = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * torn + line + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self, job_id: str) -> list[dict[str, Any]]:
        """List the lines of one job, oldest first."""
        return [*self._saved(job_id), *self._unsaved]

    def _saved(self, job_id: str) -> list[dict[str, Any]]:
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            LOG.warning("%s: %s; this job's earlier starts are not counted", self.path, error.strerror)
            return []

        entries = []
        for line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and entry.get("job") == job_id:
                entries.append(entry)
        return entries


def next_attempt(entries: Iterable[dict[str, Any]]) -> int:
    """Number the job's next start, from 1."""
    return 1 + max((number for entry in entries if isinstance(number := entry.get("attempt"), int)), default=0)


def crashes_in_a_row(entries: Sequence[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """List a job's last crashes that nothing newer was saved after; oldest first.

    A start without an end is a crash, unless the batch step was told to stop: then it was Slurm that ended it. One
    whose ranks did not save in time is a crash too, or a job with too short a warning would be queued again for ever.
    What was stopped or taken in between counts neither as a crash nor as progress; a job that was given up counts anew.

    Args:
        entries: The job's lines, oldest first; all of its starts are over.
        step: Step of the newest checkpoint now.
    """
    row = [start for start in _without_progress(entries, step) if start["outcome"] == "crash" or "late" in start]
    return row[::-1]


def warned_in_a_row(entries: Sequence[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """List a job's last starts that the time limit's warning stopped before they had saved anything; oldest first.

    A job whose time limit leaves no time for training after the warning's seconds would be queued again for ever. The
    same signal of a preemption (`send_user_signal`) or of a user comes at any time before the limit, the warning always
    the same time before it; what else ended a start counts neither as such a stop nor as progress.

    Args:
        entries: The job's lines, oldest first; all of its starts are over.
        step: Step of the newest checkpoint now.
    """
    row: list[dict[str, Any]] = []
    for start in _without_progress(entries, step):
        left = start.get("left_s")
        # Only the warning tells how much time was left.
        if start["outcome"] == "crash" or not isinstance(left, int | float):
            continue
        if not row or abs(left - row[-1]["left_s"]) <= _SAME_WARNING_S:
            row.insert(0, start)
    return row


def _without_progress(entries: Sequence[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """List a job's starts since the newest checkpoint, or since it was ended or given up; newest first."""
    # Gather the lines of each start; without an end it has crashed, unless a signal came first.
    starts: dict[Any, dict[str, Any]] = {}
    order: list[dict[str, Any]] = []
    for entry in entries:
        number = entry.get("attempt")
        event = entry.get("event")
        if event == "start":
            starts[number] = {"outcome": "crash", "code": None, "detail": "no end was recorded", **entry}
            order.append(starts[number])
        elif event == "signal" and number in starts:
            starts[number]["outcome"] = "stopped"
        elif event == "late" and number in starts:
            starts[number] |= {"late": True, "detail": "the ranks had not saved before the time limit"}
        elif event in ("end", "verdict") and number in starts:
            kept = ("event", "step", "detail") if "late" in starts[number] else ("event", "step")
            starts[number] |= {key: value for key, value in entry.items() if key not in kept}

    # Back to the last start that ended the row: one that was followed by progress, or by a verdict that ends it.
    row: list[dict[str, Any]] = []
    for start in reversed(order):
        if start.get("verdict") in ("end", "give up"):
            break
        if not isinstance(start.get("step"), int) or start["step"] < step:
            break
        row.append(start)
    return row


def newest_step(folder: Path) -> int:
    """Find the step of a run's newest checkpoint that looks whole, by its manifest and sizes; NO_CHECKPOINT for none.

    A run whose folder is gone and whose checkpoints come from `run.checkpoint_url` has none until its ranks have
    fetched one. That counts as progress once, and costs a broken run three more starts at most.
    """
    try:
        folders = step_folders(folder / "checkpoints")
    except OSError:
        return NO_CHECKPOINT
    for step, path in folders:
        try:
            read_manifest(path)
        except (CheckpointError, OSError):
            continue
        return step
    return NO_CHECKPOINT
