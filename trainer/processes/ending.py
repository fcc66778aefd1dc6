"""Ways to end a process at once, whatever threads and exit hooks of libraries still wait for a server."""

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import Final, NoReturn

from ...data.credentials import redact
from ...data.frames import printable

THREAD_NAME: Final = "tracker "
"""Beginning of the names of threads that a process leaves behind without waiting: those that serve trackers."""

# A closed terminal (SIGHUP) is no reason to lose the steps since the last save.
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
"""Signals that ask a run to save and stop; a scheduler sends them to all processes of a job."""

LEAVE_S: Final = 10.0
"""Seconds that libraries' threads and exit hooks have after everything of ours is done."""
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the one that started it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def end_process(code: int) -> NoReturn:
    """End this process with an exit code, some seconds from now at the latest; files have to be closed before.

    A service that was left behind may hang in the exit hook of its library, or in a thread that Python waits for; and a
    thread that is in foreign code while the interpreter is taken down may crash it. Nothing of ours is lost: metrics
    and checkpoints are on the disk.

    Args:
        code: The exit code.
    """
    # Python ends with a code of its own where the output cannot be written.
    if not flush_output() or any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate()):
        os._exit(code)
    threading.Thread(target=_end_later, args=(code,), name="end of the process", daemon=True).start()

    # As multiprocessing ends its processes: taking the interpreter down takes a second, for nothing.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    flush_output()
    os._exit(code)


def flush_output() -> bool:
    """Write out what was printed; return False where the disk is full or the reader is gone."""
    try:
        for stream in (sys.stdout, sys.stderr):
            # A process that was started without one has None there.
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return False
    return True


def write_output(text: str) -> None:
    """Write to standard output; a disk that is full or a reader that is gone ends nothing."""
    if sys.stdout is not None:
        with suppress(OSError, ValueError):
            sys.stdout.write(text)


def _end_later(code: int) -> None:
    time.sleep(LEAVE_S)
    own = (threading.current_thread(), threading.main_thread())
    names = ", ".join(thread.name for thread in threading.enumerate() if thread not in own)
    # Exit hooks alone take that long on a busy machine, and mean nothing for the run.
    if names:
        os.write(2, redact(f"ended with code {code} after {LEAVE_S:g} s of waiting for: {names}\n").encode())
    os._exit(code)


def report_thread_error(failure: threading.ExceptHookArgs) -> None:
    """Write what ended a thread of a library, without secrets; the hook of `threading`."""
    name = failure.thread.name if failure.thread is not None else "a thread"
    lines = traceback.format_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
    sys.stderr.write(redact(f"thread {name} failed:\n{''.join(lines)}"))


def write_error(text: str) -> None:
    """Write to standard error, without secrets and control characters that the text may quote."""
    sys.stderr.write(printable(redact(text)))
