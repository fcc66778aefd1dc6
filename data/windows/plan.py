"""The plan: which window is read where and when. Pure functions of (index, selection, seed, epoch, batch sizes)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..randomness import generator
from ..shards.index import Index
from .mixing import SourceShare, check_batches, mix_sources
from .selection import WindowTable

# A window weighs this much in a block at least, bytes. Dry frames compress to almost nothing, so that compressed bytes
# alone would let a block grow until the frames of its sequences, decoded, fit in no cache.
MIN_WINDOW_BYTES = 2**14


@dataclass(frozen=True, eq=False)
class LaneOrder:
    """One epoch's windows as the lanes read them.

    Attributes:
        row_ln: int64 (lanes, windows a lane), rows of the table in reading order.
        block_ln: int32 of the same shape, the shuffle block of each, counted from 0 in each lane.
    """

    row_ln: npt.NDArray[np.int64]
    block_ln: npt.NDArray[np.int32]


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
    weights: Mapping[str, float] | None = None,
) -> npt.NDArray[np.int64]:
    """Lay out one epoch; the world size has no part in it: rank r of R takes the r-th contiguous part of the last axis.

    Of several sources every lane reads one, so each micro-batch has the same number of windows of each.

    Returns:
        int64 (steps, micro_steps, micro_batch) rows of the table, as many as all but less than one global batch. Of one
        source each row at most once (other ones each epoch); of several, each as many times as its source's share has
        whole passes, and at most once more. Positions `lane * micro_batch // lanes` onwards belong to that lane.
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
        weights=weights,
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
    weights: Mapping[str, float] | None = None,
) -> LaneOrder:
    """Deal one epoch's windows out to the lanes and shuffle them inside each lane's blocks.

    Shards are permuted and each is entered at a random member: pack deals sequences round-robin, so lanes that walked
    their shards from the same member would all stand in the same few days.
    """
    check_batches(num_windows=len(table), global_batch=global_batch, micro_batch=micro_batch, lanes=lanes, world_size=1)
    shares = mix_sources(index, table, global_batch=global_batch, micro_batch=micro_batch, lanes=lanes, weights=weights)
    rng = generator(seed, "order", epoch)
    row, lane, turn = _deal(index, table, shares, rng, seed, epoch)
    sequence, start = table.sequence[row].astype(np.int64), table.start[row].astype(np.int64)
    part = run_numbers(lane, turn, sequence)
    part_first = np.flatnonzero(np.diff(part, prepend=-1))
    part_count = np.diff(part_first, append=len(row))
    part_bytes = np.array([entry.num_bytes for entry in index.sequences], np.int64)[sequence[part_first]]
    block_of_part = gather_blocks(lane[part_first], part_bytes, part_count, block_bytes)
    block = block_of_part[part]
    order = _shuffle(rng, part, part_first, part_count, block, start, table.window)
    first_block = block.reshape(lanes, -1)[:, :1]
    return LaneOrder(row[order].reshape(lanes, -1), (block.reshape(lanes, -1) - first_block).astype(np.int32))


def _deal(
    index: Index,
    table: WindowTable,
    shares: Sequence[SourceShare],
    rng: np.random.Generator,
    seed: int,
    epoch: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Deal every source's windows to its lanes, pass by pass: rows, lanes and passes, int64 (n,), lane after lane.

    A pass is all of the source's windows in a fresh reading order, dealt out in equal contiguous parts, so that all
    lanes of a source are in the same pass at about the same time; the last one takes a random part of the windows.
    """
    parts = []
    for number, share in enumerate(shares):
        num_lanes, taken, turn = len(share.lanes), 0, 0
        while taken < share.num_read:
            own = rng if (number, turn) == (0, 0) else generator(seed, "order", epoch, number, turn)
            place = np.argsort(_sequence_order(index, own)[table.sequence[share.row_n]], kind="stable")
            stop = min(taken + len(place), share.num_read)
            keep = np.ones(len(place), bool)
            keep[own.choice(len(place), len(place) - (stop - taken), replace=False)] = False
            row = share.row_n[place[keep[place]]]
            # Lane l has (n + l) // lanes of the first n windows: whole numbers that add up to n, for every n.
            each = np.arange(num_lanes)
            counts = (stop + each) // num_lanes - (taken + each) // num_lanes
            parts.append((row, np.repeat(share.lanes, counts), np.full(len(row), turn)))
            taken, turn = stop, turn + 1
    row, lane, turns = (np.concatenate(some) for some in zip(*parts, strict=True))
    by_lane = np.argsort(lane, kind="stable")
    return row[by_lane], lane[by_lane], turns[by_lane]


def evaluation_plan(table: WindowTable, micro_batch: int, limit: int | None = None) -> npt.NDArray[np.int64]:
    """Lay out every window once, in order: int64 (steps, micro_batch) rows of the table, -1 for padding at the end.

    Args:
        table: The windows.
        micro_batch: Windows a step.
        limit: Take only this many, evenly spread over the table.

    Raises:
        ConfigError: For a batch or a limit below 1.
    """
    if micro_batch < 1 or (limit is not None and limit < 1):
        raise ConfigError(f"the evaluation batch is {micro_batch} and its limit {limit}; expected at least 1")
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
