"""Plan which window is read where and when: pure functions of the index, the windows, the layout and the epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..randomness import generator
from ..shards.index import Index
from .mixing import BatchLayout, SourceShare, mix_sources
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


def plan(index: Index, table: WindowTable, layout: BatchLayout, epoch: int) -> npt.NDArray[np.int64]:
    """Lay out one epoch; the world size has no influence: rank r of R takes the r-th contiguous part of the last axis.

    Of several sources every lane reads one, so each micro-batch has the same number of windows of each.

    Returns:
        int64 (steps, micro_steps, micro_batch) rows of the table, as many as all but less than one global batch. Of one
        source each row at most once (other ones each epoch); of several, each as many times as its source's share has
        whole passes, and at most once more. Positions `lane * micro_batch // lanes` onwards belong to that lane.
    """
    order = order_lanes(index, table, layout, epoch)
    by_lane = order.row_ln.reshape(layout.lanes, -1, layout.micro_steps, layout.windows_a_lane)
    return np.ascontiguousarray(by_lane.transpose(1, 2, 0, 3)).reshape(-1, layout.micro_steps, layout.micro_batch)


def order_lanes(index: Index, table: WindowTable, layout: BatchLayout, epoch: int) -> LaneOrder:
    """Deal one epoch's windows out to the lanes and shuffle them inside each lane's blocks.

    Shards are permuted and each is entered at a random member: pack deals sequences round-robin, so lanes that walked
    their shards from the same member would all stand in the same few days.
    """
    layout.check(len(table))
    shares = mix_sources(index, table, layout)
    rng = generator(layout.seed, "order", epoch)
    row, lane, turn = _deal(index, table, shares, rng, layout.seed, epoch)
    sequence, start = table.sequence[row].astype(np.int64), table.start[row].astype(np.int64)

    # A block gathers a lane's runs of windows of one sequence, each as a whole.
    run = run_numbers(lane, turn, sequence)
    first = np.flatnonzero(np.diff(run, prepend=-1))
    count = np.diff(first, append=len(row))
    num_bytes = np.array([entry.num_bytes for entry in index.sequences], np.int64)[sequence[first]]
    block = gather_blocks(lane[first], num_bytes, count, layout.block_bytes)[run]

    order = _shuffle(rng, run, first, count, block, start, table.window)
    block_ln = block.reshape(layout.lanes, -1)
    return LaneOrder(row[order].reshape(layout.lanes, -1), (block_ln - block_ln[:, :1]).astype(np.int32))


def _deal(
    index: Index, table: WindowTable, shares: Sequence[SourceShare], rng: np.random.Generator, seed: int, epoch: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Deal every source's windows to its lanes, pass by pass: rows, lanes and passes, int64 (n,), lane after lane.

    A pass is all of the source's windows in a fresh reading order, dealt out in equal contiguous parts, so that all
    lanes of a source are in the same pass at about the same time; the last one takes a random part of the windows.
    """
    dealt = []
    for number, share in enumerate(shares):
        num_lanes = len(share.lanes)
        taken = turn = 0
        while taken < share.num_read:
            own_rng = rng if (number, turn) == (0, 0) else generator(seed, "order", epoch, number, turn)
            order = np.argsort(_sequence_order(index, own_rng)[table.sequence[share.row_n]], kind="stable")

            # The last pass leaves out as many windows, at random, as the epoch has no room for.
            stop = min(taken + len(order), share.num_read)
            is_read = np.ones(len(order), bool)
            is_read[own_rng.choice(len(order), len(order) - (stop - taken), replace=False)] = False
            row = share.row_n[order[is_read[order]]]

            # Lane l has (n + l) // lanes of the first n windows: whole numbers that add up to n, for every n.
            each = np.arange(num_lanes)
            counts = (stop + each) // num_lanes - (taken + each) // num_lanes
            dealt.append((row, np.repeat(share.lanes, counts), np.full(len(row), turn)))
            taken = stop
            turn += 1

    row, lane, turns = (np.concatenate(arrays) for arrays in zip(*dealt, strict=True))
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
    # Number every shard's sequences in the order in which they lie in it.
    shard = np.array([entry.shard for entry in index.sequences], np.int64)
    offset = np.array([entry.offset for entry in index.sequences], np.int64)
    counts = np.bincount(shard, minlength=len(index.shards))
    member = np.empty(len(shard), np.int64)
    member[np.lexsort((offset, shard))] = np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts)

    # Permute the shards.
    permuted = rng.permutation(len(counts))
    base = np.empty(len(counts), np.int64)
    base[permuted] = np.cumsum(counts[permuted]) - counts[permuted]

    # Rotate each.
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
        lane_weight = weight[low:high]
        total = int(lane_weight.sum())

        # A block takes the parts that begin in its stretch, so that it exceeds the stretch by less than one part.
        share = 1 - number / (4 * (len(bounds) - 1))
        stretch = max(int(share * (block_bytes - int(lane_weight.max()))), 1)
        num_blocks = -(-total // stretch)
        block[low:high] = (np.cumsum(lane_weight) - lane_weight) // -(-total // num_blocks)
    return run_numbers(lane, block)


def _shuffle(
    rng: np.random.Generator,
    part: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    count: npt.NDArray[np.int64],
    block: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    window: int,
) -> npt.NDArray[np.int64]:
    """Shuffle rows inside their blocks: a permutation (n,).

    Every part's windows are spread evenly over the block (a random place in each of count equal strata), so that
    any stretch of a block holds as many different sequences as it can. Inside a part, windows go passage by
    passage, in random order of passages and of windows in a passage: a passage is as many starts as a window has
    frames, so its windows share their frames, and a third of a sequence is in use at a time instead of all of it.
    """
    phase = rng.integers(window, size=len(first))
    within_stratum = _fractions(rng, len(part))
    within_passage = _fractions(rng, len(part))

    # Order each part's passages, and the windows of each passage.
    passage = run_numbers(part, (start + phase[part]) // window)
    part_of_passage = part[np.flatnonzero(np.diff(passage, prepend=-1))]
    rank = np.empty(len(part_of_passage), np.int64)
    rank[np.argsort(part_of_passage + _fractions(rng, len(part_of_passage)))] = np.arange(len(part_of_passage))
    by_passage = np.argsort(rank[passage] + within_passage)

    # Spread each part over its block.
    spread = (np.arange(len(part)) - first[part] + within_stratum) / count[part]
    return by_passage[np.argsort(block + np.minimum(spread, 1 - 1e-8))]


def _fractions(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Draw from [0, 1), so far from 1 that adding a whole number of up to 2**26 cannot round up to the next one."""
    return rng.random(count) * (1 - 2.0**-24)
