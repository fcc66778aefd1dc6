"""Copying a checkpoint to a store within a time limit: by a process of its own, which can be ended at any moment.

A thread cannot be ended: a store that hangs would hold up the save that a job's last minute is for. The process loads
no torch, gets its order on standard input, tells on standard output what has arrived, and dies with its parent.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ...data.store.storage import open_storage
from ...models.weights.manifest import MANIFEST_NAME, CheckpointError
from ..processes.ending import end_with_parent
from .transfer import push, store_errors

_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_FOR_THE_RUN: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
"""Signals that a scheduler sends to all processes of a job: the run saves then, and waits for the copy."""
_LAST_WORDS_S: Final = 2.0
"""A killed process that has not ended by then is stuck in the kernel, as on a dead network disk."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """How a copy ended.

    Attributes:
        is_copied: Whether the checkpoint is in the store, its manifest included.
        sent: Names of the files that have arrived, also of a copy that failed.
        warnings: What the copy had to say.
        failure: Why it ended early, None where it did not; what followed the checkpoint itself may have failed.
    """

    is_copied: bool
    sent: tuple[str, ...]
    warnings: tuple[str, ...]
    failure: str | None


def push_within(deadline_s: float, *, url: str, folder: Path, keep_last: int, keep_every: int | None) -> Pushed:
    """Copy a checkpoint to a store, see `trainer.checkpoint.second_place.push`, and stop when the time is over.

    Args:
        deadline_s: Seconds for everything, the start of the process included.
        url: The store, as `open_storage` takes it.
        folder: The checkpoint's folder.
        keep_last: Checkpoints that stay.
        keep_every: Steps whose multiples stay for ever.
    """
    order = {"url": url, "folder": str(folder), "keep_last": keep_last, "keep_every": keep_every, "parent": os.getpid()}
    try:
        process = _started()
    except OSError as error:
        return Pushed(is_copied=False, sent=(), warnings=(), failure=f"no process could be started to copy it: {error}")
    was_cut = False
    try:
        said, _ = process.communicate(json.dumps(order).encode(), timeout=deadline_s)
    except subprocess.TimeoutExpired:
        process.kill()
        was_cut = True
        try:
            said, _ = process.communicate(timeout=_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            said = b""
    except BaseException:
        process.kill()
        raise
    pushed = _understood(said, folder.name)
    if was_cut and pushed.failure is None:
        failure = (
            f"cut off after {deadline_s:g} s (run.push_deadline_s), {len(pushed.sent)} files had arrived; the next "
            "save tries again: raise it if the way there is slow"
        )
        return replace(pushed, failure=failure)
    if process.returncode and pushed.failure is None:
        return replace(pushed, failure=f"the process that copies ended with code {process.returncode}")
    return pushed


def _started() -> subprocess.Popen[bytes]:
    """Start the process that copies; it begins with the signals blocked that are not meant for it."""
    paths = [str(_REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_RUN)
    try:
        return subprocess.Popen(
            # -P: a folder of the user's that is called like a module is none.
            [sys.executable, "-P", "-m", "rainspark.trainer.checkpoint.push"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _understood(said: bytes, name: str) -> Pushed:
    """Put together what the process told, one JSON object a line; a line that was cut off is none."""
    sent: list[str] = []
    warnings: list[str] = []
    failure: str | None = None
    for line in said.splitlines():
        try:
            word = json.loads(line)
        except ValueError:
            continue
        if "sent" in word:
            sent.append(word["sent"])
        warnings += [word["warning"]] if "warning" in word else []
        failure = word.get("failure", failure)
    is_copied = any(path.endswith(f"{name}/{MANIFEST_NAME}") for path in sent)
    return Pushed(is_copied=is_copied, sent=tuple(sent), warnings=tuple(warnings), failure=failure)


class _Teller(logging.Handler):
    """Tells the parent what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one message."""
        _tell(warning=record.getMessage())


def _tell(**words: str) -> None:
    # Unbuffered: what was told before a kill arrives.
    os.write(1, (json.dumps(words) + "\n").encode())


def main() -> int:
    """Be the process that copies; 0 when all of it was done."""
    for number in _FOR_THE_RUN:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_THE_RUN)
    order: dict[str, Any] = json.load(sys.stdin)
    end_with_parent(signal.SIGKILL)
    if os.getppid() != order["parent"]:
        return 1
    logging.basicConfig(level=logging.WARNING, handlers=[_Teller()])
    try:
        with store_errors(Path(order["folder"])):
            storage = open_storage(order["url"], to_write=True)
        push(
            Path(order["folder"]),
            storage,
            keep_last=order["keep_last"],
            keep_every=order["keep_every"],
            told=lambda name: _tell(sent=name),
        )
    except CheckpointError as error:
        _tell(failure=str(error))
        return 1
    except Exception as error:
        # Told to the run, whose log hides what may quote a secret.
        _tell(failure=f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
