"""The folder of a run: held by one process at a time; its metrics show whether an evaluation is owed."""

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from ...data.errors import ConfigError
from ...models.weights.manifest import CheckpointError
from ..tracking.trackers import METRICS_FILE

LOG = logging.getLogger(__name__)

EVALUATED: Final = "held_out_loss"
"""The metric that every held-out evaluation writes."""

LOCK_FILE: Final = ".lock"
# The errors of flock on network file systems without a lock server.
_WITHOUT_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Write into a run's folder, and name it where that fails.

    Raises:
        CheckpointError: In place of the system's error.
    """
    try:
        yield
    except OSError as error:
        where = "" if error.filename in (None, str(folder)) else f" ({error.filename})"
        raise CheckpointError(
            f"run.dir {folder} cannot be written: {error.strerror or error}{where}; choose another folder, or mend "
            "this one: its permissions, its quota, a disk that is full or takes no writes"
        ) from error


def check_name(folder: Path) -> None:
    """Refuse a file where a run's folder should be, before anything is read.

    Raises:
        ConfigError: It is one.
        CheckpointError: The folders above cannot be looked into.
    """
    with writing(folder):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"run.dir {folder} is a file; it is the folder of the run: choose another name")


def hold(folder: Path) -> IO[str]:
    """Make a run's folder and hold it: two runs in one would overwrite each other silently.

    Returns:
        What holds it until it is closed.

    Raises:
        CheckpointError: Another run is at work there, or the folder cannot be made or written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CheckpointError(
            f"{folder}: another run is at work there; wait until it has ended, or choose another run.dir"
        ) from None
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        LOG.warning(
            f"{folder}: the file system keeps no locks ({error.strerror}), so a second run in this folder would not be "
            "noticed: make sure that there is none"
        )
    return lock


def evaluation_is_owed(folder: Path, done: int, evaluate_every: int) -> bool:
    """Return whether a stop came between the last finished step and its evaluation.

    Args:
        folder: Of the run.
        done: Finished steps.
        evaluate_every: Steps between two evaluations.
    """
    path = folder / METRICS_FILE
    if done == 0 or done % evaluate_every or not path.exists():
        return False
    # Matched as text: a kill may have torn the last line, and the tracker mends that when it opens.
    mark = f'"step": {done},'
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if mark in line]
    return not any(EVALUATED in line or '"image"' in line for line in lines)
