"""Threads that read, verify, decode and cut ahead of the consumer, in a bounded amount of memory."""

import heapq
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from data.decode import Block, FrameCache, check_sequence
from data.frames import DataError
from data.shards import Index, SequenceEntry
from data.storage import Storage


class _ClosedError(Exception):
    """Wakes a thread that waits while everything is being closed; never seen outside."""


@dataclass
class _Payload:
    """A sequence on its way in or held compressed."""

    users: int
    frames: memoryview | None = None
    error: BaseException | None = None


class SequenceReader:
    """Reads and verifies sequences ahead of their use, soonest needed first, and holds them while somebody uses them.

    A sequence that fails is remembered as its error and raised where the sequence is used, so that a run stops at the
    same step whatever was read ahead. (This is where a quarantine will count and replace it.)

    Args:
        storage: Where the shards lie.
        index: Their index.
        threads: Reading threads.
    """

    def __init__(self, storage: Storage, index: Index, threads: int) -> None:
        self._storage, self._index = storage, index
        self._payloads: dict[int, _Payload] = {}
        self._queue: list[tuple[int, int]] = []
        self._changed = threading.Condition()
        self._closed = False
        self.requests, self.bytes_read, self.read_s, self.hash_s = 0, 0, 0.0, 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"rainspark-read-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def request(self, sequence: int, needed_at: int) -> None:
        """Ask for a sequence on behalf of one more user; `needed_at` orders the queue."""
        with self._changed:
            payload = self._payloads.get(sequence)
            if payload is not None:
                payload.users += 1
                return
            self._payloads[sequence] = _Payload(users=1)
            heapq.heappush(self._queue, (needed_at, sequence))
            self._changed.notify_all()

    def frames(self, sequence: int) -> memoryview:
        """Wait for a requested sequence: the data of its KEY.frames member.

        Raises:
            DataError: What was wrong with it, naming shard and key.
        """
        with self._changed:
            payload = self._payloads[sequence]
            while payload.frames is None and payload.error is None:
                if self._closed:
                    raise _ClosedError
                self._changed.wait()
        if payload.error is not None:
            raise payload.error
        assert payload.frames is not None
        return payload.frames

    def release(self, sequence: int) -> None:
        """Drop one user of a sequence, and the sequence with its last one."""
        with self._changed:
            payload = self._payloads[sequence]
            payload.users -= 1
            if payload.users == 0:
                del self._payloads[sequence]

    def close(self) -> None:
        """Stop and join the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                _, sequence = heapq.heappop(self._queue)
                payload = self._payloads.get(sequence)
            if payload is None:
                continue
            frames, error = None, None
            try:
                frames = self._read(self._index.sequences[sequence])
            except BaseException as caught:
                error = caught
            with self._changed:
                payload.frames, payload.error = frames, error
                self._changed.notify_all()

    def _read(self, entry: SequenceEntry) -> memoryview:
        shard = self._index.shards[entry.shard].name
        began = time.perf_counter()
        try:
            data = self._storage.read(shard, entry.offset, entry.offset + entry.num_bytes)
        except (DataError, OSError) as error:
            raise DataError(f"shard {shard}, key {entry.key}: cannot be read: {error}") from error
        read = time.perf_counter()
        check_sequence(self._index, entry, data)
        with self._changed:
            self.requests += 1
            self.bytes_read += len(data)
            self.read_s += read - began
            self.hash_s += time.perf_counter() - read
        begin = entry.frames_offset - entry.offset
        return memoryview(data)[begin : begin + entry.frames_bytes]


@dataclass(eq=False)
class StepArrays:
    """One rank's part of one global step while it is filled.

    Attributes:
        counts_mbthw: uint16 (m micro-steps, b, window, rows, cols).
        row_mb: int64 (m, b), window ids, -1 for padding.
        missing_mb: bool (m, b).
        tensor_mbthw: The same memory as torch sees it.
    """

    counts_mbthw: npt.NDArray[np.uint16]
    row_mb: npt.NDArray[np.int64]
    missing_mb: npt.NDArray[np.bool_]
    tensor_mbthw: torch.Tensor


class _Lane:
    """Where one lane stands: its open block, the one being read ahead, and the step to fill next."""

    def __init__(self, blocks: Iterator[Block], cache: FrameCache, first_step: int) -> None:
        self.blocks, self.cache, self.next_step = blocks, cache, first_step
        self.current: Block | None = None
        self.upcoming: Block | None = None
        self.position = 0
        self.last_use: dict[int, list[int]] = {}
        self.started, self.busy = False, False


class Pipeline:
    """Fills the steps [first_step, stop_step) with a number of threads, each lane by one thread at a time.

    What a step holds does not depend on the threads: a lane's windows are cut in order, into places of their own.

    Args:
        reader: Reads the sequences; closed with the pipeline.
        lanes: Each lane's blocks in order and its cache.
        new_arrays: Makes the arrays of a step.
        first_step: First step to fill.
        stop_step: One past the last.
        ahead: Steps filled beyond the one that the consumer waits for.
        threads: Decoding threads.
    """

    def __init__(
        self,
        reader: SequenceReader,
        lanes: list[tuple[Iterator[Block], FrameCache]],
        new_arrays: Callable[[], StepArrays],
        *,
        first_step: int,
        stop_step: int,
        ahead: int,
        threads: int,
    ) -> None:
        self._reader, self._new_arrays = reader, new_arrays
        self._lanes = [_Lane(blocks, cache, first_step) for blocks, cache in lanes]
        self._stop_step, self._ahead, self._consumer = stop_step, ahead, first_step
        self._arrays: dict[int, StepArrays] = {}
        self._errors: dict[int, BaseException] = {}
        self._changed = threading.Condition()
        self._arrays_lock = threading.Lock()
        self._closed = False
        self.stall_s = 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"rainspark-decode-{i}", daemon=True)
            for i in range(min(threads, len(lanes)))
        ]
        for thread in self._threads:
            thread.start()

    def get(self, step: int) -> StepArrays:
        """Wait for a step; steps are asked for in order.

        Raises:
            Exception: What went wrong in a thread while it filled this step.
        """
        began = time.perf_counter()
        with self._changed:
            self._consumer = step
            self._changed.notify_all()
            while any(lane.next_step <= step for lane in self._lanes):
                self._changed.wait()
            self.stall_s += time.perf_counter() - began
            failed = [number for number in sorted(self._errors) if number < (step + 1) * len(self._lanes)]
            if failed:
                raise self._errors[failed[0]]
            return self._arrays.pop(step)

    def close(self) -> None:
        """Stop and join all threads, the reader's too."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._reader.close()
        for thread in self._threads:
            thread.join()
        self._arrays.clear()

    def _work(self) -> None:
        while True:
            with self._changed:
                number = self._pick()
                while number is None and not self._closed:
                    self._changed.wait()
                    number = self._pick()
                if self._closed or number is None:
                    return
                lane = self._lanes[number]
                lane.busy = True
            error: BaseException | None = None
            try:
                self._fill(lane, lane.next_step)
            except _ClosedError:
                return
            except BaseException as caught:
                error = caught
            with self._changed:
                if error is not None:
                    self._errors[lane.next_step * len(self._lanes) + number] = error
                lane.next_step = lane.next_step + 1 if error is None else self._stop_step
                lane.busy = False
                self._changed.notify_all()

    def _pick(self) -> int | None:
        """Choose the idle lane that is furthest behind, if it may go on."""
        limit = min(self._stop_step, self._consumer + 1 + self._ahead)
        idle = [(lane.next_step, i) for i, lane in enumerate(self._lanes) if not lane.busy and lane.next_step < limit]
        return min(idle)[1] if idle else None

    def _fill(self, lane: _Lane, step: int) -> None:
        """Cut one lane's windows of one step."""
        with self._arrays_lock:
            if step not in self._arrays:
                self._arrays[step] = self._new_arrays()
            arrays = self._arrays[step]
        while not self._closed:
            if (lane.current is None or lane.position == len(lane.current)) and not self._next_block(lane):
                return
            block, number = lane.current, lane.position
            assert block is not None
            if block.step_n[number] != step:
                return
            micro_step, column = int(block.micro_step_n[number]), int(block.column_n[number])
            lane.cache.cut(block, number, self._reader.frames, arrays.counts_mbthw[micro_step, column])
            arrays.row_mb[micro_step, column] = block.row_n[number]
            arrays.missing_mb[micro_step, column] = block.missing_n[number]
            lane.position += 1
            for sequence in lane.last_use.pop(number, ()):
                self._reader.release(sequence)

    def _next_block(self, lane: _Lane) -> bool:
        """Open the lane's next block and start to read the one after it."""
        if not lane.started:
            lane.started = True
            lane.upcoming = self._request(lane)
        lane.current, lane.position = lane.upcoming, 0
        if lane.current is None:
            return False
        lane.cache.open_block(lane.current)
        for sequence, _, last in lane.current.sequences():
            lane.last_use.setdefault(last, []).append(sequence)
        lane.upcoming = self._request(lane)
        return True

    def _request(self, lane: _Lane) -> Block | None:
        block = next(lane.blocks, None)
        if block is not None:
            for sequence, step, _ in block.sequences():
                self._reader.request(sequence, step)
        return block
