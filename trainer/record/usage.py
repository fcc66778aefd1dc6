"""The cost of a run: its attempts, those that were killed too, and their device hours."""

import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from ...data.whole_file import write_whole
from .announcements import RunFacts

LOG = logging.getLogger(__name__)

USAGE_FILE: Final = "usage.json"
RUNNING: Final = "running"
KILLED: Final = "killed"
REWRITE_S: Final = 10.0
SECONDS_AN_HOUR: Final = 3600


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a run, to its end or to the last that is known of it.

    Attributes:
        started_utc: When its first process was there.
        ended_utc: When it ended; of one that was killed, when it was last known to be alive.
        processes: How many there were, one a device.
        device: What they computed on.
        device_hours: Hours from start to end, times the processes.
        first_step: Steps that were done when it started.
        last_step: Steps that were done when it ended.
        outcome: "done", "stopped", the cause that ended it ("config", "data", "nonfinite", "checkpoint", "stalled",
            "crash"), "killed" where it could note none, or "running".
    """

    started_utc: str
    ended_utc: str
    processes: int
    device: str
    device_hours: float
    first_step: int
    last_step: int
    outcome: str


_ATTEMPTS: Final = TypeAdapter(list[Attempt])


class Usage:
    """The attempts of a run, in a file of its folder; the main rank, which holds the folder, has one.

    Args:
        folder: Of the run.
        facts: What runs, on which devices, and since when.
        first_step: Steps that are done.
    """

    def __init__(self, folder: Path, facts: RunFacts, *, first_step: int) -> None:
        self._path = folder / USAGE_FILE
        self._started_s = facts.started_s
        self._written_s = -float("inf")
        now_s = time.time()

        # It began when this process started to wait for the others, before there was a run.
        self._now = Attempt(
            started_utc=_utc(now_s - (time.monotonic() - facts.started_s)),
            ended_utc=_utc(now_s),
            processes=facts.processes,
            device=facts.device,
            device_hours=0.0,
            first_step=first_step,
            last_step=first_step,
            outcome=RUNNING,
        )
        # An attempt that is still noted as running was killed: this one holds the folder.
        self._before = [
            replace(attempt, outcome=KILLED) if attempt.outcome == RUNNING else attempt for attempt in _read(self._path)
        ]
        self.note_alive(first_step)

    def note_alive(self, step: int) -> None:
        """Note how far the run has come; written every 10 seconds at most."""
        if time.monotonic() - self._written_s >= REWRITE_S:
            self._note(step, RUNNING)

    def end(self, outcome: str, step: int) -> None:
        """Note how this attempt ends, and after how many steps."""
        self._note(step, outcome)

    @property
    def attempts(self) -> Sequence[Attempt]:
        """All attempts, this one last."""
        return [*self._before, self._now]

    @property
    def device_hours(self) -> float:
        """Hours of all attempts."""
        return sum(attempt.device_hours for attempt in self.attempts)

    def describe(self) -> str:
        """Describe what the run has cost so far."""
        now = self._now
        count = len(self._before) + 1
        attempts = "1 attempt" if count == 1 else f"{count} attempts"
        return f"{self.device_hours:.3g} device hours in {attempts} (now {now.processes} x {now.device})"

    def _note(self, step: int, outcome: str) -> None:
        spent_h = (time.monotonic() - self._started_s) / SECONDS_AN_HOUR
        self._now = replace(
            self._now,
            ended_utc=_utc(time.time()),
            device_hours=round(self._now.processes * spent_h, 6),
            last_step=max(step, self._now.first_step),
            outcome=outcome,
        )
        self._written_s = time.monotonic()
        write_json(self._path, [asdict(attempt) for attempt in self.attempts])


def _read(path: Path) -> list[Attempt]:
    """Read the attempts so far; a file that is damaged is kept beside, and counting starts anew."""
    if not path.exists():
        return []
    try:
        return _ATTEMPTS.validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        aside = path.with_name(f"{path.name}.damaged")
        LOG.warning("%s cannot be read (%s): kept as %s; device hours count from here", path, error, aside.name)
        with suppress(OSError):
            path.replace(aside)
        return []


def write_json(path: Path, content: object) -> None:
    """Write a file whole, so that a kill leaves the one before; what a run notes of itself is no reason to end it."""
    try:
        write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        LOG.warning("%s was not written: %s", path, error)


def _utc(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
