"""The record of a run while it lasts: its folder is held, its figures are shown, tracked and counted to its end."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO

from ...data.exit_codes import ExitCode
from ..processes.ending import write_output
from ..settings.experiment import TrainingConfig
from ..settings.parse import as_dict, as_yaml
from ..tracking.trackers import Trackers, open_trackers
from .announcements import RunFacts
from .folder import hold, writing
from .progress import Progress
from .summary import SUMMARY_FILE, finite_or_text, summary_lines
from .usage import Usage, write_json


class RunRecord:
    """Keeps what a run leaves besides its checkpoints; every rank has one, and the main rank's alone is opened.

    Args:
        config: The run.
        facts: What it is.
        first_step: Steps that are done.
        is_main: Whether this is the main rank.

    Attributes:
        usage: Attempts and their cost; None until the folder is held.
    """

    def __init__(self, config: TrainingConfig, facts: RunFacts, first_step: int, *, is_main: bool) -> None:
        self.config = config
        self.facts = facts
        self.folder = Path(config.run.dir)
        self.progress = Progress(config.run, enabled=is_main)
        self.usage: Usage | None = None
        self._first_step = first_step
        self._last_step = first_step
        self._latest: dict[str, float] = {}
        self._lock: IO[str] | None = None
        self._trackers: Trackers | None = None

    def hold_folder(self) -> None:
        """Make the run's folder, hold it, write the settings into it and begin to count its cost."""
        self._lock = hold(self.folder)
        with writing(self.folder):
            (self.folder / "config.yaml").write_text(as_yaml(self.config), encoding="utf-8")
        self.usage = Usage(self.folder, self.facts, first_step=self._first_step)

    def open_trackers(self) -> None:
        """Open where the metrics go."""
        self._trackers = open_trackers(
            self.folder, self.config.tracking, resume_step=self._first_step, parameters=as_dict(self.config)
        )

    def log(self, finished: int, metrics: dict[str, float]) -> None:
        """Show, track and count the figures of a finished step."""
        self._last_step = max(self._last_step, finished)
        # Of the figures by step the summary keeps the last; times and memory are of no use there.
        self._latest |= {name: value for name, value in metrics.items() if "/" not in name}
        if self.usage is not None:
            self.usage.note_alive(finished)
        self.progress.show(finished, metrics)
        if self._trackers is not None:
            self._trackers.log(finished, metrics)

    def add_picture(self, finished: int, name: str, path: Path) -> None:
        """Track a picture where it was drawn."""
        if self._trackers is not None and path.exists():
            self._trackers.image(finished, name, path)

    def close(self, outcome: str) -> None:
        """Write out what is held back, and release the folder."""
        if self.usage is not None:
            self.usage.end(outcome, self.config.run.steps if outcome == "done" else self._last_step)
        if self._trackers is not None:
            self._trackers.close()
        if self._lock is not None:
            self._lock.close()

    def close_stalled(self, code: int) -> None:
        """Write out what can be, from a thread that ends this process in a moment."""
        self.close(ExitCode(code).name.lower())

    def announce_end(self, *, skipped_steps: int, versions: dict[str, str], places: Mapping[str, str]) -> None:
        """Write the summary of a finished run, unless nothing was left to do, and print it with the places to look."""
        # A run that was asked for fewer steps than it has done keeps those.
        steps = max(self._first_step, self.config.run.steps)
        lines: dict[str, str] = {}
        if self.usage is not None:
            facts = self.facts
            summary = {
                "model": facts.model,
                "parameters": facts.num_parameters,
                "data": {key: facts.data[key] for key in ("fingerprint", "source", "licence")},
                "steps": steps,
                "skipped_steps": skipped_steps,
                "metrics": finite_or_text(self._latest),
                "device_hours": round(self.usage.device_hours, 6),
                "attempts": len(self.usage.attempts),
                "versions": versions,
                "trackers": [] if self._trackers is None else list(self._trackers.problems),
            }
            write_json(self.folder / SUMMARY_FILE, summary)
            lines = summary_lines(summary, self.usage)

        rows = [f"  {name:<12} {text}\n" for name, text in {**lines, **places}.items()]
        write_output(f"done: {steps} steps\n" + "".join(rows))
