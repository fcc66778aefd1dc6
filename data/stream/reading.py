"""Read and verify sequences ahead of their use by threads, soonest needed first, within a budget of bytes."""

import heapq
import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..errors import DamagedError, DataError
from ..shards.decode import read_sequence
from ..shards.index import Index
from ..store.storage import Storage

STORE_READERS: Final = 8
AWAITED: Final = -1
"""In the place of the step that needs a sequence first: somebody waits for it."""


class ClosedError(Exception):
    """Wakes a thread that waits while everything is being closed; never seen outside."""


@dataclass(eq=False)
class _Payload:
    """A sequence that is waited for in line, on its way in, or held compressed.

    Attributes:
        sequence: Its position in the index.
        users: Blocks that have yet to let go of it.
        in_line: Whether nobody has begun to read it.
        wanted: Whether somebody has asked for its data.
        held_bytes: Its bytes, once they are in flight or held.
        ahead_bytes: Those of them that count against the budget, until it is wanted.
        result: Its data, or why there is none.
    """

    sequence: int
    users: int = 1
    in_line: bool = True
    wanted: bool = False
    held_bytes: int = 0
    ahead_bytes: int = 0
    result: memoryview | BaseException | None = None


class SequenceReader:
    """Reads and verifies sequences ahead of their use, soonest needed first, and holds them while somebody uses them.

    Each is read by a request of its own: from 3 MB on that reaches 99% of a store's rate (tests/bench/storage.py). The
    budget bounds what is in flight or held and nobody has asked for yet; a sequence that a lane waits for is read at
    once and does not count, so that no budget is too small to go on. What a lane uses is bounded by the plan's blocks.

    A sequence that fails is remembered as its error and raised where it is used, so that a run stops, or counts it as
    lost, at the same step whatever was read ahead.

    Args:
        storage: Where the shards lie.
        index: Their index.
        readers: Reading threads.
        ahead_bytes: The budget.

    Attributes:
        counts: Requests, bytes asked for, most bytes held and held ahead.
    """

    def __init__(self, storage: Storage, index: Index, *, readers: int, ahead_bytes: int) -> None:
        self._storage = storage
        self._index = index
        self.ahead_bytes = ahead_bytes
        self._payloads: dict[int, _Payload] = {}
        # A heap of (step that needs it first, number, sequence): numbers keep the order of requests within a step.
        self._line: list[tuple[int, int, _Payload]] = []
        self._line_number = itertools.count()

        lock = threading.Lock()
        self._work_came = threading.Condition(lock)
        self._data_came = threading.Condition(lock)
        self._closed = False
        self._held_bytes = 0
        self._ahead_bytes = 0
        self.counts: dict[str, float] = dict.fromkeys(
            ("requests", "bytes_read", "held_bytes_peak", "ahead_bytes_peak"), 0
        )
        self._threads = [
            threading.Thread(target=self._work, name=f"rainspark-read-{i}", daemon=True) for i in range(readers)
        ]
        for thread in self._threads:
            thread.start()

    def request(self, needs: Sequence[tuple[int, int]]) -> int:
        """Ask for the sequences of a block on behalf of one more user: (sequence, step that needs it first).

        Returns:
            Their bytes, whether or not they have been read before.
        """
        with self._work_came:
            for sequence, needed_at in needs:
                if sequence in self._payloads:
                    self._payloads[sequence].users += 1
                else:
                    self._payloads[sequence] = _Payload(sequence)
                    self._line_up(self._payloads[sequence], needed_at)
            self._work_came.notify_all()
        return sum(self._index.sequences[sequence].num_bytes for sequence, _ in needs)

    def frames(self, sequence: int) -> memoryview:
        """Wait for a requested sequence: the data of its KEY.frames member.

        Raises:
            DamagedError: What was wrong with it, naming shard and key.
            DataError: The store failed as a whole.
        """
        with self._data_came:
            payload = self._payloads[sequence]
            if not payload.wanted:
                payload.wanted = True
                self._stop_counting_ahead(payload)
                # It overtakes all that nobody waits for.
                if payload.in_line:
                    self._line_up(payload, AWAITED)
                self._work_came.notify_all()
            while payload.result is None:
                if self._closed:
                    raise ClosedError
                self._data_came.wait()
        if isinstance(payload.result, BaseException):
            raise payload.result
        return payload.result

    def release(self, sequence: int) -> None:
        """Drop one user of a sequence, and the sequence with its last one."""
        with self._work_came:
            payload = self._payloads[sequence]
            payload.users -= 1
            if payload.users == 0:
                del self._payloads[sequence]
                self._let_go(payload)

    def close(self) -> None:
        """Stop and join the threads."""
        with self._work_came:
            self._closed = True
            self._work_came.notify_all()
            self._data_came.notify_all()
        for thread in self._threads:
            thread.join()

    def _line_up(self, payload: _Payload, needed_at: int) -> None:
        heapq.heappush(self._line, (needed_at, next(self._line_number), payload))

    def _next(self) -> _Payload | None:
        """Take what is to be read next: what somebody waits for, then the soonest needed if the budget allows."""
        while self._line:
            _, _, payload = self._line[0]
            num_bytes = self._index.sequences[payload.sequence].num_bytes
            fits = payload.wanted or self._ahead_bytes + num_bytes <= self.ahead_bytes
            if payload.in_line and not fits:
                return None
            heapq.heappop(self._line)
            # What somebody came to wait for stands in line twice.
            if payload.in_line:
                self._take(payload, num_bytes)
                return payload
        return None

    def _take(self, payload: _Payload, num_bytes: int) -> None:
        """Count what a reader begins to read."""
        payload.in_line = False
        payload.held_bytes = num_bytes
        payload.ahead_bytes = 0 if payload.wanted else num_bytes
        self._held_bytes += payload.held_bytes
        self._ahead_bytes += payload.ahead_bytes

        self.counts["requests"] += 1
        self.counts["bytes_read"] += num_bytes
        self.counts["held_bytes_peak"] = max(self.counts["held_bytes_peak"], self._held_bytes)
        self.counts["ahead_bytes_peak"] = max(self.counts["ahead_bytes_peak"], self._ahead_bytes)

    def _stop_counting_ahead(self, payload: _Payload) -> None:
        self._ahead_bytes -= payload.ahead_bytes
        payload.ahead_bytes = 0

    def _let_go(self, payload: _Payload) -> None:
        """Give back the bytes of a sequence that is used no more, or that could not be read."""
        self._stop_counting_ahead(payload)
        self._held_bytes -= payload.held_bytes
        payload.held_bytes = 0
        self._work_came.notify_all()

    def _work(self) -> None:
        """Read one sequence after the other until closed."""
        while True:
            with self._work_came:
                payload = None
                while not self._closed and (payload := self._next()) is None:
                    self._work_came.wait()
                if self._closed or payload is None:
                    return

            # Whatever goes wrong is raised where the sequence is used, not in this thread.
            try:
                result: memoryview | BaseException = self._read(payload.sequence)
            except BaseException as error:
                result = error
            with self._data_came:
                payload.result = result
                if isinstance(result, BaseException):
                    self._let_go(payload)
                self._data_came.notify_all()

    def _read(self, sequence: int) -> memoryview:
        """Read and verify a sequence; a store reads it again where it does not verify."""
        entry = self._index.sequences[sequence]
        try:
            return read_sequence(self._storage, self._index, entry)
        except (DataError, OSError) as error:
            where = f"shard {self._index.shards[entry.shard].name}, key {entry.key}"
            text = str(error) if where in str(error) else f"{where}: cannot be read: {error}"
            raise (DamagedError if isinstance(error, DamagedError) else DataError)(text) from error
