"""What training and evaluation streams share: memory for batches, caches, and one run of the threads."""

import weakref
from collections import deque
from collections.abc import Generator, Iterator
from threading import RLock

import blosc2
import numpy as np
import numpy.typing as npt
import torch

from data.decode import Block, FrameCache
from data.plan import BatchError, WindowTable, frame_bases
from data.prefetch import Pipeline, SequenceReader, StepArrays
from data.shards import Index
from data.storage import Storage

Run = tuple[SequenceReader, Pipeline, list[FrameCache]]
"""One iterator under way: what reads for it, what fills its steps, its decoded frames."""


class Feed:
    """Runs lanes of blocks through reading, decoding and cutting, and counts what was done.

    Args:
        storage: Where the shards lie.
        index: Their index.
        window: Frames a window.
        shape_mb: Micro-batches a step, and this rank's windows in each.
        threads: Decoding threads; as many again read.
        decoded_mb: Decoded frames held at most, MiB; shared out equally among the lanes.
        prefetch_steps: Steps made ready ahead of the consumer.
        pin_memory: Batches in page-locked memory.

    Raises:
        BatchError: For no threads, or a budget that holds less than one window.
    """

    def __init__(
        self,
        storage: Storage,
        index: Index,
        *,
        window: int,
        shape_mb: tuple[int, int],
        threads: int,
        decoded_mb: float,
        prefetch_steps: int,
        pin_memory: bool,
    ) -> None:
        frame_bytes = index.rows * index.cols * 2
        self._max_frames = int(decoded_mb * 2**20) // frame_bytes
        if self._max_frames < window:
            raise BatchError(
                f"decoded frames may take {decoded_mb} MiB, which holds {self._max_frames} frames of {index.rows} x "
                f"{index.cols} pixels; expected room for one window of {window} at least, "
                f"{window * frame_bytes / 2**20:.2f} MiB"
            )
        if threads < 1 or prefetch_steps < 0:
            raise BatchError(f"{threads} threads, {prefetch_steps} steps ahead; expected at least 1 thread and 0 steps")
        if pin_memory and not torch.cuda.is_available():
            raise BatchError("pinned memory was asked for on a machine without a CUDA device; set it to false")
        self._storage, self._index, self._window, self._threads = storage, index, window, threads
        self._ahead = prefetch_steps
        self._memory = _StepMemory((*shape_mb, window, index.rows, index.cols), pin_memory)
        self._done: dict[str, float] = {}
        self._running: list[Run] = []
        # Reentrant: an iterator that is collected as garbage closes in whatever thread and line that happens.
        self._lock = RLock()

    def run(
        self, lanes: list[Iterator[Block]], first_step: int, stop_step: int
    ) -> Generator[tuple[int, StepArrays], None, None]:
        """Give the filled steps in order; threads start at the first and are joined at the end, however it comes."""
        blosc2.set_releasegil(True)
        caches = [FrameCache(self._index, self._window, self._max_frames // len(lanes)) for _ in lanes]
        reader = SequenceReader(self._storage, self._index, self._threads)
        pipeline = Pipeline(
            reader,
            list(zip(lanes, caches, strict=True)),
            self._memory.new,
            first_step=first_step,
            stop_step=stop_step,
            ahead=self._ahead,
            threads=self._threads,
        )
        run = (reader, pipeline, caches)
        with self._lock:
            self._running.append(run)
        try:
            for step in range(first_step, stop_step):
                yield step, pipeline.get(step)
        finally:
            pipeline.close()
            with self._lock:
                self._done = _sum_of(self._done, list(self._running), finished=run)
                self._running.remove(run)

    def stats(self) -> dict[str, float]:
        """Report counts, bytes and seconds so far; seconds are summed over threads, `stall_s` is the consumer's."""
        with self._lock:
            return _sum_of(self._done, list(self._running))


def _sum_of(done: dict[str, float], running: list[Run], finished: Run | None = None) -> dict[str, float]:
    """Add the counts of the runs under way, or of one that ended only, to those of runs before.

    Memory is held by all that run together, so its peak counts them all either way.
    """
    totals = dict(done)
    for reader, pipeline, caches in running if finished is None else [finished]:
        added: dict[str, float] = {
            "requests": reader.requests,
            "bytes_read": reader.bytes_read,
            "read_s": reader.read_s,
            "hash_s": reader.hash_s,
            "windows": sum(cache.counts.windows for cache in caches),
            "frames_decoded": sum(cache.counts.frames_decoded for cache in caches),
            "decode_s": sum(cache.counts.decode_s for cache in caches),
            "cut_s": sum(cache.counts.cut_s for cache in caches),
            "stall_s": pipeline.stall_s,
        }
        for name, value in added.items():
            totals[name] = totals.get(name, 0) + value
    if running:
        peak = sum(cache.counts.held_bytes_peak for _, _, caches in running for cache in caches)
        totals["decoded_bytes_peak"] = max(totals.get("decoded_bytes_peak", 0), peak)
    return totals


class _StepMemory:
    """Memory for steps. New pages cost as much as copying the windows into them, so it is used again.

    Page-locked memory comes from torch's own cache, which also waits for copies to the device that still read it.
    """

    def __init__(self, shape_mbthw: tuple[int, ...], pin_memory: bool) -> None:
        self._shape, self._pin_memory = shape_mbthw, pin_memory
        self._free: deque[npt.NDArray[np.uint16]] = deque()

    def new(self) -> StepArrays:
        """Make the arrays of one step; their counts are not cleared."""
        if self._pin_memory:
            tensor = torch.empty(self._shape, dtype=torch.uint16, pin_memory=True)
            counts = tensor.numpy()
        else:
            try:
                counts = self._free.pop()
            except IndexError:
                counts = np.empty(self._shape, np.uint16)
            # torch keeps the view alive for as long as any tensor shares the storage.
            view = counts.view()
            weakref.finalize(view, self._free.append, counts).atexit = False
            tensor = torch.from_numpy(view)
        return StepArrays(
            counts_mbthw=counts,
            row_mb=np.full(self._shape[:2], -1, np.int64),
            missing_mb=np.zeros(self._shape[:2], bool),
            tensor_mbthw=tensor,
        )


def missing_before(index: Index) -> npt.NDArray[np.int64]:
    """Count frames with missing pixels before each frame of the archive, numbered as `frame_bases` does: (n + 1,)."""
    missing = np.concatenate([np.asarray(entry.missing, np.int64) > 0 for entry in index.sequences])
    return np.concatenate([[0], np.cumsum(missing)])


class BlockMaker:
    """Makes blocks from rows of a window table."""

    def __init__(self, index: Index, table: WindowTable) -> None:
        self._table = table
        self._base, self._missing_before = frame_bases(index), missing_before(index)

    def block(
        self,
        row_n: npt.NDArray[np.int64],
        step_n: npt.NDArray[np.int64],
        micro_step_n: npt.NDArray[np.int64],
        column_n: npt.NDArray[np.int64],
    ) -> Block:
        """Look up what rows (-1 for padding) stand for; the other arguments are as in `Block`."""
        real = row_n >= 0
        sequence = np.where(real, self._table.sequence[row_n], -1).astype(np.int64)
        start = np.where(real, self._table.start[row_n], 0).astype(np.int64)
        first = np.where(real, self._base[sequence] + start, 0)
        missing = self._missing_before[first + self._table.window] > self._missing_before[first]
        return Block(
            sequence_n=sequence,
            start_n=start,
            row_n=row_n,
            step_n=step_n,
            micro_step_n=micro_step_n,
            column_n=column_n,
            missing_n=missing & real,
        )
