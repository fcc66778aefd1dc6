"""The plan: which window is read where and when. Pure functions of (index, selection, seed, epoch, batch sizes)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from data.frames import DataError
from data.randomness import generator
from data.sequences import TimeSpan
from data.shards import Index

# Lanes a micro-batch is laid out on by default: every world size that divides 16 then reads each sequence once.
MAX_DEFAULT_LANES = 16
# A window weighs this much in a block at least, bytes. Dry frames compress to almost nothing, so that compressed bytes
# alone would let a block grow until the frames of its sequences, decoded, fit in no cache.
MIN_WINDOW_BYTES = 2**14


class BatchError(DataError):
    """Batch sizes, lanes and world size that do not fit together or do not fit the windows."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which windows of an archive are read.

    Attributes:
        window: Frames a window.
        min_rain_fraction: Least share of valid pixels above zero in the target frame (NL-50: 0.5, NL-20: 0.2).
        target_frame: Frame of the window that `min_rain_fraction` judges; negative counts from the end.
        spans: A window is read when all its frames end inside one of these spans; () reads all.
    """

    window: int
    min_rain_fraction: float = 0.0
    target_frame: int = -1
    spans: tuple[TimeSpan, ...] = ()


@dataclass(frozen=True, eq=False)
class WindowTable:
    """The selected windows, in (shard, offset in the shard, start) order; a window's id is its row number.

    Attributes:
        sequence: int32 (n,), position in `index.sequences`.
        start: int32 (n,), first frame inside the sequence.
        selection: What they were selected by.
    """

    sequence: npt.NDArray[np.int32]
    start: npt.NDArray[np.int32]
    selection: Selection

    @property
    def window(self) -> int:
        """Frames a window."""
        return self.selection.window

    def __len__(self) -> int:
        """Count the windows."""
        return len(self.sequence)

    def name(self, row: int, index: Index) -> str:
        """Name a window for people and logs: "KEY:start"."""
        return f"{index.sequences[int(self.sequence[row])].key}:{int(self.start[row])}"


@dataclass(frozen=True, eq=False)
class LaneOrder:
    """One epoch's windows as the lanes read them.

    Attributes:
        row_ln: int64 (lanes, windows a lane), rows of the table in reading order.
        block_ln: int32 of the same shape, the shuffle block of each, counted from 0 in each lane.
    """

    row_ln: npt.NDArray[np.int64]
    block_ln: npt.NDArray[np.int32]


def default_lanes(micro_batch: int) -> int:
    """Find the largest number of lanes up to 16 that divides a micro-batch."""
    return next(lanes for lanes in range(MAX_DEFAULT_LANES, 0, -1) if micro_batch % lanes == 0)


def default_block_bytes(global_batch: int, lanes: int) -> int:
    """Find how many compressed bytes a lane should shuffle together.

    2 MiB hold about one sequence of 144 rainy frames of 288 x 288 pixels: with one for every window that a lane gives
    to a global batch, most windows of a batch come from different sequences, and so from different days.
    """
    return max(16, 2 * global_batch // lanes) * 2**20


def check_batches(*, num_windows: int, global_batch: int, micro_batch: int, lanes: int, world_size: int) -> None:
    """Check that the sizes of a run fit together, before anything is read.

    Raises:
        BatchError: With the values that would work.
    """
    for name, value in (("global batch", global_batch), ("micro-batch", micro_batch), ("lanes", lanes)):
        if value < 1:
            raise BatchError(f"the {name} is {value}; expected at least 1")
    if global_batch % micro_batch:
        below = global_batch - global_batch % micro_batch
        near = [size for size in (below, below + micro_batch) if size]
        raise BatchError(
            f"the global batch of {global_batch} windows is not a multiple of the micro-batch of {micro_batch}; "
            f"nearest global batches that are: {_listed(near)}"
        )
    if micro_batch % lanes:
        raise BatchError(
            f"the micro-batch of {micro_batch} windows cannot be laid out on {lanes} lanes; "
            f"numbers of lanes that divide it: {_listed(_divisors(micro_batch))}"
        )
    if world_size < 1 or micro_batch % world_size:
        raise BatchError(
            f"the micro-batch of {micro_batch} windows cannot be divided among {world_size} processes; "
            f"numbers of processes that work: {_listed(_divisors(micro_batch))}"
        )
    if num_windows < global_batch:
        raise BatchError(
            f"{num_windows} windows are selected, fewer than one global batch of {global_batch}; "
            "take a smaller global batch, a lower rain fraction, a longer time span, or more data"
        )


def select_windows(index: Index, selection: Selection) -> WindowTable:
    """Select the windows of an archive: those its sequences own, inside the spans, wet enough in the target frame.

    Raises:
        DataError: For a window longer than the packed one, a target frame or share out of range, or no windows left
            (with the number of windows there are and the highest rain fraction among them).
    """
    window = selection.window
    if not 1 <= window <= index.window:
        raise DataError(
            f"windows of {window} frames were asked for, but the shards were packed for windows of 1 to "
            f"{index.window} frames; pack again with --window {max(window, 1)} or ask for shorter ones"
        )
    if not -window <= selection.target_frame < window:
        raise DataError(
            f"target frame {selection.target_frame} does not exist in a window of {window} frames; "
            f"expected {-window} to {window - 1}"
        )
    if not 0.0 <= selection.min_rain_fraction <= 1.0:
        raise DataError(f"the least rain fraction is {selection.min_rain_fraction}; expected 0 to 1")
    sequences = index.sequences
    order = sorted(range(len(sequences)), key=lambda i: (sequences[i].shard, sequences[i].offset))
    counts = np.array(
        [max(0, min(sequences[i].num_starts, sequences[i].num_frames - window + 1)) for i in order], np.int64
    )
    sequence = np.repeat(np.array(order, np.int64), counts)
    start = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted, best_rain = _wanted(index, selection, sequence, start)
    if not wanted.any():
        raise DataError(
            f"no windows of {window} frames are selected: the shards hold {len(sequence)}, "
            + (
                f"the highest rain fraction of a target frame inside the time spans is {best_rain:.3f} "
                if best_rain >= 0
                else "none of them inside the time spans "
            )
            + f"(asked for: at least {selection.min_rain_fraction}, {len(selection.spans) or 'no'} time spans)"
        )
    return WindowTable(sequence[wanted].astype(np.int32), start[wanted].astype(np.int32), selection)


def _wanted(
    index: Index, selection: Selection, sequence: npt.NDArray[np.int64], start: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], float]:
    """Judge candidate windows; also give the highest rain fraction inside the spans (-1 for no candidate)."""
    wanted = np.ones(len(sequence), bool)
    if selection.spans:
        first_s = np.array([entry.start_s for entry in index.sequences], np.int64)[sequence] + start * index.cadence_s
        last_s = first_s + (selection.window - 1) * index.cadence_s
        wanted[:] = False
        for span in selection.spans:
            wanted |= (first_s >= span.start_s) & (last_s < span.stop_s)
    base = frame_bases(index)
    rain = np.concatenate([np.asarray(entry.rain_fraction, np.float64) for entry in index.sequences] or [np.zeros(0)])
    target = selection.target_frame % selection.window
    rain = np.nan_to_num(rain[base[sequence] + start + target], nan=0.0)
    best_rain = float(rain[wanted].max()) if wanted.any() else -1.0
    return wanted & (rain >= selection.min_rain_fraction), best_rain


def frame_bases(index: Index) -> npt.NDArray[np.int64]:
    """Number all frames of an archive in sequence order: the number of each sequence's first frame, int64 (s,)."""
    counts = np.array([entry.num_frames for entry in index.sequences], np.int64)
    return np.cumsum(counts) - counts


