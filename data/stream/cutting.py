"""Decode and cut the windows of steps ahead of the consumer, by threads, in a bounded amount of memory."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from ..errors import DamagedError, DataError
from ..units import MISSING_COUNT
from .blocks import Block
from .frame_cache import FrameCache
from .reading import SequenceReader

# Of small blocks, one ahead is not enough to keep a store busy; of large ones, it fills the budget.
AHEAD_BLOCKS: Final = 4

Losses = list[tuple[int, DamagedError]]
"""Sequences that windows of a step needed and that are lost, in the order of the windows."""


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


@dataclass(eq=False)
class _Lane:
    """Where one lane stands.

    Attributes:
        blocks: Its blocks, in order.
        cache: Its decoded frames.
        upcoming: Blocks that are being read ahead, with their bytes.
        current: The block that windows are cut from.
        position: The window of it that is cut next.
        last_use: For each window of it, the sequences that no later one needs.
        asked: Steps to fill, in order, with what holds them and their losses; the first one is at work.
    """

    blocks: Iterator[Block]
    cache: FrameCache
    upcoming: deque[tuple[Block, int]] = field(default_factory=deque)
    current: Block | None = None
    position: int = 0
    last_use: dict[int, list[int]] = field(default_factory=dict)
    asked: deque[tuple[int, StepArrays, Future[Losses]]] = field(default_factory=deque)


class StepFiller:
    """Fills the steps [first_step, stop_step) with a number of threads, each lane by one thread at a time.

    What a step holds does not depend on the threads: a lane's windows are cut in order, into places of their own.
    A window is lost exactly when its sequence cannot be read or verified, or one of its own frames cannot be decoded.

    Args:
        reader: Reads the sequences; closed with the filler.
        lanes: Each lane's blocks in order and its cache.
        new_arrays: Makes the arrays of a step.
        first_step: First step to fill.
        stop_step: One past the last.
        ahead: Steps filled beyond the one that the consumer waits for.
        threads: Decoding threads.

    Attributes:
        counts: Seconds that the consumer waited.
    """

    def __init__(
        self,
        reader: SequenceReader,
        lanes: Sequence[tuple[Iterator[Block], FrameCache]],
        new_arrays: Callable[[], StepArrays],
        *,
        first_step: int,
        stop_step: int,
        ahead: int,
        threads: int,
    ) -> None:
        self._reader, self._new_arrays = reader, new_arrays
        self._lanes = [_Lane(blocks, cache) for blocks, cache in lanes]
        self._unasked, self._ahead = iter(range(first_step, stop_step)), ahead
        self._filling: deque[tuple[StepArrays, list[Future[Losses]]]] = deque()
        self._executor = ThreadPoolExecutor(min(threads, len(lanes)), thread_name_prefix="rainspark-decode")
        self._lock = threading.Lock()
        self._started = self._closed = False
        self.counts: dict[str, float] = {"stall_s": 0.0}

    def take(self) -> tuple[StepArrays, Losses]:
        """Wait for the next step: its arrays, and what it lost in the order of lanes.

        Raises:
            Exception: What went wrong in a thread while it filled this step.
        """
        began = time.perf_counter()
        if not self._started:
            self._started = True
            # The first step needs every lane's first block: no lane is read further ahead before all have asked.
            for lane in self._lanes:
                self._read_ahead(lane, most_blocks=1)
        while len(self._filling) <= self._ahead and (step := next(self._unasked, None)) is not None:
            self._ask(step)

        arrays, futures = self._filling.popleft()
        losses = [loss for future in futures for loss in future.result()]
        self.counts["stall_s"] += time.perf_counter() - began
        return arrays, losses

    def close(self) -> None:
        """Stop and join all threads, the reader's too."""
        self._closed = True
        self._reader.close()
        self._executor.shutdown(cancel_futures=True)
        self._filling.clear()

    def _ask(self, step: int) -> None:
        """Have every lane fill its windows of a step, once it has filled those of the steps before."""
        arrays, futures = self._new_arrays(), []
        for lane in self._lanes:
            future: Future[Losses] = Future()
            futures.append(future)
            with self._lock:
                lane.asked.append((step, arrays, future))
                is_idle = len(lane.asked) == 1
            if is_idle:
                self._executor.submit(self._work, lane)
        self._filling.append((arrays, futures))

    def _work(self, lane: _Lane) -> None:
        """Fill one step's windows of a lane; its next step goes to the end of the line, behind the other lanes."""
        step, arrays, future = lane.asked[0]
        try:
            future.set_result(self._fill(lane, step, arrays))
        except BaseException as error:
            # Raised by `take`, at the step that it concerns.
            future.set_exception(error)
        with self._lock:
            lane.asked.popleft()
            goes_on = bool(lane.asked) and not self._closed
        if goes_on:
            self._executor.submit(self._work, lane)

    def _fill(self, lane: _Lane, step: int, arrays: StepArrays) -> Losses:
        """Cut one lane's windows of one step."""
        losses: Losses = []
        while not self._closed:
            if (lane.current is None or lane.position == len(lane.current)) and not self._next_block(lane):
                break
            block, number = lane.current, lane.position
            assert block is not None
            if block.step_n[number] != step:
                break

            # Every window has a place of its own: lanes never write into each other's.
            where = int(block.micro_step_n[number]), int(block.column_n[number])
            error = self._cut(lane, block, arrays.counts_mbthw[where])
            if error is None:
                arrays.row_mb[where] = block.row_n[number]
                arrays.missing_mb[where] = block.missing_n[number]
            else:
                arrays.counts_mbthw[where] = MISSING_COUNT
                arrays.missing_mb[where] = True
                losses.append((int(block.sequence_n[number]), error))

            lane.position += 1
            for sequence in lane.last_use.pop(number, ()):
                self._reader.release(sequence)
        return losses

    def _cut(self, lane: _Lane, block: Block, counts_thw: npt.NDArray[np.uint16]) -> DamagedError | None:
        """Cut the lane's next window, or give what keeps it from being cut; errors of the store as a whole pass."""
        # A sequence that is damaged or gone loses this window; a store that fails as a whole raises.
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
        lane.current, lane.position = None, 0
        if not lane.upcoming:
            return False
        lane.current, _ = lane.upcoming.popleft()
        lane.cache.open_block(lane.current)
        # A sequence is let go with the last window of the block that needs it.
        for sequence, _, last in lane.current.sequences():
            lane.last_use.setdefault(last, []).append(sequence)
        self._read_ahead(lane)
        return True

    def _read_ahead(self, lane: _Lane, most_blocks: int = AHEAD_BLOCKS) -> None:
        """Ask for the lane's next block, and for more while they fit into its share of what may be held ahead."""
        share = self._reader.ahead_bytes // len(self._lanes)
        while len(lane.upcoming) < most_blocks:
            if lane.upcoming and sum(num_bytes for _, num_bytes in lane.upcoming) >= share:
                return
            block = next(lane.blocks, None)
            if block is None:
                return
            # Soonest needed first: steps tell the reader what to fetch before what.
            num_bytes = self._reader.request([(sequence, step) for sequence, step, _ in block.sequences()])
            lane.upcoming.append((block, num_bytes))
