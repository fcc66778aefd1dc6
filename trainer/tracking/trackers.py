"""Send the metrics of a run to a JSONL file, to TensorBoard, and to services by name. No sink can stop a run."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...data.whole_file import write_whole
from ..settings.tracking import TrackingConfig
from .ids import RunIds, ServiceRun
from .queued import QueuedTracker, Tracker, describe
from .services import SERVICES, prepare

METRICS_FILE: Final = "metrics.jsonl"
TENSORBOARD_FOLDER: Final = "tensorboard"
NO_JSON_NUMBERS: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}

_logger = logging.getLogger(__name__)


class JsonlTracker:
    """One JSON object a line: `step`, `time_s` (seconds since 1970, UTC) and `metrics`, or `image` for a picture.

    Strict JSON: NaN and the infinities are the strings "NaN", "Infinity" and "-Infinity".
    """

    name = METRICS_FILE

    def __init__(self, path: Path, resume_step: int | None) -> None:
        """Open the file for appending.

        Args:
            path: Of the file.
            resume_step: The step that the run goes on from; later lines are cut. None: a new run, all lines are.

        Raises:
            OSError: The file cannot be read or written.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _cut_after(path, resume_step)
        self._file = path.open("ab", buffering=0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of a step."""
        numbers = {key: float(value) for key, value in metrics.items()}
        self._append(step, "metrics", {key: NO_JSON_NUMBERS.get(str(value), value) for key, value in numbers.items()})

    def image(self, step: int, name: str, path: Path) -> None:
        """Append where a picture lies, relative to the file's folder when it lies below it."""
        folder = self.path.parent
        shown = path.relative_to(folder) if path.is_relative_to(folder) else path
        self._append(step, "image", {"name": name, "path": shown.as_posix()})

    def close(self) -> None:
        """Make all lines durable."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def _append(self, step: int, kind: str, content: dict[str, Any]) -> None:
        # A line in one write: a kill leaves whole lines and at most one torn.
        record = {"step": step, "time_s": round(time.time(), 3), kind: content}
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        # A disk that fills takes part of a line without an error; the next write would glue another to it.
        if (written := self._file.write(line)) != len(line):
            raise OSError(f"{self.path}: only {written} of {len(line)} bytes of a line were written; the disk is full")


class TensorBoardTracker:
    """Event files for TensorBoard.

    Written by who logs, like `metrics.jsonl`: they lie in the folder of the checkpoints, and a file system that hangs
    there stops the run at its next save anyway.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, resume_step: int | None) -> None:
        """Open a new event file.

        Args:
            folder: Of the event files.
            resume_step: The step that the run goes on from; TensorBoard leaves out earlier files' later steps.
        """
        # Imported where it is used: it takes a second, and a machine without it still trains.
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=None if resume_step is None else resume_step + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one point a metric."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, float(value), step)

    def image(self, step: int, name: str, path: Path) -> None:
        """Write a picture."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Write out all points."""
        self._writer.close()


class Trackers:
    """Hands everything to several sinks; one that fails is switched off with one warning, and the run goes on.

    Attributes:
        problems: What is not complete and why, for the summary at the end of the run; whole once all are closed.
    """

    def __init__(self, sinks: Sequence[Tracker], *, close_s: float = 0.0) -> None:
        """Take the sinks, in the order in which they are served.

        Args:
            sinks: Local ones, which take at once what they are given.
            close_s: Seconds that the services have to close.
        """
        self.problems: list[str] = []
        self._sinks = list(sinks)
        self._close_s = close_s
        self._closing = False

    def open(self, name: str, build: Callable[[], Tracker]) -> None:
        """Add a sink; one that cannot be built counts as failed."""
        try:
            self._sinks.append(build())
        except Exception as error:
            self._report(f"{name} was switched off after {describe(error)}")

    def open_service(self, name: str, build: Callable[[], Tracker]) -> None:
        """Add a sink that may be slow or hang, behind a queue and a thread; it is built there too."""
        self._sinks.append(QueuedTracker(name, build, self._report))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand the metrics of a global step to every sink."""
        self._each(lambda sink: sink.log(step, metrics))

    def image(self, step: int, name: str, path: Path) -> None:
        """Hand a picture to every sink."""
        self._each(lambda sink: sink.image(step, name, path))

    def close(self) -> None:
        """Close every sink, wait a limited time for services, and warn of what is not complete; once."""
        if self._closing:
            return
        self._closing = True
        self._each(lambda sink: sink.close())

        # All services together have one limit.
        end = time.monotonic() + self._close_s
        for sink in self._sinks:
            if isinstance(sink, QueuedTracker):
                sink.wait(end - time.monotonic())
        self._sinks = []
        for problem in self.problems:
            _logger.warning("Not complete: %s", problem)

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for sink in tuple(self._sinks):
            try:
                action(sink)
            except Exception as error:
                self._sinks.remove(sink)
                self._report(f"{sink.name} was switched off after {describe(error)}")

    def _report(self, problem: str) -> None:
        self.problems.append(problem)
        # At the end all are listed, and nothing goes on.
        if not self._closing:
            _logger.warning("%s. The run goes on without it.", problem)


def open_trackers(
    run_folder: Path, config: TrackingConfig, *, resume_step: int | None, parameters: Mapping[str, Any] | None = None
) -> Trackers:
    """Open the sinks of a run. Rank 0 calls this, and no other rank.

    Args:
        run_folder: Of the run.
        config: Which sinks there are besides `metrics.jsonl`.
        resume_step: The step that the run goes on from, 0 or None for a new run.
        parameters: The run's configuration, nested by section, which services get without what looks like a secret.
    """
    trackers = Trackers([], close_s=config.close_s)
    trackers.open(JsonlTracker.name, lambda: JsonlTracker(run_folder / METRICS_FILE, resume_step))
    if config.tensorboard:
        trackers.open(TensorBoardTracker.name, lambda: TensorBoardTracker(run_folder / TENSORBOARD_FOLDER, resume_step))

    if config.services:
        folder = run_folder.absolute()
        run = ServiceRun(
            folder=folder,
            project=config.project,
            name=config.run_name or re.sub(r"[^A-Za-z0-9._-]", "_", folder.name)[:100] or "run",
            parameters=parameters or {},
            ids=RunIds(run_folder, resumed=bool(resume_step)),
            close_s=config.close_s,
        )
        for name in config.services:
            trackers.open_service(SERVICES[name].name, prepare(name, run))
    return trackers


def _cut_after(path: Path, step: int | None) -> None:
    """Rewrite the file with the lines up to a step; a torn or foreign line goes too."""
    # Steps after the checkpoint are computed again, and would stand twice.
    lines = path.read_bytes().splitlines(keepends=True)
    steps = [_step_of(line) for line in lines]
    if num_foreign := steps.count(None):
        _logger.warning("%s: %d lines were torn or not metrics and are cut", path, num_foreign)
    last = -1 if step is None else step
    kept = [line for line, number in zip(lines, steps, strict=True) if number is not None and number <= last]
    write_whole(path, b"".join(kept))


def _step_of(line: bytes) -> int | None:
    """Read the step of a line; None where it is torn or of another kind."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else None
    except (ValueError, TypeError, KeyError):
        return None
