"""What every entry point does around its work: exit codes, log lines, signals."""

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar, cast

import torch.distributed as dist

from ...data.frames import DataError, printable
from ...data.redaction import RedactingFormatter, redact
from ...data.windows.mixing import BatchError
from ...models.weights.manifest import CheckpointError
from ...models.weights.transfer import WeightsError
from ..engine.engine import Engine, EngineError
from ..settings.model import ConfigError
from ..training.loop import NonFiniteError
from .ending import end_process, end_with_parent, flush_output, tell_thread_error
from .rendezvous import RankEndedError

LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class ExitCode(IntEnum):
    """One exit code a cause, the same on every rank."""

    DONE = 0
    CRASH = 1
    CONFIG = 3
    DATA = 4
    NONFINITE = 5
    CHECKPOINT = 6
    STALLED = 7
    # EX_TEMPFAIL of sysexits.h: "try again later", which is what a stopped run asks for.
    REQUEUE = 75


CAUSES: tuple[tuple[type[Exception], ExitCode], ...] = (
    (ConfigError, ExitCode.CONFIG),
    (BatchError, ExitCode.CONFIG),
    (EngineError, ExitCode.CONFIG),
    (DataError, ExitCode.DATA),
    (NonFiniteError, ExitCode.NONFINITE),
    (CheckpointError, ExitCode.CHECKPOINT),
    (WeightsError, ExitCode.CHECKPOINT),
)

# A closed terminal (SIGHUP) is no reason to lose the steps since the last save.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


class StopSignal:
    """Remembers that this process was told to stop; the loop asks at its boundaries.

    A launcher forwards what the terminal has sent to its workers already, so that one Ctrl-C arrives twice: repeats
    change nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    def install(self) -> None:
        """Listen to the stop signals, and to the death of the launcher where there is one."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)
        if _launched_by_accelerate():
            _end_with_launcher()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
            message = f"{self.received}: finishing this step, then saving a checkpoint\n"
            # A log handler may hold its lock in the very frame that the signal interrupts; a write may not.
            with suppress(OSError):
                os.write(2, message.encode())

    def __call__(self) -> bool:
        """Tell whether a stop signal has arrived."""
        return self.received is not None


def on_all_ranks(engine: Engine, work: Callable[[], _Result]) -> _Result:
    """Do something on every rank; what fails on one of them for a known cause ends all of them for that cause."""
    result: _Result | None = None
    failure: tuple[int, str] | None = None
    try:
        result = work()
    except Exception as error:
        known = [number for number, (kind, _) in enumerate(CAUSES) if isinstance(error, kind)]
        if not known:
            raise
        failure = (known[0], str(error))
    for rank, found in enumerate(engine.gather_objects(failure)):
        if found is not None:
            number, text = found
            raise CAUSES[number][0](text if rank == engine.rank or failure == found else f"on rank {rank}: {text}")
    return cast(_Result, result)


def start_other_processes(environment: Mapping[str, str]) -> None:
    """Become torchrun where `accelerate launch --num_processes N` on a machine without GPUs has started one process.

    Accelerate 1.15 starts several processes of this kind through mpirun only (`simple_launcher`), and leaves what was
    asked for in nothing but its own command line. Returns where there is nothing to do.
    """
    if not (_launched_by_accelerate() and "MASTER_PORT" in environment and "RANK" not in environment):
        return
    words = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8").split("\0")
    options = [word.replace("-", "_").removeprefix("__") for word in words]
    asked = [words[place + 1] for place, option in enumerate(options[:-1]) if option == "num_processes"]
    asked += [option.partition("=")[2] for option in options if option.startswith("num_processes=")]
    if not (asked and asked[-1].isdigit() and int(asked[-1]) > 1):
        return
    _end_with_launcher()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", asked[-1]]
    os.execv(sys.executable, [sys.executable, *launcher, *sys.argv])


def _launched_by_accelerate() -> bool:
    return "ACCELERATE_MIXED_PRECISION" in os.environ and sys.platform == "linux"


def _end_with_launcher() -> None:
    """Be told by SIGTERM when the launcher dies: of a SIGTERM of its own it dies without a word to its worker."""
    end_with_parent(signal.SIGTERM)


