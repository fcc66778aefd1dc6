"""What every rank is doing, published to all: a rank that is late or gone is named, and none waits for it for ever."""

import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final, NoReturn

from torch.distributed.distributed_c10d import Store

from ...data.credentials import redact
from ...data.exit_codes import ExitCode
from ...data.frames import printable
from .rendezvous import Verdict, declare, read_verdict
from .table import Beat, Seen, keep_older, name_late, publication, silent_ranks

WAITING: Final = "wait for rank 0"
ENDED_WITH: Final = "ended with the other ranks"
_ENDED: Final = "ended"
_MAIN_FRAMES: Final = 6
# Sinks are closed before a stalled process ends, and may stall too.
_CLOSE_S: Final = 5.0


class Heartbeat:
    """This rank's part in the table of all ranks, and the watch over its training thread.

    `beat` is all that the training thread does. One thread of its own talks to the store, another one watches the
    clock: the store's machine may be what is gone.

    Args:
        rank: This process.
        world_size: All of them.
        timeout_s: Seconds without progress after which this process ends.
        start_timeout_s: The same until training begins, where it is more.
        connect: Makes a connection to the store for this object alone; None for one process, or without a store.
        holder: Who holds the store, in words.
        hosts_store: Whether this process holds it: it leaves last.

    Attributes:
        verdict: Why the run ends, once a rank has stated it.
        at_end: Called with the exit code before this process is ended from the watching thread.
        is_settling: Whether this rank has stated why it ends, or looked for who made it end.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        *,
        timeout_s: float,
        start_timeout_s: float,
        connect: Callable[[], Store] | None = None,
        holder: str = "",
        hosts_store: bool = False,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.holder = holder
        self.timeout_s = timeout_s
        self._start_timeout_s = max(timeout_s, start_timeout_s)
        self._hosts_store = hosts_store
        # All ranks read the table of all when they wait: of many, less often.
        self.interval_s = min(max(timeout_s / 60, 0.1), 2.0) * max(1.0, world_size / 128)
        self.silence_s = max(4 * self.interval_s, 2.5)
        self.verdict: Verdict | None = None
        self.at_end: Callable[[int], None] | None = None

        # What this rank does, and how it ends.
        now_s = time.monotonic()
        self._host = os.uname().nodename
        self._beat = Beat(operation="start", step=None, count=0, waits=False, at_s=now_s)
        self._main = threading.main_thread()
        self._mine: Verdict | None = None
        self.is_settling = False
        self._leaving = False
        self._unwatched = threading.Event()

        # What the store holds of the others.
        self._main_rank: Seen | None = None
        self._table: list[Seen] = []
        self._wants_table = False
        self._num_ended = 0

        # The thread that talks to the store.
        self._store = None if connect is None else connect()
        self._published = 0
        self._exchanged = 0
        self._exchanged_s = now_s
        self._lost = False
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._publisher: threading.Thread | None = None
        if self._store is not None:
            self._publisher = threading.Thread(target=self._publish, name="heartbeat", daemon=True)
            self._publisher.start()

    def beat(self, operation: str, step: int | None = None, *, waits: bool = False) -> None:
        """Note what the training thread begins now; costs about a microsecond.

        Args:
            operation: In words.
            step: Number of the step, from 1; None before training.
            waits: Whether this rank now waits for rank 0, which does something else.
        """
        before = self._beat
        count = before.count + 1 if before.step == step else 0
        self._beat = Beat(operation=operation, step=step, count=count, waits=waits, at_s=time.monotonic())

    def again(self, operation: str | None = None, *, waits: bool = False) -> None:
        """Note that the training thread has come further in the same step; every rank does so, see `beat`."""
        self.beat(operation or self._beat.operation, self._beat.step, waits=waits)

    def rename(self, operation: str) -> None:
        """Note that this rank, unlike the others, goes on to something else."""
        self._beat = replace(self._beat, operation=operation, at_s=time.monotonic())

    @property
    def doing(self) -> str:
        """What this rank's training thread does, in words."""
        return str(self._beat)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch this rank's training thread while inside: where it stands still for too long, the process ends."""
        watcher = threading.Thread(target=self._watch, name="stall watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._unwatched.set()
            watcher.join()

    def close(self) -> None:
        """Leave the table after a clean end; no rank needs it any more."""
        self._leaving = True
        self._stop_publishing()
        self._store = None

    def _stop_publishing(self) -> bool:
        """End the publishing thread; return whether the store is free for this one now."""
        self._closed.set()
        self._wake.set()
        if self._publisher is None:
            return False
        self._publisher.join(timeout=self.silence_s)
        return not self._publisher.is_alive()

    # The publishing thread: it alone uses the store.

    def _publish(self) -> None:
        while not self._closed.is_set():
            try:
                self._exchange()
            except RuntimeError:
                self._lost = not self._leaving
                return
            self._wake.wait(self.interval_s)
            self._wake.clear()

    def _exchange(self) -> None:
        """Publish this rank's state and read what is new of the others."""
        store = self._store
        assert store is not None
        self._published += 1
        store.set(_key(self.rank), json.dumps(publication(self._beat, self._host, self._published)))

        # Why the run ends, if it does: the first rank that states a reason decides.
        if self.verdict is None:
            self.verdict = read_verdict(store) if self._mine is None else declare(store, self._mine)
        self._num_ended = store.add(_ENDED, 0)

        # Who holds the store may be the one that goes: what it did last is kept at hand.
        ranks = list(range(self.world_size)) if self._wants_table else [0]
        keys = [_key(rank) for rank in ranks]
        # A rank that has just come may not have published yet.
        if store.check(keys):
            read = [Seen.read(rank, json.loads(text)) for rank, text in zip(ranks, store.multi_get(keys), strict=True)]
            self._main_rank = read[0]
            self._table = [keep_older(self._table, seen) for seen in read] if self._wants_table else []

        self._exchanged += 1
        self._exchanged_s = time.monotonic()

    # The watching thread.

    def _watch(self) -> None:
        beat = self._beat
        stalled_s = 0.0
        warned = False
        last_s = time.monotonic()
        condemned_s = math.inf
        tick_s = self.interval_s / 2
        while not self._unwatched.wait(tick_s):
            # Time that this thread did not get either (a stopped process, a suspended machine) is no stall.
            now_s = time.monotonic()
            awake_s = min(now_s - last_s, 4 * tick_s)
            last_s = now_s
            if self._beat is beat:
                stalled_s += awake_s
            else:
                beat = self._beat
                stalled_s = 0.0
                warned = False
                self._wants_table = self.is_settling

            # Another rank has ended the run: the training thread may come to its own end, with a traceback.
            if self.verdict is not None and not self.is_settling:
                condemned_s = min(condemned_s, now_s)
                if now_s - condemned_s > self.silence_s:
                    self._end(self.verdict)

            # No progress: ask for the table of all ranks, warn once a silent rank shows in it, end at the limit.
            limit_s = self._start_timeout_s if beat.step is None else self.timeout_s
            if stalled_s > limit_s / 10:
                self._wants_table = True
            if stalled_s > limit_s / 10 + 2 * self.silence_s and not (warned or self.is_settling):
                warned = True
                text = self.explain()
                if self._speaks(text):
                    _write(f"rank {self.rank}: no progress for {stalled_s:.0f} s in {self.doing}: {text}\n")
            if stalled_s > limit_s:
                self._end_stalled(limit_s)

    def _has_lost_store(self) -> bool:
        return self._lost or time.monotonic() - self._exchanged_s > self.silence_s

    def _speaks(self, text: str) -> bool:
        """Return whether this rank writes about a stall: of a thousand ranks, those that it is about, and two."""
        return self.rank <= 1 or f"rank {self.rank} (" in text

    def explain(self) -> str:
        """Name the ranks that are late or silent, or say that nobody can know."""
        if self._publisher is None:
            return "this is the only process" if self.world_size == 1 else "the ranks keep no table"
        if self._leaving:
            return "the run was at its end"
        now_s = time.monotonic()
        if self._has_lost_store():
            state = f"does not answer for {now_s - self._exchanged_s:.0f} s: it is stopped, or its machine is gone"
            if self._lost:
                state = "is gone: it has ended, or its machine cannot be reached"
            known = self._main_rank
            last = "" if known is None else f"; the last known operation of rank 0 ({known.host}): {known.beat}"
            return f"{self.holder}, which holds the table of all ranks, {state}{last}"
        if len(self._table) < self.world_size:
            return "the table of all ranks is not complete"
        return name_late(self._table, self._silent(), now_s)

    def _silent(self) -> list[Seen]:
        return silent_ranks(self._table, self._exchanged_s, self.silence_s)

    def _end_stalled(self, limit_s: float) -> NoReturn:
        name = "engine.timeout_s" if limit_s == self.timeout_s else "engine.start_timeout_s"
        text = f"no progress for {limit_s:g} s ({name}): {self.explain()}"
        self._mine = Verdict(rank=self.rank, code=ExitCode.STALLED, text=text)
        self._await_exchange()
        verdict = self.verdict or self._mine
        if self._speaks(verdict.text):
            frame = sys._current_frames().get(self._main.ident or 0)
            stack = "" if frame is None else "".join(traceback.format_stack(frame)[-_MAIN_FRAMES:])
            _write(f"rank {self.rank} stands at {self.doing}:\n{stack}")
        self._end(verdict)

    def _end(self, verdict: Verdict) -> NoReturn:
        """End the process from the watching thread: the training thread sits where nothing can reach it."""
        _write(f"{'stalled' if verdict.code == ExitCode.STALLED else ENDED_WITH}: {verdict.text}\n")
        closing = threading.Thread(target=self._close_sinks, args=(verdict.code,), daemon=True)
        closing.start()
        closing.join(_CLOSE_S)
        self.leave()
        os._exit(verdict.code)

    def _close_sinks(self, code: int) -> None:
        with suppress(Exception):
            if self.at_end is not None:
                self.at_end(code)
            sys.stdout.flush()
            sys.stderr.flush()

    # The training thread, after an error.

    def declare(self, code: int, text: str) -> None:
        """State to all ranks why this one ends; returns once they can read it, or when the store is gone."""
        self.is_settling = True
        if self._store is None:
            return
        self._mine = Verdict(rank=self.rank, code=code, text=text)
        self._await_exchange()

    def find_cause(self) -> Verdict | None:
        """Find the rank that made a collective of this one fail: one that stated why it ends, or one that is silent.

        Takes some seconds: whoever is gone has to be missed first.
        """
        self.is_settling = self._wants_table = True
        if self._store is None:
            return None
        self._wake.set()
        deadline_s = self._deadline_s()
        while time.monotonic() < deadline_s:
            if self.verdict is not None and self.verdict.rank != self.rank:
                return self.verdict
            if self._lost or self._silent():
                self.declare(ExitCode.CRASH, self.explain())
                return self.verdict or self._mine
            time.sleep(self.interval_s / 2)
        return None

    def leave(self) -> None:
        """End this rank's part after an error; the rank that holds the store goes last, within some seconds."""
        self._leaving = True
        if self._store is None or self._lost:
            return
        if self._hosts_store:
            self._wait_for_others()
            return
        if self._stop_publishing():
            with suppress(RuntimeError):
                self._store.add(_ENDED, 1)

    def _wait_for_others(self) -> None:
        """Wait until the others have ended too, or are silent."""
        self._wants_table = True
        deadline_s = self._deadline_s()
        while self._num_ended < self.world_size - 1 and time.monotonic() < deadline_s:
            if len(self._silent()) == self.world_size - 1:
                return
            self._wake.set()
            time.sleep(self.interval_s)

    def _deadline_s(self) -> float:
        return time.monotonic() + 2 * self.silence_s + 4 * self.interval_s

    def _await_exchange(self) -> None:
        """Wait until the publishing thread has been at the store again, but not for ever."""
        # The exchange under way may have begun before.
        wanted = self._exchanged + 2
        deadline_s = time.monotonic() + self.silence_s
        while self._exchanged < wanted and not self._lost and time.monotonic() < deadline_s:
            self._wake.set()
            time.sleep(0.02)


def _key(rank: int) -> str:
    return f"beat/{rank}"


def _write(text: str) -> None:
    """Write to standard error past Python's own, whose lock the training thread may hold."""
    with suppress(OSError):
        os.write(2, printable(redact(text)).encode())
