"""Threads that read and verify sequences ahead of their use: neighbours together, within a budget of bytes."""

import heapq
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ..errors import DamagedError, DataError
from ..shards.decode import check_sequence
from ..shards.index import Index, SequenceEntry
from ..store.storage import Storage

RANGE_BYTES: Final = 8 * 2**20
"""Longest range that is asked of a store at once. tests/bench/storage.py: single sequences of 3 MB, 4, 8 and 16 MiB all
reach 99% of the client's own rate or more; 8 is also the longest that the storage sends as one request."""
HOLE_BYTES: Final = 64 * 2**10
"""Unused bytes read along between two neighbours: at 100 MB/s less than a millisecond, a request costs more."""
STORE_READERS: Final = 8


class ClosedError(Exception):
    """Wakes a thread that waits while everything is being closed; never seen outside."""


@dataclass(eq=False)
class _Range:
    """Sequences of one shard, in order, that are read by one request; empty once others took its place."""

    needed_at: int
    sequences: list[int]


@dataclass(eq=False)
class _Payload:
    """A sequence that is waited for in line, on its way in, or held compressed.

    Attributes:
        users: Blocks that have yet to let go of it.
        line: The range that it waits in, None once it is being read.
        wanted: Whether somebody has asked for its data.
        ahead: Whether its bytes count against the budget: taken, and not wanted yet.
        taken: Whether its bytes are in flight or held.
        frames: Its data.
        error: Why there is none.
    """

    users: int
    line: _Range | None
    wanted: bool = False
    ahead: bool = False
    taken: bool = False
    frames: memoryview | None = None
    error: BaseException | None = None


