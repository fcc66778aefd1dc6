"""Threads that decode and cut the windows of steps ahead of the consumer, in a bounded amount of memory."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from ..errors import DamagedError, DataError
from ..units import MISSING_COUNT
from .frame_cache import Block, FrameCache
from .quarantine import Quarantine
from .reading import ClosedError, SequenceReader

# Of small blocks, one ahead is not enough to keep a store busy; of large ones, it fills the budget.
AHEAD_BLOCKS: Final = 4


@dataclass(eq=False)
class StepArrays:
    """One rank's part of one global step while it is filled.

    Attributes:
        counts_mbthw: uint16 (m micro-steps, b, window, rows, cols).
        row_mb: int64 (m, b), window ids, -1 for padding and for what was lost.
        missing_mb: bool (m, b).
        tensor_mbthw: The same memory as torch sees it.
    """

    counts_mbthw: npt.NDArray[np.uint16]
    row_mb: npt.NDArray[np.int64]
    missing_mb: npt.NDArray[np.bool_]
    tensor_mbthw: torch.Tensor


class _Lane:
    """Where one lane stands: its open block, those being read ahead with their bytes, and the step to fill next."""

    def __init__(self, number: int, blocks: Iterator[Block], cache: FrameCache, first_step: int) -> None:
        self.number, self.blocks, self.cache, self.next_step = number, blocks, cache, first_step
        self.current: Block | None = None
        self.upcoming: deque[tuple[Block, int]] = deque()
        self.position = 0
        self.last_use: dict[int, list[int]] = {}
        self.busy = False


class Pipeline:
    """Fills the steps [first_step, stop_step) with a number of threads, each lane by one thread at a time.

    What a step holds does not depend on the threads: a lane's windows are cut in order, into places of their own.
    A window is lost exactly when its sequence cannot be read or verified, or one of its own frames cannot be decoded;
    losses are counted when the consumer takes the step, in the order of steps and lanes, whatever was found ahead.

    Args:
        reader: Reads the sequences; closed with the pipeline.
        lanes: Each lane's blocks in order and its cache.
        new_arrays: Makes the arrays of a step.
        quarantine: Counts what is lost, and stops the run beyond its budget.
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
        quarantine: Quarantine,
        *,
        first_step: int,
        stop_step: int,
        ahead: int,
        threads: int,
    ) -> None:
        self._reader, self._new_arrays, self._quarantine = reader, new_arrays, quarantine
        self._lanes = [_Lane(number, blocks, cache, first_step) for number, (blocks, cache) in enumerate(lanes)]
        self._stop_step, self._ahead, self._consumer = stop_step, ahead, first_step
        self._arrays: dict[int, StepArrays] = {}
        self._errors: dict[int, BaseException] = {}
        self._losses: dict[int, list[tuple[_Lane, int, DamagedError]]] = {}
        self._changed = threading.Condition()
        self._arrays_lock, self._start_lock = threading.Lock(), threading.Lock()
        self._are_lanes_started = False
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
            DamagedError: This step needs a sequence that is lost, beyond what may be.
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
            losses = self._losses.pop(step, [])
            arrays = self._arrays.pop(step)
        # Of one lane they stand in order.
        for _, sequence, error in sorted(losses, key=lambda loss: loss[0].number):
            self._quarantine.admit(sequence, error)
        return arrays

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
            except ClosedError:
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
            error = self._cut(lane, block, arrays.counts_mbthw[micro_step, column])
            if error is None:
                arrays.row_mb[micro_step, column] = block.row_n[number]
                arrays.missing_mb[micro_step, column] = block.missing_n[number]
            else:
                arrays.counts_mbthw[micro_step, column] = MISSING_COUNT
                arrays.missing_mb[micro_step, column] = True
                with self._changed:
                    self._losses.setdefault(step, []).append((lane, int(block.sequence_n[number]), error))
            lane.position += 1
            for sequence in lane.last_use.pop(number, ()):
                self._reader.release(sequence)

    def _cut(self, lane: _Lane, block: Block, counts_thw: npt.NDArray[np.uint16]) -> DamagedError | None:
        """Cut the lane's next window, or tell what keeps it from being cut; errors of the store as a whole pass."""
        sequence = int(block.sequence_n[lane.position])
        try:
            if sequence >= 0:
                self._reader.frames(sequence)
        except DamagedError as error:
            return error
        try:
            lane.cache.cut(block, lane.position, self._reader.frames, counts_thw)
        except DataError as error:
            return DamagedError(str(error))
        return None

    def _next_block(self, lane: _Lane) -> bool:
        """Open the lane's next block and have those after it read."""
        self._start_lanes()
        lane.current, lane.position = None, 0
        if not lane.upcoming:
            return False
        lane.current, _ = lane.upcoming.popleft()
        lane.cache.open_block(lane.current)
        for sequence, _, last in lane.current.sequences():
            lane.last_use.setdefault(last, []).append(sequence)
        self._read_ahead(lane)
        return True

    def _start_lanes(self) -> None:
        """Ask once for every lane's first block, before any is read further ahead: the first step needs them all."""
        with self._start_lock:
            if not self._are_lanes_started:
                self._are_lanes_started = True
                for lane in self._lanes:
                    self._read_ahead(lane, 1)

    def _read_ahead(self, lane: _Lane, most_blocks: int = AHEAD_BLOCKS) -> None:
        """Ask for the lane's next block, and for more while they fit into its share of what may be held ahead."""
        share = self._reader.ahead_bytes // len(self._lanes)
        while len(lane.upcoming) < most_blocks:
            if lane.upcoming and sum(num_bytes for _, num_bytes in lane.upcoming) >= share:
                return
            block = next(lane.blocks, None)
            if block is None:
                return
            num_bytes = self._reader.request([(sequence, step) for sequence, step, _ in block.sequences()])
            lane.upcoming.append((block, num_bytes))
