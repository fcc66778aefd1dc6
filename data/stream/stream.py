"""Turn the plan and the shards into batches: what one rank trains or is evaluated on, in order, read ahead."""

import json
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..shards.index import Index
from ..store.storage import Storage
from ..windows.mixing import BatchLayout, default_block_bytes, mix_sources
from ..windows.plan import LaneOrder, evaluation_plan, gather_blocks, order_lanes, run_numbers
from ..windows.selection import WindowTable
from .blocks import Block, BlockMaker
from .feed import Batch, Feed
from .options import ONE_PASS, ReadOptions
from .quarantine import LostSequence

__all__ = ["Batch", "Stream", "evaluation_batches"]


class Stream:
    """The training windows of one rank.

    Memory: compressed sequences of a block a lane, and `prefetch_mb` ahead of them; decoded frames within `decoded_mb`;
    and batches of `prefetch_steps` + 1 steps beside those that the consumer holds. A batch's memory is used again once
    every tensor that shares it is gone.

    Args:
        storage: Where the shards lie.
        index: Their index.
        table: The windows.
        layout: How they are laid out in batches.
        rank: This process.
        world_size: Number of processes.
        options: Threads, memory and tolerated losses of this rank.

    Attributes:
        shares: Each source's share of every batch.
        steps_per_epoch: Steps that read all windows once, but less than one global batch.

    Raises:
        ConfigError: For sizes that do not fit together, or a budget that holds less than one window.
    """

    def __init__(
        self,
        storage: Storage,
        index: Index,
        table: WindowTable,
        layout: BatchLayout,
        *,
        rank: int = 0,
        world_size: int = 1,
        options: ReadOptions | None = None,
    ) -> None:
        # What does not fit together is refused before a thread starts.
        layout.check(len(table), rank, world_size)
        self._index, self._table, self._layout = index, table, layout
        self.shares = mix_sources(index, table, layout)
        self.steps_per_epoch = len(table) // layout.global_batch

        # A rank has a contiguous part of every micro-batch.
        per_rank = layout.micro_batch // world_size
        self._first = rank * per_rank
        self._stop = self._first + per_rank
        self._feed = Feed(
            storage,
            index,
            table,
            index_mb=np.arange(layout.global_batch).reshape(layout.micro_steps, -1)[:, self._first : self._stop],
            steps_per_epoch=self.steps_per_epoch,
            options=options or ReadOptions(),
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
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="rainspark-plan") as planner:
            order_of = self._planned(planner, (stop_step - 1) // self.steps_per_epoch)
            per_lane = self._layout.windows_a_lane
            lanes = [
                self._lane_blocks(lane, order_of, first_step, stop_step)
                for lane in range(self._first // per_lane, (self._stop - 1) // per_lane + 1)
            ]
            yield from self._feed.batches(lanes, first_step, stop_step)

    def missing(self, step: int) -> list[Batch]:
        """Give a step's micro-batches with nothing in them, for a rank that cannot read and must not be waited for."""
        return self._feed.missing(step)

    def stats(self) -> dict[str, float]:
        """Report what was done so far, as `Feed.stats` does."""
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
            **asdict(self._layout),
        }

    def _planned(self, planner: ThreadPoolExecutor, last_epoch: int) -> Callable[[int], LaneOrder]:
        """Have every epoch's order laid out by a thread of its own while the epoch before it is read."""
        lock = Lock()

        # The lane that lags most is rarely more than an epoch behind; if it is, its order is laid out again.
        @lru_cache(maxsize=3)
        def lay_out(epoch: int) -> Future[LaneOrder]:
            return planner.submit(order_lanes, self._index, self._table, self._layout, epoch)

        def order_of(epoch: int) -> LaneOrder:
            with lock:
                future = lay_out(epoch)
                if epoch < last_epoch:
                    lay_out(epoch + 1)
            return future.result()

        return order_of

    def _lane_blocks(
        self, lane: int, order_of: Callable[[int], LaneOrder], first_step: int, stop_step: int
    ) -> Iterator[Block]:
        """Give this rank's blocks of one lane from one step to another, across epochs."""
        per_lane = self._layout.windows_a_lane
        step_windows = self._layout.micro_steps * per_lane
        for epoch in range(first_step // self.steps_per_epoch, (stop_step - 1) // self.steps_per_epoch + 1):
            order = order_of(epoch)
            epoch_step = epoch * self.steps_per_epoch
            begin = max(first_step - epoch_step, 0) * step_windows
            end = min(stop_step - epoch_step, self.steps_per_epoch) * step_windows

            # Of a lane that stands across the seam of two ranks, each takes its own windows.
            number = np.arange(begin, end)
            index = lane * per_lane + number % per_lane
            number, index = (array[(index >= self._first) & (index < self._stop)] for array in (number, index))
            block, row = order.block_ln[lane, number], order.row_ln[lane, number]
            step = epoch_step + number // step_windows
            micro_step = number // per_lane % self._layout.micro_steps
            del order
            yield from self._feed.maker.blocks(block, row, step, micro_step, index - self._first)


def evaluation_batches(
    storage: Storage,
    index: Index,
    table: WindowTable,
    *,
    micro_batch: int,
    rank: int = 0,
    world_size: int = 1,
    limit: int | None = None,
    options: ReadOptions = ONE_PASS,
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
        options: Threads, memory and tolerated losses; windows of what is lost are given as padding, row -1.

    Raises:
        ConfigError: For a micro-batch that the world size does not divide.
        DataError: For a sequence that cannot be read or is not what the index says, at the step that needs it.
    """
    one_lane = BatchLayout(seed=0, global_batch=micro_batch, micro_batch=micro_batch, lanes=1, block_bytes=1)
    one_lane.check(micro_batch, rank, world_size)

    per_rank = micro_batch // world_size
    own = slice(rank * per_rank, (rank + 1) * per_rank)
    # Each rank takes its contiguous part of every step, as in training.
    row_sb = evaluation_plan(table, micro_batch, limit)[:, own]
    feed = Feed(
        storage,
        index,
        table,
        index_mb=np.arange(micro_batch)[None, own],
        steps_per_epoch=max(len(row_sb), 1),
        options=options,
    )
    lanes = [
        _column_blocks(index, table, feed.maker, row_sb, columns)
        for columns in np.array_split(np.arange(per_rank), min(options.threads, per_rank))
    ]
    return _only_micro_batch(feed.batches(lanes, 0, len(row_sb)))


def _only_micro_batch(steps: Generator[list[Batch], None, None]) -> Generator[Batch, None, None]:
    """Take the batch out of every step, and close the steps at the end, however it comes."""
    with closing(steps):
        for (batch,) in steps:
            yield batch
            del batch


def _column_blocks(
    index: Index,
    table: WindowTable,
    maker: BlockMaker,
    row_sb: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
) -> Iterator[Block]:
    """Give the windows of some columns of an evaluation plan in order, in blocks bounded as the plan's are."""
    # Step by step, and in a step column by column.
    row = row_sb[:, columns].ravel()
    step, column = np.repeat(np.arange(len(row_sb)), len(columns)), np.tile(columns, len(row_sb))
    sequence = np.where(row >= 0, table.sequence[row], -1).astype(np.int64)

    # A run of windows of one sequence stays in one block.
    run = run_numbers(sequence)
    first = np.flatnonzero(np.diff(run, prepend=-1))
    num_bytes = np.array([index.sequences[s].num_bytes if s >= 0 else 0 for s in sequence[first].tolist()], np.int64)
    count = np.diff(first, append=len(row))
    block = gather_blocks(np.zeros_like(count), num_bytes, count, default_block_bytes(1, 1))[run]
    return maker.blocks(block, row, step, np.zeros_like(step), column)
