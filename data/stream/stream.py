"""Plan and shards to batches: what one rank trains or is evaluated on, in order, read and decoded ahead by threads."""

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError
from ..shards.index import Index
from ..store.storage import Storage
from ..units import MISSING_COUNT
from ..windows.mixing import check_batches, default_block_bytes, mix_sources
from ..windows.plan import LaneOrder, evaluation_plan, gather_blocks, order_lanes, run_numbers
from ..windows.selection import WindowTable
from .cutting import StepArrays
from .feed import BlockMaker, Feed
from .frame_cache import Block
from .quarantine import LostSequence


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


@dataclass(frozen=True)
class _LanePart:
    """The share of one lane that one rank reads: places [begin, end) of the lane's places in every micro-batch."""

    lane: int
    begin: int
    end: int
    column: int


class Stream:
    """The training windows of one rank.

    Memory: compressed sequences of a block a lane, and `prefetch_mb` ahead of them; decoded frames within `decoded_mb`;
    and batches of `prefetch_steps` + 1 steps beside those that the consumer holds. A batch's memory is used again once
    every tensor that shares it is gone.

    Args:
        storage: Where the shards lie.
        index: Their index.
        table: The windows.
        seed: The run's seed.
        global_batch: Windows a step, over all ranks.
        micro_batch: Windows of one forward pass, over all ranks.
        lanes: Places in the archive that a micro-batch is read from.
        block_bytes: Compressed bytes that a lane shuffles together.
        weights: Each source's share of the windows of every batch; None: as many as it has (`data.windows.mixing`).
        rank: This process.
        world_size: Number of processes.
        threads: Decoding threads.
        decoded_mb: Decoded frames held at most, MiB.
        prefetch_steps: Steps made ready ahead of the consumer.
        pin_memory: Batches in page-locked memory, for copies to a GPU that nobody waits for.
        prefetch_mb: Compressed sequences read ahead of the lanes at most, MiB.
        readers: Reading threads; None for as many as decode of a folder, 8 of a store.
        quarantine: Sequences that this rank may lose, see `Feed`.

    Raises:
        ConfigError: For sizes that do not fit together, or a budget that holds less than one window.
    """

    def __init__(
        self,
        storage: Storage,
        index: Index,
        table: WindowTable,
        *,
        seed: int,
        global_batch: int,
        micro_batch: int,
        lanes: int,
        block_bytes: int,
        weights: Mapping[str, float] | None = None,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
        decoded_mb: float = 1024,
        prefetch_steps: int = 2,
        pin_memory: bool = False,
        prefetch_mb: float = 512,
        readers: int | None = None,
        quarantine: int = 0,
    ) -> None:
        check_batches(
            num_windows=len(table),
            global_batch=global_batch,
            micro_batch=micro_batch,
            lanes=lanes,
            world_size=world_size,
        )
        check_rank(rank, world_size)
        self._plan: dict[str, Any] = {
            "seed": seed,
            "global_batch": global_batch,
            "micro_batch": micro_batch,
            "lanes": lanes,
            "block_bytes": block_bytes,
            "weights": None if weights is None else dict(weights),
        }
        self.shares = mix_sources(
            index, table, global_batch=global_batch, micro_batch=micro_batch, lanes=lanes, weights=weights
        )
        self._index, self._table, self._maker = index, table, BlockMaker(index, table)
        self._micro_steps = global_batch // micro_batch
        self._micro_batch, self._per_lane, self._part = micro_batch, micro_batch // lanes, micro_batch // world_size
        self._first_place = rank * self._part
        self.steps_per_epoch = len(table) // global_batch
        self._feed = Feed(
            storage,
            index,
            window=table.window,
            shape_mb=(self._micro_steps, self._part),
            threads=threads,
            decoded_mb=decoded_mb,
            prefetch_steps=prefetch_steps,
            pin_memory=pin_memory,
            prefetch_mb=prefetch_mb,
            readers=readers,
            quarantine=quarantine,
        )

    def steps(self, first_step: int, stop_step: int) -> Generator[list[Batch], None, None]:
        """Give the micro-batches of the steps [first_step, stop_step), one step at a time.

        Reading starts with the first `next` and all threads have ended when the iterator ends or is closed.

        Raises:
            DataError: For a sequence that cannot be read or is not what the index says, at the step that needs it.
        """
        if first_step < 0:
            raise ConfigError(f"the first step is {first_step}; expected 0 or more")
        if first_step >= stop_step:
            return
        parts = self._lane_parts()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="rainspark-plan") as planner:
            orders = _Orders(planner, self._order, (stop_step - 1) // self.steps_per_epoch)
            lanes = [self._blocks(part, orders, first_step, stop_step) for part in parts]
            with closing(self._feed.run(lanes, first_step, stop_step)) as filled:
                for step, arrays in filled:
                    batches = [self._batch(arrays, step, micro_step) for micro_step in range(self._micro_steps)]
                    # What this frame still held while it waits for the next step could not be used for it.
                    del arrays
                    yield batches
                    del batches

    def missing(self, step: int) -> list[Batch]:
        """Give a step's micro-batches with nothing in them, for a rank that cannot read and must not be waited for."""
        shape_mb = (self._micro_steps, self._part)
        shape_mbthw = (*shape_mb, self._table.window, self._index.rows, self._index.cols)
        counts_mbthw = np.full(shape_mbthw, MISSING_COUNT, np.uint16)
        arrays = StepArrays(
            counts_mbthw=counts_mbthw,
            row_mb=np.full(shape_mb, -1, np.int64),
            missing_mb=np.ones(shape_mb, bool),
            tensor_mbthw=torch.from_numpy(counts_mbthw),
        )
        return [self._batch(arrays, step, micro_step) for micro_step in range(self._micro_steps)]

    def stats(self) -> dict[str, float]:
        """Report what was done so far: counts, bytes and seconds (summed over threads; `stall_s` is the consumer's)."""
        return self._feed.stats()

    def lost(self) -> tuple[LostSequence, ...]:
        """List the sequences that were lost so far, in the order in which steps needed them."""
        return self._feed.lost()

    def fingerprint(self) -> dict[str, Any]:
        """Give what decides which window stands where, as plain JSON, to be compared on resume."""
        return {
            "data": self._index.fingerprint,
            "selection": json.loads(json.dumps(asdict(self._table.selection))),
            "windows": len(self._table),
            **self._plan,
        }

    def _order(self, epoch: int) -> LaneOrder:
        return order_lanes(self._index, self._table, epoch=epoch, **self._plan)

    def _lane_parts(self) -> list[_LanePart]:
        first, stop, per_lane = self._first_place, self._first_place + self._part, self._per_lane
        return [
            _LanePart(
                lane=lane,
                begin=max(first - lane * per_lane, 0),
                end=min(stop - lane * per_lane, per_lane),
                column=lane * per_lane - first,
            )
            for lane in range(first // per_lane, (stop - 1) // per_lane + 1)
        ]

    def _blocks(self, part: _LanePart, orders: "_Orders", first_step: int, stop_step: int) -> Iterator[Block]:
        """Give the blocks of one lane from one step to another, across epochs."""
        step_places = self._micro_steps * self._per_lane
        for epoch in range(first_step // self.steps_per_epoch, (stop_step - 1) // self.steps_per_epoch + 1):
            epoch_step = epoch * self.steps_per_epoch
            order = orders.get(epoch)
            begin = max(first_step - epoch_step, 0) * step_places
            end = min(stop_step - epoch_step, self.steps_per_epoch) * step_places
            number = np.arange(begin, end)
            place = number % self._per_lane
            number, place = (a[(place >= part.begin) & (place < part.end)] for a in (number, place))
            block = order.block_ln[part.lane, number]
            row = order.row_ln[part.lane, number]
            bounds = [*np.flatnonzero(np.diff(block, prepend=-1)).tolist(), len(block)]
            step, micro_step = epoch_step + number // step_places, number // self._per_lane % self._micro_steps
            del order
            for low, high in pairwise(bounds):
                some = slice(low, high)
                yield self._maker.block(row[some], step[some], micro_step[some], part.column + place[some])

    def _batch(self, arrays: StepArrays, step: int, micro_step: int) -> Batch:
        return Batch(
            counts_bthw=arrays.tensor_mbthw[micro_step],
            scale_mmh_b=self._maker.scale_mmh(arrays.row_mb[micro_step]),
            has_missing=bool(arrays.missing_mb[micro_step].any()),
            window_b=arrays.row_mb[micro_step],
            index_b=micro_step * self._micro_batch + self._first_place + np.arange(self._part),
            step=step,
            micro_step=micro_step,
            epoch=step // self.steps_per_epoch,
        )


def evaluation_batches(
    storage: Storage,
    index: Index,
    table: WindowTable,
    *,
    micro_batch: int,
    rank: int = 0,
    world_size: int = 1,
    limit: int | None = None,
    threads: int = 2,
    decoded_mb: float = 256,
    prefetch_steps: int = 1,
    pin_memory: bool = False,
    prefetch_mb: float = 512,
    readers: int | None = None,
    quarantine: int = 0,
) -> Generator[Batch, None, None]:
    """Give one rank's part of every evaluation step: each window once, in order, padded with zeros at the end.

    Every rank gets the same number of batches. Threads end when the iterator ends or is closed.

    Args:
        storage: Where the shards lie.
        index: Their index.
        table: The windows.
        micro_batch: Windows a step, over all ranks.
        rank: This process.
        world_size: Number of processes.
        limit: Take only this many windows, evenly spread over the table.
        threads: Decoding threads.
        decoded_mb: Decoded frames held at most, MiB.
        prefetch_steps: Steps made ready ahead of the consumer.
        pin_memory: Batches in page-locked memory.
        prefetch_mb: Compressed sequences read ahead at most, MiB.
        readers: Reading threads; None for as many as decode of a folder, 8 of a store.
        quarantine: Sequences that may be lost; their windows are given as padding, row -1.

    Raises:
        ConfigError: For a micro-batch that the world size does not divide.
        DataError: For a sequence that cannot be read or is not what the index says, at the step that needs it.
    """
    check_batches(
        num_windows=micro_batch, global_batch=micro_batch, micro_batch=micro_batch, lanes=1, world_size=world_size
    )
    check_rank(rank, world_size)
    part = micro_batch // world_size
    row_sb = evaluation_plan(table, micro_batch, limit)[:, rank * part : (rank + 1) * part]
    feed = Feed(
        storage,
        index,
        window=table.window,
        shape_mb=(1, part),
        threads=threads,
        decoded_mb=decoded_mb,
        prefetch_steps=prefetch_steps,
        pin_memory=pin_memory,
        prefetch_mb=prefetch_mb,
        readers=readers,
        quarantine=quarantine,
    )
    maker, columns = BlockMaker(index, table), np.array_split(np.arange(part), min(threads, part))
    lanes = [_evaluation_blocks(index, table, maker, row_sb, some) for some in columns]
    return _evaluate(feed, lanes, len(row_sb), maker, rank * part + np.arange(part))


def _evaluate(
    feed: Feed, lanes: list[Iterator[Block]], num_steps: int, maker: BlockMaker, index_b: npt.NDArray[np.int64]
) -> Generator[Batch, None, None]:
    with closing(feed.run(lanes, 0, num_steps)) as filled:
        for step, arrays in filled:
            yield Batch(
                counts_bthw=arrays.tensor_mbthw[0],
                scale_mmh_b=maker.scale_mmh(arrays.row_mb[0]),
                has_missing=bool(arrays.missing_mb[0].any()),
                window_b=arrays.row_mb[0],
                index_b=index_b,
                step=step,
                micro_step=0,
                epoch=0,
            )


def check_rank(rank: int, world_size: int) -> None:
    """Check that a rank is one of the world's."""
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} of {world_size} processes; expected 0 to {world_size - 1}")


def _evaluation_blocks(
    index: Index,
    table: WindowTable,
    maker: BlockMaker,
    row_sb: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
) -> Iterator[Block]:
    """Give the windows of some columns of an evaluation plan in order, in blocks bounded as the plan's are."""
    row = row_sb[:, columns].ravel()
    step, column = np.repeat(np.arange(len(row_sb)), len(columns)), np.tile(columns, len(row_sb))
    sequence = np.where(row >= 0, table.sequence[row], -1).astype(np.int64)
    part = run_numbers(sequence)
    first = np.flatnonzero(np.diff(part, prepend=-1))
    part_bytes = np.array([index.sequences[s].num_bytes if s >= 0 else 0 for s in sequence[first].tolist()], np.int64)
    counts = np.diff(first, append=len(row))
    block = gather_blocks(np.zeros_like(counts), part_bytes, counts, default_block_bytes(1, 1))[part]
    bounds = [*np.flatnonzero(np.diff(block, prepend=-1)).tolist(), len(row)]
    for low, high in pairwise(bounds):
        some = slice(low, high)
        yield maker.block(row[some], step[some], np.zeros_like(step[some]), column[some])


class _Orders:
    """The epochs' orders, each laid out by a thread of its own while the epoch before it is read."""

    def __init__(self, planner: ThreadPoolExecutor, order: Callable[[int], LaneOrder], last_epoch: int) -> None:
        self._planner, self._order, self._last_epoch = planner, order, last_epoch
        self._futures: dict[int, Future[LaneOrder]] = {}
        self._lock = Lock()

    def get(self, epoch: int) -> LaneOrder:
        """Wait for an epoch's order, and have the next one laid out."""
        with self._lock:
            for number in range(epoch, min(epoch + 1, self._last_epoch) + 1):
                if number not in self._futures:
                    self._futures[number] = self._planner.submit(self._order, number)
            # The lane that lags most is rarely more than an epoch behind; if it is, its order is laid out again.
            for number in [number for number in self._futures if number < epoch - 1]:
                del self._futures[number]
            future = self._futures[epoch]
        return future.result()
