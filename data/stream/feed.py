"""What training and evaluation streams share: memory for batches, caches, and one run of the threads."""

import weakref
from collections import deque
from collections.abc import Generator, Iterator
from threading import RLock

import blosc2
import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError
from ..shards.index import Index
from ..shards.timeline import frame_bases
from ..store.storage import Storage
from ..windows.selection import WindowTable
from .cutting import Pipeline, StepArrays
from .frame_cache import Block, FrameCache
from .quarantine import LostSequence, Quarantine
from .reading import RANGE_BYTES, STORE_READERS, SequenceReader

Run = tuple[SequenceReader, Pipeline, list[FrameCache]]
"""One iterator under way: what reads for it, what fills its steps, its decoded frames."""


class Feed:
    """Runs lanes of blocks through reading, decoding and cutting, and counts what was done.

    Args:
        storage: Where the shards lie.
        index: Their index.
        window: Frames a window.
        shape_mb: Micro-batches a step, and this rank's windows in each.
        threads: Decoding threads.
        decoded_mb: Decoded frames held at most, MiB; shared out equally among the lanes.
        prefetch_steps: Steps made ready ahead of the consumer.
        pin_memory: Batches in page-locked memory.
        prefetch_mb: Compressed sequences in flight or held that no lane has come to yet, at most, MiB.
        readers: Reading threads; None for as many as decode of a folder, 8 of a store.
        quarantine: Sequences that may be lost; their windows are delivered as wholly missing, with row -1. It is told
            in `stats` and `lost` and logged; a sequence that was lost is tried again in the next epoch.

    Raises:
        ConfigError: For no threads, or a budget that holds less than one window.
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
        prefetch_mb: float,
        readers: int | None,
        quarantine: int,
    ) -> None:
        frame_bytes = index.rows * index.cols * 2
        self._max_frames = int(decoded_mb * 2**20) // frame_bytes
        if self._max_frames < window:
            raise ConfigError(
                f"decoded frames may take {decoded_mb} MiB, which holds {self._max_frames} frames of {index.rows} x "
                f"{index.cols} pixels; expected room for one window of {window} at least, "
                f"{window * frame_bytes / 2**20:.2f} MiB"
            )
        if threads < 1 or prefetch_steps < 0:
            raise ConfigError(
                f"{threads} threads, {prefetch_steps} steps ahead; expected at least 1 thread and 0 steps"
            )
        if prefetch_mb < 0 or (readers is not None and readers < 1) or quarantine < 0:
            raise ConfigError(
                f"{prefetch_mb} MiB to read ahead, {readers} reading threads, a quarantine of {quarantine} sequences; "
                "expected at least 0, 1 and 0"
            )
        if pin_memory and not torch.cuda.is_available():
            raise ConfigError("pinned memory was asked for on a machine without a CUDA device; set it to false")
        self._storage, self._index, self._window, self._threads = storage, index, window, threads
        in_folder = storage.folder is not None
        self._readers = readers or (threads if in_folder else STORE_READERS)
        self._prefetch_bytes = int(prefetch_mb * 2**20)
        # A folder has no latency that a longer range would save.
        self._range_bytes = 0 if in_folder else RANGE_BYTES
        self._quarantine = Quarantine(index, quarantine)
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
        reader = SequenceReader(
            self._storage,
            self._index,
            readers=self._readers,
            ahead_bytes=self._prefetch_bytes,
            range_bytes=self._range_bytes,
        )
        pipeline = Pipeline(
            reader,
            list(zip(lanes, caches, strict=True)),
            self._memory.new,
            self._quarantine,
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
        """Report counts, bytes and seconds so far; seconds are summed over threads, `stall_s` is the consumer's.

        `requests` and `bytes_read` are the ranges that this feed asked for; what the storage did since it was opened,
        for whomever, stands beside them: `store_requests` and `store_bytes_read` with all tries, and its other counts
        (`retries`, `wait_s`, a cache's hits) under their own names.
        """
        with self._lock:
            totals = _sum_of(self._done, list(self._running))
        for name, count in self._storage.stats().items():
            totals[f"store_{name}" if name in ("requests", "bytes_read", "bytes_written") else name] = count
        return {**totals, "quarantined": len(self._quarantine.lost()), "windows_lost": self._quarantine.windows}

    def lost(self) -> tuple[LostSequence, ...]:
        """List the sequences that were lost so far."""
        return self._quarantine.lost()


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
        for name in ("held_bytes_peak", "ahead_bytes_peak"):
            peak = sum(getattr(reader, name) for reader, _, _ in running)
            totals[name] = max(totals.get(name, 0), peak)
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
        scale_mmh_o = np.array([origin.scale_mmh for origin in index.origins], np.float64)
        self._scale_mmh_s = scale_mmh_o[[entry.origin for entry in index.sequences]]

    def scale_mmh(self, row_b: npt.NDArray[np.int64]) -> torch.Tensor:
        """Give the rain rate of one count of each row's window, mm/h, float64 (b,); 1 for padding."""
        return torch.from_numpy(np.where(row_b >= 0, self._scale_mmh_s[self._table.sequence[row_b]], 1.0))

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
