"""Copying a checkpoint to a store within a time limit: by a process of its own, which can be ended at any moment.

A thread cannot be ended: a store that hangs would hold up the save that a job's last minute is for. The process loads
no torch, gets its order on standard input, reports on standard output what has arrived, and dies with its parent.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ...data.errors import DataError
from ...data.store.storage import open_storage
from ...models.weights.manifest import CheckpointError
from ..processes.ending import STOP_SIGNALS, end_with_parent
from .transfer import push

_LAST_WORDS_S: Final = 2.0
"""A killed process that has not ended by then is stuck in the kernel, as on a dead network disk."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What is known of a copy; the last failure is the process' own word, where it had one.

    Attributes:
        sent: Names of the files that have arrived, also of a copy that failed.
        warnings: What it had to warn of.
        failures: Why it ended early; empty where it did not. The checkpoint may be there: older ones go after it came.
    """

    sent: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def push_within(deadline_s: float, *, url: str, folder: Path, keep_last: int, keep_every: int | None) -> Pushed:
    """Copy a checkpoint to a store, see `trainer.checkpoint.transfer.push`, and stop when the time is over.

    Args:
        deadline_s: Seconds for everything, the start of the process included.
        url: The store, as `open_storage` takes it.
        folder: The checkpoint's folder.
        keep_last: Checkpoints that stay.
        keep_every: Steps whose multiples stay for ever.
    """
    pushed = Pushed()
    kept = {"keep_last": keep_last, "keep_every": keep_every}
    order = {"url": url, "folder": str(folder), "kept": kept, "parent": os.getpid()}
    try:
        process = _start()
    except OSError as error:
        pushed.failures.append(f"no process could be started to copy it: {error}")
        return pushed

    # Until the time is over; what the process has reported until then counts.
    output = b""
    try:
        output, _ = process.communicate(json.dumps(order).encode(), timeout=deadline_s)
        if process.returncode:
            pushed.failures.append(f"the process that copies ended with code {process.returncode}")
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            output, _ = process.communicate(timeout=_LAST_WORDS_S)
        pushed.failures.append(f"cut off after {deadline_s:g} s (run.push_deadline_s); the next save tries again")

    for line in output.splitlines():
        # The last line may have been cut off.
        with suppress(ValueError, TypeError):
            kind, text = json.loads(line)
            getattr(pushed, kind).append(text)
    return pushed


def _start() -> subprocess.Popen[bytes]:
    """Start the process that copies; it begins with the signals blocked that are not meant for it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # -P: a folder of the user's that is called like a module is none.
    command = [sys.executable, "-P", "-m", "rainspark.trainer.checkpoint.push"]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _report(kind: str, text: str) -> None:
    """Report to the parent; unbuffered, so that what was reported before a kill arrives."""
    os.write(1, (json.dumps([kind, text]) + "\n").encode())


class _Reporter(logging.Handler):
    """Reports what is logged to the parent."""

    def emit(self, record: logging.LogRecord) -> None:
        """Report one message."""
        _report("warnings", record.getMessage())


def main() -> int:
    """Copy as the order on standard input says; 0 when all of it was done."""
    # They are meant for the run, which saves then and waits for this copy.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    # Without its parent nobody waits for the copy.
    order: dict[str, Any] = json.load(sys.stdin)
    end_with_parent(signal.SIGKILL)
    if os.getppid() != order["parent"]:
        return 1

    logging.basicConfig(level=logging.WARNING, handlers=[_Reporter()])
    try:
        storage = open_storage(order["url"], to_write=True)
        push(Path(order["folder"]), storage, notify=lambda name: _report("sent", name), **order["kept"])
    except Exception as error:
        # Reported to the run, whose log hides what may quote a secret.
        is_known = isinstance(error, CheckpointError | DataError)
        _report("failures", str(error) if is_known else f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