def plan(
    index: Index,
    table: WindowTable,
    *,
    seed: int,
    epoch: int,
    global_batch: int,
    micro_batch: int,
    lanes: int,
    block_bytes: int,
) -> npt.NDArray[np.int64]:
    """Lay out one epoch; the world size has no part in it: rank r of R takes the r-th contiguous part of the last axis.

    Returns:
        int64 (steps, micro_steps, micro_batch) rows of the table, each at most once, all but less than one global
        batch of them (other ones each epoch). Positions `lane * micro_batch // lanes` onwards belong to that lane.
    """
    order = order_lanes(
        index,
        table,
        seed=seed,
        epoch=epoch,
        global_batch=global_batch,
        micro_batch=micro_batch,
        lanes=lanes,
        block_bytes=block_bytes,
    )
    steps, micro_steps, per_lane = len(table) // global_batch, global_batch // micro_batch, micro_batch // lanes
    by_lane = order.row_ln.reshape(lanes, steps, micro_steps, per_lane)
    return np.ascontiguousarray(by_lane.transpose(1, 2, 0, 3)).reshape(steps, micro_steps, micro_batch)


def order_lanes(
    index: Index,
    table: WindowTable,
    *,
    seed: int,
    epoch: int,
    global_batch: int,
    micro_batch: int,
    lanes: int,
    block_bytes: int,
) -> LaneOrder:
    """Deal one epoch's windows out to the lanes and shuffle them inside each lane's blocks.

    Shards are permuted and each is entered at a random member: pack deals sequences round-robin, so lanes that walked
    their shards from the same member would all stand in the same few days.
    """
    check_batches(num_windows=len(table), global_batch=global_batch, micro_batch=micro_batch, lanes=lanes, world_size=1)
    rng = generator(seed, "order", epoch)
    reading_order = _sequence_order(index, rng)[table.sequence]
    row = np.argsort(reading_order, kind="stable")
    keep = np.ones(len(table), bool)
    keep[rng.choice(len(table), len(table) % global_batch, replace=False)] = False
    row = row[keep[row]]
    sequence, start = table.sequence[row].astype(np.int64), table.start[row].astype(np.int64)
    lane = np.arange(len(row)) // (len(row) // lanes)
    part = run_numbers(lane, sequence)
    part_first = np.flatnonzero(np.diff(part, prepend=-1))
    part_count = np.diff(part_first, append=len(row))
    part_bytes = np.array([entry.num_bytes for entry in index.sequences], np.int64)[sequence[part_first]]
    block_of_part = gather_blocks(lane[part_first], part_bytes, part_count, block_bytes)
    block = block_of_part[part]
    order = _shuffle(rng, part, part_first, part_count, block, start, table.window)
    first_block = block.reshape(lanes, -1)[:, :1]
    return LaneOrder(row[order].reshape(lanes, -1), (block.reshape(lanes, -1) - first_block).astype(np.int32))


