"""Processes that run pysteps beside the evaluator, one thread each."""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, Any, Final

# Numpy counts its threads when it is imported: here it is not, so that a worker can say how many first.
if TYPE_CHECKING:
    from ...models.baselines.methods import Method, Window

THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def compute(method: "Method", window: "Window") -> Any:
    """Forecast a window; raises DataError where pysteps fails on it."""
    from ...data.errors import ConfigError, DataError
    from ...models.baselines.methods import BaselineError, forecast

    try:
        return forecast(method, window)
    except BaselineError as error:
        raise DataError(str(error)) from None
    except ImportError as error:
        raise ConfigError(str(error)) from None


class Workers:
    """A pool of processes; with one, the evaluator computes itself.

    Args:
        num: Processes.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self._pool: ProcessPoolExecutor | None = None

    def start(self, method: "Method", window: "Window") -> Callable[[], Any]:
        """Begin to forecast a window by a method, and give what waits for it.

        That raises:
            DataError: pysteps failed on the window, or a process ended.
            ConfigError: A package is not installed.
        """
        if self.num == 1:
            return lambda: compute(method, window)
        if self._pool is None:
            # Spawned: a fork would take along threads of torch and open files of HDF5.
            self._pool = ProcessPoolExecutor(self.num, mp_context=get_context("spawn"), initializer=prepare_process)
        # A pool whose process has ended refuses what is asked next.
        future = _explained(lambda pool: pool.submit(compute, method, window), self._pool)
        return lambda: _explained(Future.result, future)

    def close(self) -> None:
        """End the processes at once: nobody waits for what they have not finished, such as after Ctrl-C."""
        if self._pool is None:
            return
        processes = list(self._pool._processes.values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        self._pool = None


def _explained(ask: Callable[[Any], Any], asked: Any) -> Any:
    """Ask a pool or a future; raises DataError where a process has ended without a word."""
    from ...data.errors import DataError

    try:
        return ask(asked)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that runs pysteps has ended without a word, most likely for want of memory; ask for fewer with "
            "--workers, or for fewer members"
        ) from error


def prepare_process() -> None:
    """Let a worker use one thread, leave interrupts to its parent, and end with it however that ends."""
    os.environ.update(dict.fromkeys(THREADS, "1"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
