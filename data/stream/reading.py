"""Read and verify sequences ahead of their use by threads: neighbours together, within a budget of bytes."""

import heapq
import itertools
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ..errors import DamagedError, DataError
from ..shards.decode import check_sequence, read_sequence
from ..shards.index import Index, SequenceEntry
from ..store.storage import Storage

RANGE_BYTES: Final = 8 * 2**20
"""Longest range that is asked of a store at once. tests/bench/storage.py: single sequences of 3 MB, 4, 8 and 16 MiB all
reach 99% of the client's own rate or more; 8 is also the longest that the storage sends as one request."""
HOLE_BYTES: Final = 64 * 2**10
"""Unused bytes read along between two neighbours: at 100 MB/s less than a millisecond, a request costs more."""
STORE_READERS: Final = 8
AWAITED: Final = -1
"""In the place of the step that needs a range first: somebody waits for it."""


class ClosedError(Exception):
    """Wakes a thread that waits while everything is being closed; never seen outside."""


@dataclass(eq=False)
class _Range:
    """Sequences of one shard, in order, that are read by one request; empty once they are being read."""

    needed_at: int
    sequences: list[int]


@dataclass(eq=False)
class _Payload:
    """A sequence that is waited for in line, on its way in, or held compressed.

    Attributes:
        users: Blocks that have yet to let go of it.
        line: The range that it waits in, None once it is being read.
        wanted: Whether somebody has asked for its data.
        held_bytes: Its bytes, once they are in flight or held.
        ahead_bytes: Those of them that count against the budget, until it is wanted.
        result: Its data, or why there is none.
    """

    users: int = 1
    line: _Range | None = None
    wanted: bool = False
    held_bytes: int = 0
    ahead_bytes: int = 0
    result: memoryview | BaseException | None = None


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

    Attributes:
        counts: Requests, bytes read, most bytes held and held ahead.
    """

    def __init__(self, storage: Storage, index: Index, *, readers: int, ahead_bytes: int, range_bytes: int) -> None:
        self._storage, self._index = storage, index
        self.ahead_bytes = ahead_bytes
        # Every thread can be at work within the budget.
        self._range_bytes = min(range_bytes, ahead_bytes // readers)
        self._payloads: dict[int, _Payload] = {}
        self._line: list[tuple[int, int, _Range]] = []
        self._line_number = itertools.count()

        lock = threading.Lock()
        self._work_came, self._data_came = threading.Condition(lock), threading.Condition(lock)
        self._closed = False
        self._held_bytes = self._ahead_bytes = 0
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
            new: dict[int, int] = {}
            for sequence, needed_at in needs:
                if sequence in self._payloads:
                    self._payloads[sequence].users += 1
                else:
                    self._payloads[sequence] = _Payload()
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
                self._stop_counting_ahead(payload)
                if payload.line is not None:
                    self._line_up(payload.line)
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

    def _neighbours(self, sequences: Iterable[int]) -> Iterable[list[int]]:
        """Gather sequences into ranges of those that lie next to each other."""
        entries = self._index.sequences
        ranges: list[list[int]] = []
        for sequence in sorted(sequences, key=lambda number: (entries[number].shard, entries[number].offset)):
            entry = entries[sequence]
            if ranges:
                first, last = entries[ranges[-1][0]], entries[ranges[-1][-1]]
                hole = entry.offset - last.offset - last.num_bytes
                num_bytes = entry.offset + entry.num_bytes - first.offset
                if entry.shard == last.shard and 0 <= hole <= HOLE_BYTES and num_bytes <= self._range_bytes:
                    ranges[-1].append(sequence)
                    continue
            ranges.append([sequence])
        return ranges

    def _line_up(self, waiting: _Range) -> None:
        """Put a range in line, before all others if somebody waits for a sequence of it."""
        for sequence in waiting.sequences:
            self._payloads[sequence].line = waiting
        awaited = any(self._payloads[sequence].wanted for sequence in waiting.sequences)
        needed_at = AWAITED if awaited else waiting.needed_at
        heapq.heappush(self._line, (needed_at, next(self._line_number), waiting))

    def _num_bytes(self, sequence: int) -> int:
        return self._index.sequences[sequence].num_bytes

    def _fits(self, sequences: list[int]) -> bool:
        added = sum(self._num_bytes(sequence) for sequence in sequences if not self._payloads[sequence].wanted)
        return self._ahead_bytes + added <= self.ahead_bytes

    def _next(self) -> list[int] | None:
        """Take what is to be read next: what somebody waits for, then the soonest needed if the budget allows."""
        while self._line:
            needed_at, _, waiting = self._line[0]
            if waiting.sequences and needed_at != AWAITED and not self._fits(waiting.sequences):
                return None
            heapq.heappop(self._line)
            # Ranges that somebody came to wait for stand in line twice.
            if waiting.sequences:
                return self._take(waiting)
        return None

    def _take(self, waiting: _Range) -> list[int]:
        """Take a range out of line, or only the sequence that is waited for if the budget lacks room for the others."""
        sequences, waiting.sequences = waiting.sequences, []
        if not self._fits(sequences):
            position = next(i for i, sequence in enumerate(sequences) if self._payloads[sequence].wanted)
            for others in (sequences[:position], sequences[position + 1 :]):
                if others:
                    self._line_up(_Range(waiting.needed_at, others))
            sequences = [sequences[position]]

        for sequence in sequences:
            payload, num_bytes = self._payloads[sequence], self._num_bytes(sequence)
            payload.line = None
            payload.held_bytes = num_bytes
            payload.ahead_bytes = 0 if payload.wanted else num_bytes
            self._held_bytes += payload.held_bytes
            self._ahead_bytes += payload.ahead_bytes
        for name, num_bytes in (("held_bytes_peak", self._held_bytes), ("ahead_bytes_peak", self._ahead_bytes)):
            self.counts[name] = max(self.counts[name], num_bytes)
        return sequences

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
        """Read range after range until closed."""
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
            payload.result = result
            if isinstance(result, BaseException):
                self._let_go(payload)
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
                self._deliver(sequence, self._verified(entry, piece))
                left.remove(sequence)
                if self._closed:
                    return
        except BaseException as error:
            # A store that failed as a whole is not asked for the others, each with a deadline of its own.
            for sequence in left:
                self._deliver(sequence, error)

    def _read_range(self, sequences: list[int]) -> bytes | None:
        """Read neighbours by one request; None where they have to be read one by one to find which is damaged."""
        first, last = self._index.sequences[sequences[0]], self._index.sequences[sequences[-1]]
        shard = self._index.shards[first.shard].name
        try:
            data = self._storage.read(shard, first.offset, last.offset + last.num_bytes)
        except DamagedError:
            return None
        except (DataError, OSError) as error:
            raise DataError(f"shard {shard}, keys {first.key} to {last.key}: cannot be read: {error}") from error
        self._count(requests=1, bytes_read=len(data))
        return data

    def _verified(self, entry: SequenceEntry, piece: bytes | None) -> memoryview | DamagedError:
        """Verify a sequence out of a range, or read it alone, also where it does not verify; or give its error."""
        if piece is not None:
            # What is wrong may have been damaged on the way, and read alone it costs less than the whole range.
            with suppress(DamagedError):
                check_sequence(self._index, entry, piece)
                return entry.frames_of(piece)
        try:
            return self._read_alone(entry)
        except DamagedError as error:
            return error

    def _read_alone(self, entry: SequenceEntry) -> memoryview:
        """Read and verify one sequence; a store reads it again where it does not verify."""
        self._count(requests=1, bytes_read=entry.num_bytes)
        try:
            return read_sequence(self._storage, self._index, entry)
        except (DataError, OSError) as error:
            where = f"shard {self._index.shards[entry.shard].name}, key {entry.key}"
            text = str(error) if where in str(error) else f"{where}: cannot be read: {error}"
            raise (DamagedError if isinstance(error, DamagedError) else DataError)(text) from error

    def _count(self, **added: float) -> None:
        with self._work_came:
            for name, value in added.items():
                self.counts[name] += value
