"""What the services that track a run have to know of it: names, configuration, and the ids under which they keep it."""

import json
import logging
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...data.credentials import redact
from ...data.whole_file import write_whole

IDS_FILE: Final = "trackers.json"

_logger = logging.getLogger(__name__)


class RunIds:
    """Under which ids the services keep a run: a resumed run goes on in the same ones."""

    def __init__(self, folder: Path, *, resumed: bool) -> None:
        """Name the place; nothing is read or written yet.

        Args:
            folder: of the run.
            resumed: whether the run goes on from a checkpoint; a new one takes new ids.
        """
        self._path = folder / IDS_FILE
        self._resumed = resumed
        self._lock = threading.Lock()
        self._ids: dict[str, str] | None = None

    def find(self, key: str) -> str | None:
        """Give the id that an earlier start of this run kept."""
        with self._lock:
            return self._read().get(key)

    def keep(self, key: str, run_id: str) -> None:
        """Write an id down.

        Raises:
            OSError: the file cannot be written.
        """
        with self._lock:
            ids = self._read()
            ids[key] = run_id
            write_whole(self._path, (json.dumps(ids, indent=1, sort_keys=True) + "\n").encode())

    def make(self, key: str) -> str:
        """Give the id of an earlier start, or a new one, which is kept."""
        if (found := self.find(key)) is None:
            found = uuid.uuid4().hex
            self.keep(key, found)
        return found

    def _read(self) -> dict[str, str]:
        if self._ids is None:
            self._ids = {}
            if self._resumed:
                try:
                    found = json.loads(self._path.read_text(encoding="utf-8"))
                    self._ids = {str(key): str(value) for key, value in found.items()}
                except (OSError, ValueError, AttributeError):
                    _logger.warning("%s: no ids of an earlier start; the services begin new runs", self._path)
        return self._ids


@dataclass(frozen=True, kw_only=True)
class ServiceRun:
    """What a service has to know of a run.

    Args:
        folder: Of the run, absolute.
        project: What the service calls the project.
        name: What it calls the run.
        parameters: The configuration, nested by section.
        ids: Under which ids the services keep it.
        resumed: Whether it goes on from a checkpoint.
        close_s: Seconds that all services together have when the run ends.
    """

    folder: Path
    project: str
    name: str
    parameters: Mapping[str, Any]
    ids: RunIds
    resumed: bool
    close_s: float = 15.0

    def flat_parameters(self) -> dict[str, bool | int | float | str]:
        """Give the configuration as "section.setting": value, texts without what looks like a secret."""
        return dict(_flat(self.parameters))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float):
            yield f"{prefix}{key}", value
        else:
            yield f"{prefix}{key}", redact(str(value))
