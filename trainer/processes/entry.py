"""What every entry point does around its work: exit codes, log lines, signals."""

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from ...data.credentials import RedactingFormatter
from ...data.exit_codes import ExitCode
from .agreement import code_of
from .ending import STOP_SIGNALS, end_process, end_with_parent, flush_output, report_thread_error, write_error
from .heartbeat import ENDED_WITH

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
        if _launched_by_accelerate():
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


def start_other_processes(environment: Mapping[str, str]) -> None:
    """Become torchrun where `accelerate launch --num_processes N` on a machine without GPUs has started one process.

    Accelerate 1.15 starts several processes of this kind through mpirun only (`simple_launcher`), and leaves what was
    asked for in nothing but its own command line. Returns where there is nothing to do.
    """
    if not (_launched_by_accelerate() and "MASTER_PORT" in environment and "RANK" not in environment):
        return
    # `--num_processes 2`, `--num-processes=2`: the last one counts.
    words = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8").replace("=", "\0").split("\0")
    numbers = [number for word, number in pairwise(words) if word.replace("-", "_") == "__num_processes"]
    if not (numbers and numbers[-1].isdigit() and int(numbers[-1]) > 1):
        return

    end_with_parent(signal.SIGTERM)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", numbers[-1]]
    os.execv(sys.executable, [sys.executable, *launcher, *sys.argv])


def _launched_by_accelerate() -> bool:
    return "ACCELERATE_MIXED_PRECISION" in os.environ and sys.platform == "linux"


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


def run_process(main: Callable[[], int], *, at_once: bool = False) -> NoReturn:
    """Run an entry point and end its process, whatever threads and connections to other ranks an error has left.

    Args:
        main: The entry point.
        at_once: It leaves no thread or service behind: end without the exit hooks of libraries, which take seconds.
    """
    threading.excepthook = report_thread_error
    try:
        code = run_entry(main)
    except Exception:
        write_error(traceback.format_exc())
        code = ExitCode.CRASH
    flush_output()
    # A connection that is being made, or a group of which a rank is gone, may hold up or crash an orderly end.
    if at_once or code != ExitCode.DONE:
        os._exit(code)
    end_process(code)