def evaluation_plan(table: WindowTable, micro_batch: int, limit: int | None = None) -> npt.NDArray[np.int64]:
    """Lay out every window once, in order: int64 (steps, micro_batch) rows of the table, -1 for padding at the end.

    Args:
        table: The windows.
        micro_batch: Windows a step.
        limit: Take only this many, evenly spread over the table.

    Raises:
        BatchError: For a batch or a limit below 1.
    """
    if micro_batch < 1 or (limit is not None and limit < 1):
        raise BatchError(f"the evaluation batch is {micro_batch} and its limit {limit}; expected at least 1")
    count = len(table) if limit is None else min(limit, len(table))
    rows = np.full(-(-count // micro_batch) * micro_batch, -1, np.int64)
    rows[:count] = np.arange(count) * len(table) // max(count, 1)
    return rows.reshape(-1, micro_batch)


def _sequence_order(index: Index, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Give each sequence its place in the epoch's reading order, int64 (s,): shards permuted and rotated."""
    shard = np.array([entry.shard for entry in index.sequences], np.int64)
    offset = np.array([entry.offset for entry in index.sequences], np.int64)
    by_place = np.lexsort((offset, shard))
    counts = np.bincount(shard, minlength=len(index.shards))
    member = np.empty(len(shard), np.int64)
    member[by_place] = np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts)
    permuted = rng.permutation(len(counts))
    base = np.empty(len(counts), np.int64)
    base[permuted] = np.cumsum(counts[permuted]) - counts[permuted]
    entered_at = np.floor(rng.random(len(counts)) * counts).astype(np.int64)
    return base[shard] + (member - entered_at[shard]) % counts[shard]


def run_numbers(*keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Number the runs of rows in which all keys stay the same, from 0."""
    change = np.zeros(len(keys[0]), bool)
    for key in keys:
        change[1:] |= key[1:] != key[:-1]
    return np.cumsum(change)


def gather_blocks(
    lane: npt.NDArray[np.int64], num_bytes: npt.NDArray[np.int64], count: npt.NDArray[np.int64], block_bytes: int
) -> npt.NDArray[np.int64]:
    """Gather consecutive parts of a lane into equal blocks of at most `block_bytes` (or one part): numbers (p,).

    Blocks of later lanes are up to a quarter smaller: a new block has every frame still to decode, and lanes that all
    began one at the same step would stall the run there.
    """
    weight = np.maximum(num_bytes, count * MIN_WINDOW_BYTES)
    block = np.empty(len(lane), np.int64)
    bounds = np.flatnonzero(np.diff(lane, prepend=-1, append=-1))
    for number, (low, high) in enumerate(pairwise(bounds.tolist())):
        some = weight[low:high]
        before = np.cumsum(some) - some
        share = 1 - number / (4 * (len(bounds) - 1))
        # A block takes the parts that begin in its stretch, so that it exceeds the stretch by less than one part.
        stretch = max(int(share * (block_bytes - int(some.max()))), 1)
        total = int(some.sum())
        num_blocks = -(-total // stretch)
        block[low:high] = before // -(-total // num_blocks)
    return run_numbers(lane, block)


def _shuffle(
    rng: np.random.Generator,
    part: npt.NDArray[np.int64],
    part_first: npt.NDArray[np.int64],
    part_count: npt.NDArray[np.int64],
    block: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    window: int,
) -> npt.NDArray[np.int64]:
    """Shuffle rows inside their blocks: a permutation (n,).

    Every sequence's windows are spread evenly over the block (a random place in each of count equal strata), so that
    any stretch of a block holds as many different sequences as it can. Inside a sequence, windows go passage by
    passage, in random order of passages and of windows in a passage: a passage is as many starts as a window has
    frames, so its windows share their frames, and a third of a sequence is in use at a time instead of all of it.
    """
    phase = rng.integers(window, size=len(part_first))
    place_in_stratum, place_in_passage = _fractions(rng, len(part)), _fractions(rng, len(part))
    passage = run_numbers(part, (start + phase[part]) // window)
    passage_part = part[np.flatnonzero(np.diff(passage, prepend=-1))]
    passage_place = np.empty(len(passage_part), np.int64)
    passage_place[np.argsort(passage_part + _fractions(rng, len(passage_part)))] = np.arange(len(passage_part))
    within_parts = np.argsort(passage_place[passage] + place_in_passage)
    place = (np.arange(len(part)) - part_first[part] + place_in_stratum) / part_count[part]
    return within_parts[np.argsort(block + np.minimum(place, 1 - 1e-8))]


def _fractions(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Draw from [0, 1), so far from 1 that adding a whole number of up to 2**26 cannot round up to the next one."""
    return rng.random(count) * (1 - 2.0**-24)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(str(size) for size in sizes)
