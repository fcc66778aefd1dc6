"""Run the threads that read, decode and cut for a stream, in memory that is used again, and count what they did."""

import weakref
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError
from ..shards.blosc import blosc2
from ..shards.index import Index
from ..store.storage import Storage
from ..units import MISSING_COUNT
from ..windows.selection import WindowTable
from .blocks import Block, BlockMaker
from .cutting import StepArrays, StepFiller
from .frame_cache import FrameCache
from .options import ReadOptions
from .quarantine import LostSequence, Quarantine
from .reading import STORE_READERS, SequenceReader

PEAKS: Final = ("decoded_bytes_peak", "held_bytes_peak", "ahead_bytes_peak")


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One rank's part of one micro-batch.

    Attributes:
        counts_bthw: uint16 (b, window, rows, cols) on the CPU, pinned if asked for; 65535 is missing, padding is 0.
        scale_mmh_b: float64 (b,) on the CPU: rain rate of one count of each window, mm/h; 1 for padding.
        has_missing: Whether any pixel is missing.
        window_b: int64 (b,), rows of the window table, -1 for padding.
        index_b: int64 (b,), place in the global batch, the same whatever the world size.
        step: Global step (of an evaluation: its own, from 0).
        micro_step: Which micro-batch of the step.
        epoch: Passes over the data before this one.
    """

    counts_bthw: torch.Tensor
    scale_mmh_b: torch.Tensor
    has_missing: bool
    window_b: npt.NDArray[np.int64]
    index_b: npt.NDArray[np.int64]
    step: int
    micro_step: int
    epoch: int


class Feed:
    """Turns lanes of blocks into batches.

    Args:
        storage: Where the shards lie.
        index: Their index.
        table: The windows.
        index_mb: int64 (micro-batches a step, this rank's windows in each), places in the global batch.
        steps_per_epoch: Steps that read all windows once.
        options: Threads, memory and tolerated losses.

    Attributes:
        maker: Makes the blocks.

    Raises:
        ConfigError: For a budget that holds less than one window, or pinned memory without a device.
    """

    def __init__(
        self,
        storage: Storage,
        index: Index,
        table: WindowTable,
        *,
        index_mb: npt.NDArray[np.int64],
        steps_per_epoch: int,
        options: ReadOptions,
    ) -> None:
        frame_bytes = index.rows * index.cols * 2
        self._max_frames = int(options.decoded_mb * 2**20) // frame_bytes
        if self._max_frames < table.window:
            raise ConfigError(
                f"decoded frames may take {options.decoded_mb} MiB, which holds {self._max_frames} frames of "
                f"{index.rows} x {index.cols} pixels; expected room for one window of {table.window} at least, "
                f"{table.window * frame_bytes / 2**20:.2f} MiB"
            )
        if options.pin_memory and not torch.cuda.is_available():
            raise ConfigError("pinned memory was asked for on a machine without a CUDA device; set it to false")

        self.maker = BlockMaker(index, table)
        self._storage, self._index, self._window, self._options = storage, index, table.window, options
        self._index_mb, self._steps_per_epoch = index_mb, steps_per_epoch
        self._memory = _StepMemory((*index_mb.shape, table.window, index.rows, index.cols), options.pin_memory)
        self._quarantine = Quarantine(index, options.quarantine)
        # What every iterator so far has counted: its reader, its filler, and the caches of its lanes.
        self._counts: list[list[dict[str, float]]] = []

    def batches(
        self, lanes: Sequence[Iterator[Block]], first_step: int, stop_step: int
    ) -> Generator[list[Batch], None, None]:
        """Give the micro-batches of each step; threads start at the first one and are joined at the end.

        Raises:
            DamagedError: A step needs a sequence that is lost, beyond what may be.
            DataError: The store failed as a whole, at the step that needs what it was asked for.
        """
        blosc2.set_releasegil(True)
        # Each iterator has threads and caches of its own, which end with it.
        in_folder = self._storage.folder is not None
        reader = SequenceReader(
            self._storage,
            self._index,
            readers=self._options.readers or (self._options.threads if in_folder else STORE_READERS),
            ahead_bytes=int(self._options.prefetch_mb * 2**20),
        )
        caches = [FrameCache(self._index, self._window, self._max_frames // len(lanes)) for _ in lanes]
        filler = StepFiller(
            reader,
            list(zip(lanes, caches, strict=True)),
            self._memory.new,
            first_step=first_step,
            stop_step=stop_step,
            ahead=self._options.prefetch_steps,
            threads=self._options.threads,
        )
        self._counts.append([reader.counts, filler.counts, *(cache.counts for cache in caches)])

        try:
            for step in range(first_step, stop_step):
                arrays, losses = filler.take()
                for sequence, error in losses:
                    self._quarantine.admit(sequence, error)
                batches = self._batches_of(arrays, step)
                # What this frame still held while it waits for the next step could not be used for it.
                del arrays, losses
                yield batches
                del batches
        finally:
            filler.close()

    def missing(self, step: int) -> list[Batch]:
        """Give a step's micro-batches with nothing in them."""
        arrays = self._memory.new()
        arrays.counts_mbthw[:] = MISSING_COUNT
        arrays.missing_mb[:] = True
        return self._batches_of(arrays, step)

    def stats(self) -> dict[str, float]:
        """Report counts and bytes so far, and `stall_s`, seconds that the consumer waited; peaks are one iterator's.

        `requests` and `bytes_read` are the ranges that this feed asked for; what the storage did since it was opened,
        for whomever, stands beside them: `store_requests` and `store_bytes_read` with all tries, and its other counts
        (`retries`, `wait_s`, a cache's hits) under their own names.
        """
        totals: dict[str, float] = {}
        # Counts add up over iterators; of peaks the highest counts.
        for of_iterator in self._counts:
            for name in {name for counts in of_iterator for name in counts}:
                count = sum(counts.get(name, 0) for counts in of_iterator)
                before = totals.get(name, 0)
                totals[name] = max(before, count) if name in PEAKS else before + count
        for name, count in self._storage.stats().items():
            totals[f"store_{name}" if name in ("requests", "bytes_read", "bytes_written") else name] = count
        return {**totals, "quarantined": len(self._quarantine.lost()), "windows_lost": self._quarantine.windows}

    def lost(self) -> tuple[LostSequence, ...]:
        """List the sequences that were lost so far."""
        return self._quarantine.lost()

    def _batches_of(self, arrays: StepArrays, step: int) -> list[Batch]:
        return [
            Batch(
                counts_bthw=arrays.tensor_mbthw[micro_step],
                scale_mmh_b=self.maker.scale_mmh(arrays.row_mb[micro_step]),
                has_missing=bool(arrays.missing_mb[micro_step].any()),
                window_b=arrays.row_mb[micro_step],
                index_b=index_b,
                step=step,
                micro_step=micro_step,
                epoch=step // self._steps_per_epoch,
            )
            for micro_step, index_b in enumerate(self._index_mb)
        ]


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
