"""Put a sink of metrics behind a queue and a thread of its own: whoever logs never waits for it."""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, Protocol

from ...data.credentials import redact
from ..processes.ending import THREAD_NAME

QUEUE_LENGTH: Final = 4096
"""Entries that wait for a service: at most a few tens of MB, and hours of a run that logs every ten steps."""
MAX_ERROR_CHARACTERS: Final = 400


class Tracker(Protocol):
    """One sink of metrics and pictures. Any exception it raises switches it off, and only it."""

    @property
    def name(self) -> str:
        """What warnings call it."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a global step, by name; NaN and infinity are values."""

    def image(self, step: int, name: str, path: Path) -> None:
        """Take a picture that lies at `path`."""

    def close(self) -> None:
        """Write out what is held back."""


_Action = Callable[[Tracker], None]


class QueuedTracker:
    """One service behind a queue and a thread, which imports its library, connects, sends and closes.

    Each service has its own: behind one queue for all, a server that hangs would keep the others' data from them. A
    queue that is full lets go of its oldest entry, for what a run ended with matters most; `metrics.jsonl` has all.
    """

    def __init__(
        self, name: str, build: Callable[[], Tracker], report: Callable[[str], None], *, capacity: int = QUEUE_LENGTH
    ) -> None:
        """Start the thread.

        Args:
            name: What messages call the service.
            build: Makes the sink, in the thread; it may take as long as it wants, and fail.
            report: Takes, in whatever thread, what is not complete and why.
            capacity: Entries that may wait.
        """
        self.name = name
        self._build, self._report, self._capacity = build, report, capacity
        self._queue: SimpleQueue[tuple[int, _Action] | None] = SimpleQueue()
        self._ended = threading.Event()
        self._closing = self._given_up = False
        self._num_dropped = self._num_taken = 0
        self._last_step: int | None = None
        # A daemon: the end of the process does not wait for a server.
        threading.Thread(target=self._work, name=f"{THREAD_NAME}{name}", daemon=True).start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue the metrics of a step."""
        kept = dict(metrics)
        self._put(step, lambda sink: sink.log(step, kept))

    def image(self, step: int, name: str, path: Path) -> None:
        """Queue a picture; its file has to stay where it is."""
        self._put(step, lambda sink: sink.image(step, name, path))

    def close(self) -> None:
        """Ask it to send what waits and to close, and return at once; `wait` waits."""
        self._closing = True
        self._queue.put(None)

    def wait(self, seconds: float) -> None:
        """Wait until it has closed, at most so long; then leave it behind, and report what it lacks."""
        ended = self._ended.wait(max(0.0, seconds))
        if self._given_up:
            return

        self._given_up = True
        if not ended:
            # Without the end mark.
            num_waiting = max(0, self._queue.qsize() - 1)
            entries = f"{num_waiting} entries were not taken" if num_waiting else "it may lack its last entries"
            self._report(f"{self.name} was left behind, as it had not finished within tracking.close_s: {entries}")
        if self._num_dropped:
            self._report(
                f"{self.name} was too slow: {self._num_dropped} of {self._num_taken} entries were dropped, oldest first"
            )

    def _put(self, step: int, action: _Action) -> None:
        if self._given_up or self._closing:
            return

        self._num_taken += 1
        if self._queue.qsize() >= self._capacity:
            # Unless the thread was quicker.
            with suppress(Empty):
                self._queue.get_nowait()
                self._num_dropped += 1
        self._queue.put((step, action))

    def _work(self) -> None:
        try:
            sink = self._build()
            while (entry := self._queue.get()) is not None:
                step, action = entry
                action(sink)
                self._last_step = step
            sink.close()
        except BaseException as error:  # A library that calls sys.exit() ends its own thread, nothing else.
            if not self._given_up:
                self._given_up = True
                held = "it has nothing" if self._last_step is None else f"it has nothing after step {self._last_step}"
                self._report(f"{self.name} was switched off after {describe(error)}; {held}")
        finally:
            self._ended.set()


def describe(error: BaseException) -> str:
    """Write an error in one line, without secrets: those of services quote addresses, requests and replies."""
    text = " ".join(redact(str(error)).split())
    if len(text) > MAX_ERROR_CHARACTERS:
        text = f"{text[:MAX_ERROR_CHARACTERS]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
