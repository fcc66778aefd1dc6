"""Describe a run to the services that track it: names, configuration, and the ids under which they keep it."""

import json
import logging
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...data.credentials import redact
from ...data.whole_file import write_whole
from ..settings.experiment import flatten

IDS_FILE: Final = "trackers.json"

_logger = logging.getLogger(__name__)


class RunIds:
    """Under which ids the services keep a run: a resumed run goes on in the same ones.

    Attributes:
        resumed: Whether the run goes on from a checkpoint.
    """

    def __init__(self, folder: Path, *, resumed: bool) -> None:
        """Read the ids of an earlier start of a resumed run.

        Args:
            folder: Of the run.
            resumed: Whether the run goes on from a checkpoint; a new one takes new ids.
        """
        self.resumed = resumed
        self._path = folder / IDS_FILE
        self._lock = threading.Lock()
        self._ids: dict[str, str] = {}
        # A new run in an old folder is another run for the services too.
        if resumed:
            try:
                kept = json.loads(self._path.read_text(encoding="utf-8"))
                self._ids = {str(key): str(value) for key, value in kept.items()}
            except (OSError, ValueError, AttributeError):
                _logger.warning("%s: no ids of an earlier start; the services begin new runs", self._path)

    def find(self, key: str) -> str | None:
        """Look up the id that an earlier start of this run kept."""
        return self._ids.get(key)

    def keep(self, key: str, run_id: str) -> str:
        """Write an id down, and give it back; raises OSError where the file cannot be written."""
        # Each service keeps its id from a thread of its own.
        with self._lock:
            self._ids[key] = run_id
            write_whole(self._path, (json.dumps(self._ids, indent=1, sort_keys=True) + "\n").encode())
        return run_id

    def make(self, key: str) -> str:
        """Look up the id of an earlier start, or make a new one, which is kept."""
        return self.find(key) or self.keep(key, uuid.uuid4().hex)


@dataclass(frozen=True, kw_only=True)
class ServiceRun:
    """What a service has to know of a run.

    Args:
        folder: Of the run, absolute.
        project: What the service calls the project.
        name: What it calls the run.
        parameters: The configuration, nested by section.
        ids: Under which ids the services keep it.
        close_s: Seconds that all services together have when the run ends.
    """

    folder: Path
    project: str
    name: str
    parameters: Mapping[str, Any]
    ids: RunIds
    close_s: float = 15.0

    def flat_parameters(self) -> dict[str, bool | int | float | str]:
        """Flatten the configuration to "section.setting": value, texts without what looks like a secret."""
        return {
            key: value if isinstance(value, bool | int | float) else redact(str(value))
            for key, value in flatten(self.parameters).items()
        }