def set_up_logging(rank: int, level: int = logging.INFO) -> None:
    """Send log lines to standard error: all of rank 0, warnings of the others, with the rank in front."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter(f"%(asctime)s [{rank}] %(levelname)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level if rank == 0 else logging.WARNING)


def run_entry(main: Callable[[], ExitCode]) -> int:
    """Run an entry point and turn what ends it into a message and an exit code.

    What the user can mend is told in its own words; everything else keeps its traceback.
    """
    try:
        return int(main())
    except Exception as error:
        code = code_of(error)
        if code is None:
            raise
        say(f"{_CAUSE_WORDS.get(ExitCode(code), ENDED_WITH)}: {error}\n")
        return code


def run_process(main: Callable[[], ExitCode]) -> NoReturn:
    """Run an entry point and end its process, whatever threads and connections to other ranks an error has left."""
    threading.excepthook = tell_thread_error
    try:
        code = run_entry(main)
    except Exception:
        say(traceback.format_exc())
        code = ExitCode.CRASH
    flush_output()
    # A connection that is being made, or a group of which a rank is gone, may hold up or crash an orderly end.
    if code != ExitCode.DONE:
        os._exit(code)
    end_process(code)


def code_of(error: Exception) -> int | None:
    """Give the exit code of what ends an entry point, None for what nobody foresaw."""
    if isinstance(error, RankEndedError):
        return error.code
    return next((int(code) for kind, code in CAUSES if isinstance(error, kind)), None)


def outcome_of(error: Exception) -> str:
    """Name what ends a run, for the record of its attempts."""
    return ExitCode(code_of(error) or ExitCode.CRASH).name.lower()


def settle(engine: Engine, error: Exception) -> None:
    """End this rank's part in the run: tell the others, and leave, the rank that holds their table last.

    Args:
        engine: Of this rank.
        error: What ends it, which the caller raises again.

    Raises:
        RankEndedError: See `tell_ranks`.
    """
    try:
        tell_ranks(engine, error)
    finally:
        engine.heartbeat.leave()


def tell_ranks(engine: Engine, error: Exception) -> None:
    """Tell the other ranks why this one ends; or find out which of them has ended, where that is why. Only once.

    Args:
        engine: Of this rank.
        error: What ends it, which the caller raises again.

    Raises:
        RankEndedError: Another rank's reason, and its exit code, in the error's place.
    """
    heartbeat = engine.heartbeat
    me = f"rank {engine.rank} ({os.uname().nodename})"
    if heartbeat.is_settling:
        return
    if (code := code_of(error)) is not None:
        heartbeat.declare(code, f"{me}: {error}")
    elif not _is_lost_contact(error):
        heartbeat.declare(ExitCode.CRASH, f"{me} crashed in: {heartbeat.doing}: {type(error).__name__}: {error}")
    elif (verdict := heartbeat.find_cause()) is None:
        heartbeat.declare(ExitCode.CRASH, f"{me} lost the others in: {heartbeat.doing}; none of them is silent")
    elif verdict.code == ExitCode.CRASH:
        say(f"{ENDED_WITH}: {verdict.text}\n{me} was in: {heartbeat.doing}\n")
    else:
        raise RankEndedError(verdict.text, verdict.code) from error


def _is_lost_contact(error: Exception) -> bool:
    """Tell whether a collective failed, which says nothing about the rank on which it did."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS_OF_LOST_CONTACT)
    )


def say(text: str) -> None:
    """Write to standard error what may quote a secret or another machine's words."""
    sys.stderr.write(printable(redact(text)))


ENDED_WITH = "ended with the other ranks"
_WORDS_OF_LOST_CONTACT = ("gloo", "NCCL", "closed by peer", "reset by peer", "Broken pipe", "ProcessGroup")
_CAUSE_WORDS = {
    ExitCode.CONFIG: "settings",
    ExitCode.DATA: "data",
    ExitCode.NONFINITE: "training",
    ExitCode.CHECKPOINT: "checkpoint",
    ExitCode.STALLED: "stalled",
    ExitCode.REQUEUE: "stopped",
}