class SequenceReader:
    """Reads and verifies sequences ahead of their use, soonest needed first, and holds them while somebody uses them.

    Of a store, sequences of a block that lie next to each other in a shard are read by one request. The budget bounds
    what is in flight or held and nobody has asked for yet; a sequence that a lane waits for is read at once and does
    not count, so that no budget is too small to go on. What a lane uses is bounded by the plan's blocks.

    A sequence that fails is remembered as its error and raised where it is used, so that a run stops, or counts it as
    lost, at the same step whatever was read ahead.

    Args:
        storage: Where the shards lie.
        index: Their index.
        readers: Reading threads.
        ahead_bytes: The budget.
        range_bytes: Longest range of neighbours; 0 to read each sequence alone.
    """

    def __init__(self, storage: Storage, index: Index, *, readers: int, ahead_bytes: int, range_bytes: int) -> None:
        self._storage, self._index = storage, index
        self.ahead_bytes = ahead_bytes
        # Every thread can be at work within the budget.
        self._range_bytes = min(range_bytes, ahead_bytes // readers)
        self._payloads: dict[int, _Payload] = {}
        self._line: list[tuple[int, int, _Range]] = []
        self._urgent: deque[int] = deque()
        self._lined_up = 0
        lock = threading.Lock()
        self._work_came, self._data_came = threading.Condition(lock), threading.Condition(lock)
        self._closed = False
        self._ahead_bytes = self._held_bytes = 0
        self.ahead_bytes_peak = self.held_bytes_peak = 0
        self.requests, self.bytes_read, self.read_s, self.hash_s = 0, 0, 0.0, 0.0
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
            new: dict[int, int] = {}
            for sequence, needed_at in needs:
                payload = self._payloads.get(sequence)
                if payload is not None:
                    payload.users += 1
                else:
                    self._payloads[sequence] = _Payload(users=1, line=None)
                    new[sequence] = needed_at
            for sequences in self._neighbours(new):
                self._line_up(_Range(min(new[sequence] for sequence in sequences), sequences))
            self._work_came.notify_all()
        return sum(self._num_bytes(sequence) for sequence, _ in needs)

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
                if payload.line is not None:
                    self._urgent.append(sequence)
                self._no_longer_ahead(sequence, payload)
                self._work_came.notify_all()
            while payload.frames is None and payload.error is None:
                if self._closed:
                    raise ClosedError
                self._data_came.wait()
        if payload.error is not None:
            raise payload.error
        assert payload.frames is not None
        return payload.frames

    def release(self, sequence: int) -> None:
        """Drop one user of a sequence, and the sequence with its last one."""
        with self._work_came:
            payload = self._payloads[sequence]
            payload.users -= 1
            if payload.users == 0:
                del self._payloads[sequence]
                self._let_go(sequence, payload)

    def close(self) -> None:
        """Stop and join the threads."""
        with self._work_came:
            self._closed = True
            self._work_came.notify_all()
            self._data_came.notify_all()
        for thread in self._threads:
            thread.join()

    def _neighbours(self, sequences: Iterable[int]) -> Iterable[list[int]]:
        """Gather sequences into ranges of those that lie next to each other."""
        entries = self._index.sequences
        found: list[list[int]] = []
        for sequence in sorted(sequences, key=lambda number: (entries[number].shard, entries[number].offset)):
            entry = entries[sequence]
            if found:
                first, last = entries[found[-1][0]], entries[found[-1][-1]]
                hole = entry.offset - last.offset - last.num_bytes
                num_bytes = entry.offset + entry.num_bytes - first.offset
                if entry.shard == last.shard and 0 <= hole <= HOLE_BYTES and num_bytes <= self._range_bytes:
                    found[-1].append(sequence)
                    continue
            found.append([sequence])
        return found

    def _line_up(self, some: _Range) -> None:
        for sequence in some.sequences:
            self._payloads[sequence].line = some
        heapq.heappush(self._line, (some.needed_at, self._lined_up, some))
        self._lined_up += 1

    def _num_bytes(self, sequence: int) -> int:
        return self._index.sequences[sequence].num_bytes

    def _fits(self, sequences: list[int]) -> bool:
        added = sum(self._num_bytes(sequence) for sequence in sequences if not self._payloads[sequence].wanted)
        return self._ahead_bytes + added <= self.ahead_bytes

    def _next(self) -> list[int] | None:
        """Take what is to be read next: what somebody waits for, then the soonest needed if the budget allows."""
        while self._urgent:
            sequence = self._urgent.popleft()
            payload = self._payloads.get(sequence)
            if payload is not None and payload.line is not None:
                return self._taken(self._with_neighbours(sequence, payload.line))
        while self._line:
            some = self._line[0][2]
            if some.sequences and not self._fits(some.sequences):
                return None
            heapq.heappop(self._line)
            if some.sequences:
                return self._taken(list(some.sequences))
        return None

    def _with_neighbours(self, sequence: int, some: _Range) -> list[int]:
        """Take the whole range that a sequence stands in, or it alone where the budget has no room for the others."""
        sequences, some.sequences = some.sequences, []
        if self._fits(sequences):
            return sequences
        place = sequences.index(sequence)
        for others in (sequences[:place], sequences[place + 1 :]):
            if others:
                self._line_up(_Range(some.needed_at, others))
        return [sequence]

    def _taken(self, sequences: list[int]) -> list[int]:
        for sequence in sequences:
            payload, num_bytes = self._payloads[sequence], self._num_bytes(sequence)
            payload.line, payload.taken, payload.ahead = None, True, not payload.wanted
            self._held_bytes += num_bytes
            self._ahead_bytes += num_bytes if payload.ahead else 0
        self.held_bytes_peak = max(self.held_bytes_peak, self._held_bytes)
        self.ahead_bytes_peak = max(self.ahead_bytes_peak, self._ahead_bytes)
        return sequences

    def _no_longer_ahead(self, sequence: int, payload: _Payload) -> None:
        if payload.ahead:
            payload.ahead = False
            self._ahead_bytes -= self._num_bytes(sequence)

    def _let_go(self, sequence: int, payload: _Payload) -> None:
        self._no_longer_ahead(sequence, payload)
        if payload.taken:
            payload.taken = False
            self._held_bytes -= self._num_bytes(sequence)
        self._work_came.notify_all()

    def _work(self) -> None:
        while True:
            with self._work_came:
                sequences = None
                while not self._closed and (sequences := self._next()) is None:
                    self._work_came.wait()
                if self._closed or sequences is None:
                    return
            self._read(sequences)

    def _deliver(self, sequence: int, result: memoryview | BaseException) -> None:
        with self._data_came:
            payload = self._payloads[sequence]
            if isinstance(result, memoryview):
                payload.frames = result
            else:
                payload.error = result
                self._let_go(sequence, payload)
            self._data_came.notify_all()

    def _read(self, sequences: list[int]) -> None:
        """Read one range, and deliver every sequence of it or what is wrong with it."""
        left = list(sequences)
        try:
            data = self._read_range(sequences) if len(sequences) > 1 else None
            start = self._index.sequences[sequences[0]].offset
            for sequence in sequences:
                entry = self._index.sequences[sequence]
                begin = entry.offset - start
                # A copy: what is held of a sequence must not keep its whole range in memory.
                piece = None if data is None else data[begin : begin + entry.num_bytes]
                result = self._sequence(entry, piece)
                if isinstance(result, DataError) and not isinstance(result, DamagedError):
                    # A store that failed as a whole is not asked for the others, each with a deadline of its own.
                    raise result
                self._deliver(sequence, result)
                left.remove(sequence)
                if self._closed:
                    return
        except BaseException as error:
            for sequence in left:
                self._deliver(sequence, error)

    def _read_range(self, sequences: list[int]) -> bytes | None:
        """Read neighbours by one request; None where they have to be read one by one to tell which is damaged."""
        first, last = self._index.sequences[sequences[0]], self._index.sequences[sequences[-1]]
        shard = self._index.shards[first.shard].name
        began = time.perf_counter()
        try:
            data = self._storage.read(shard, first.offset, last.offset + last.num_bytes)
        except (DataError, OSError) as error:
            if isinstance(error, DamagedError):
                return None
            raise DataError(f"shard {shard}, keys {first.key} to {last.key}: cannot be read: {error}") from error
        self._count(len(data), time.perf_counter() - began)
        return data

    def _sequence(self, entry: SequenceEntry, piece: bytes | None) -> memoryview | BaseException:
        """Verify a sequence out of a range, or read it alone, also where it does not verify; or give its error."""
        begin = entry.frames_offset - entry.offset
        try:
            if piece is not None:
                try:
                    self._check(entry, piece)
                except DamagedError:
                    # It may have been damaged on the way, and alone it costs less than the whole range.
                    piece = None
            if piece is None:
                piece = self._read_alone(entry)
        except DataError as error:
            return error
        return memoryview(piece)[begin : begin + entry.frames_bytes]

    def _read_alone(self, entry: SequenceEntry) -> bytes:
        shard = self._index.shards[entry.shard].name
        began, checked_s, num_bytes = time.perf_counter(), 0.0, 0

        def check(data: bytes) -> None:
            nonlocal checked_s, num_bytes
            start, num_bytes = time.perf_counter(), len(data)
            try:
                self._check(entry, data)
            finally:
                checked_s += time.perf_counter() - start

        try:
            return self._storage.read_checked(shard, entry.offset, entry.offset + entry.num_bytes, check)
        except (DataError, OSError) as error:
            where = f"shard {shard}, key {entry.key}"
            text = str(error) if where in str(error) else f"{where}: cannot be read: {error}"
            raise (DamagedError if isinstance(error, DamagedError) else DataError)(text) from error
        finally:
            self._count(num_bytes, time.perf_counter() - began - checked_s)

    def _check(self, entry: SequenceEntry, data: bytes) -> None:
        began = time.perf_counter()
        try:
            check_sequence(self._index, entry, data)
        except DataError as error:
            raise DamagedError(str(error)) from error
        finally:
            with self._work_came:
                self.hash_s += time.perf_counter() - began

    def _count(self, num_bytes: int, read_s: float) -> None:
        with self._work_came:
            self.requests += 1
            self.bytes_read += num_bytes
            self.read_s += read_s
