"""How a process ends: at once, whatever threads and exit hooks of libraries still wait for a server."""

import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import Final, NoReturn

from ...data.frames import printable
from ...data.redaction import redact

THREAD_NAME: Final = "tracker "
"""Beginning of the names of threads that a process leaves behind without waiting: those that serve trackers."""

LEAVE_S: Final = 10.0
"""Seconds that libraries' threads and exit hooks have after everything of ours is done."""
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the one that started it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def end_process(code: int) -> NoReturn:
    """End this process with an exit code, some seconds from now at the latest.

    A service that was left behind may hang in the exit hook of its library, or in a thread that Python waits for; and a
    thread that is in foreign code while the interpreter is taken down may crash it. Nothing of ours is lost: metrics
    and checkpoints are on the disk.

    Args:
        code: The exit code.
    """
    whole = flush_output()
    # Python ends with a code of its own where the output cannot be written.
    if not whole or any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate()):
        os._exit(code)
    threading.Thread(target=_end_later, args=(code,), name="end of the process", daemon=True).start()
    sys.exit(code)


def flush_output() -> bool:
    """Write out what was said; False where that cannot be: a disk that is full, a reader that is gone."""
    try:
        for stream in (sys.stdout, sys.stderr):
            # A process that was started without one has None there.
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return False
    return True


def say_out(text: str) -> None:
    """Write to standard output what is said besides: a disk that is full or a reader that is gone ends nothing."""
    if sys.stdout is not None:
        with suppress(OSError, ValueError):
            sys.stdout.write(text)


def _end_later(code: int) -> None:
    time.sleep(LEAVE_S)
    here = (threading.current_thread(), threading.main_thread())
    left = ", ".join(thread.name for thread in threading.enumerate() if thread not in here)
    # Exit hooks alone take that long on a busy machine, and say nothing about the run.
    if left:
        os.write(2, redact(f"ended with code {code} after {LEAVE_S:g} s of waiting for: {left}\n").encode())
    os._exit(code)


def tell_thread_error(failure: threading.ExceptHookArgs) -> None:
    """Write what ended a thread of a library, without secrets; the hook of `threading`."""
    name = failure.thread.name if failure.thread is not None else "a thread"
    lines = traceback.format_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
    sys.stderr.write(redact(f"thread {name} failed:\n{''.join(lines)}"))


def say(text: str) -> None:
    """Write to standard error what may quote a secret or another machine's words."""
    sys.stderr.write(printable(redact(text)))
