"""What every entry point does around its work: exit codes, log lines, signals."""

import logging
import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final, NoReturn

from ...data.credentials import RedactingFormatter
from ...data.exit_codes import ExitCode
from .agreement import code_of
from .ending import STOP_SIGNALS, end_process, end_with_parent, flush_output, report_thread_error, write_error
from .heartbeat import ENDED_WITH
from .starting import launched_by_accelerate

_CAUSE_WORDS: Final = {
    ExitCode.CONFIG: "settings",
    ExitCode.DATA: "data",
    ExitCode.NONFINITE: "training",
    ExitCode.CHECKPOINT: "checkpoint",
    ExitCode.STALLED: "stalled",
    ExitCode.REQUEUE: "stopped",
}


class StopSignal:
    """Remembers that a signal asked this process to stop; the loop asks at its boundaries.

    A launcher forwards what the terminal has sent to its workers already, so that one Ctrl-C arrives twice: repeats
    change nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    def install(self) -> None:
        """Listen to the stop signals, and to the death of the launcher where there is one."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)
        # Accelerate's launcher dies of a SIGTERM of its own without forwarding it to its worker.
        if launched_by_accelerate():
            end_with_parent(signal.SIGTERM)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
            message = f"{self.received}: finishing this step, then saving a checkpoint\n"
            # A log handler may hold its lock in the very frame that the signal interrupts; a write may not.
            with suppress(OSError):
                os.write(2, message.encode())

    def __call__(self) -> bool:
        """Return whether a stop signal has arrived."""
        return self.received is not None


def set_up_logging(rank: int, level: int = logging.INFO) -> None:
    """Send log lines to standard error: all of rank 0, warnings of the others, with the rank in front."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter(f"%(asctime)s [{rank}] %(levelname)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level if rank == 0 else logging.WARNING)


def run_entry(main: Callable[[], int]) -> int:
    """Run an entry point and turn what ends it into a message and an exit code.

    What the user can mend is reported in its own words; everything else keeps its traceback.
    """
    try:
        return int(main())
    except Exception as error:
        code = code_of(error)
        if code is None:
            raise
        write_error(f"{_CAUSE_WORDS.get(ExitCode(code), ENDED_WITH)}: {error}\n")
        return code


def run_process(main: Callable[[], int]) -> NoReturn:
    """Run an entry point and end its process, whatever threads and connections to other ranks an error has left."""
    threading.excepthook = report_thread_error
    try:
        code = run_entry(main)
    except Exception:
        write_error(traceback.format_exc())
        code = ExitCode.CRASH
    flush_output()
    # A connection that is being made, or a group of which a rank is gone, may hold up or crash an orderly end.
    if code != ExitCode.DONE:
        os._exit(code)
    end_process(code)
