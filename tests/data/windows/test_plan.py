"""The plan against a slow reference, and its promises over random archives, batch sizes and world sizes."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.sequences import TimeSpan
from rainspark.data.shards.index import Index
from rainspark.data.windows.mixing import BatchLayout, default_block_bytes, default_lanes
from rainspark.data.windows.plan import evaluation_plan, order_lanes, plan
from rainspark.data.windows.selection import Selection, WindowTable, select_windows
from tests.data.archives import CADENCE_S, DAY_S, index_in_memory


def slow_check(index: Index, table: WindowTable, layout: BatchLayout, window_sab: np.ndarray) -> None:
    """Check one epoch's plan against the words of the design, window by window."""
    steps, micro_steps, micro_batch = window_sab.shape
    lanes, per_lane = layout.lanes, micro_batch // layout.lanes
    used = window_sab.ravel().tolist()
    assert len(used) == len(set(used))
    assert 0 <= len(table) - len(used) < layout.global_batch
    assert steps == len(table) // layout.global_batch
    lane_sequences: list[list[int]] = []
    for lane in range(lanes):
        rows = [
            int(row)
            for s in range(steps)
            for a in range(micro_steps)
            for row in window_sab[s, a, lane * per_lane : (lane + 1) * per_lane]
        ]
        assert len(rows) == len(used) // lanes
        blocks = split_into_blocks(index, table, rows, layout.block_bytes)
        seen: list[int] = []
        for block in blocks:
            # A sequence stands in one block of a lane, so it is read once.
            assert not set(block) & set(seen)
            seen += block
        lane_sequences.append(seen)
    # Lanes read contiguous parts: a sequence is shared by neighbouring lanes only, at the seam, whoever is longer.
    for sequence in {s for seen in lane_sequences for s in seen}:
        owners = [lane for lane, seen in enumerate(lane_sequences) if sequence in seen]
        assert owners == list(range(owners[0], owners[-1] + 1))


def split_into_blocks(index: Index, table: WindowTable, rows: list[int], block_bytes: int) -> list[list[int]]:
    """Find the finest split of a lane's rows in which no sequence stands in two blocks; check each block's bytes."""
    last = {int(table.sequence[row]): place for place, row in enumerate(rows)}
    blocks, block, end = [], [], 0
    for place, row in enumerate(rows):
        sequence = int(table.sequence[row])
        if sequence not in block:
            block.append(sequence)
        end = max(end, last[sequence])
        if place == end:
            num_bytes = sum(index.sequences[s].num_bytes for s in block)
            assert num_bytes <= block_bytes or len(block) == 1
            blocks.append(block)
            block = []
    return blocks


@st.composite
def archives(draw: st.DrawFn) -> tuple[Index, int]:
    """Draw an index and a window length up to its packed one."""
    window = draw(st.integers(1, 6))
    index = index_in_memory(
        draw(st.lists(st.integers(1, 60), min_size=1, max_size=12)),
        window=window,
        max_frames=draw(st.integers(max(2 * window - 1, 2), 20)),
        num_shards=draw(st.integers(1, 5)),
        frame_bytes=draw(st.integers(10, 3000)),
        rain=draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=1, max_size=7)),
    )
    return index, draw(st.integers(1, window))


@settings(max_examples=150, deadline=None)
@given(
    archives(),
    st.integers(0, 2**31),
    st.integers(0, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(100, 200_000),
)
def test_plan_keeps_its_promises(
    archive: tuple[Index, int], seed: int, epoch: int, lanes: int, per_lane: int, micro_steps: int, block_bytes: int
) -> None:
    index, window = archive
    try:
        table = select_windows(index, Selection(window=window))
    except DataError:
        return
    micro_batch = lanes * per_lane
    layout = BatchLayout(
        seed=seed,
        global_batch=micro_batch * micro_steps,
        micro_batch=micro_batch,
        lanes=lanes,
        block_bytes=block_bytes,
    )
    if len(table) < layout.global_batch:
        with pytest.raises(ConfigError, match="fewer than one global batch"):
            plan(index, table, layout, epoch)
        return
    window_sab = plan(index, table, layout, epoch)
    slow_check(index, table, layout, window_sab)
    assert np.array_equal(window_sab, plan(index, table, layout, epoch))
    order = order_lanes(index, table, layout, epoch)
    assert (np.diff(order.block_ln, axis=1) >= 0).all()
    assert (order.block_ln[:, 0] == 0).all()


@cache
def years(num_years: int, num_shards: int) -> Index:
    """Make the index of years of archive with a gap every few days."""
    return index_in_memory(
        [2000] * (num_years * 365 * 288 // 2000), window=24, max_frames=144, num_shards=num_shards, frame_bytes=16000
    )


def test_epochs_differ_in_order_and_in_what_they_drop() -> None:
    index = index_in_memory([300] * 5, window=4, max_frames=40, num_shards=4)
    table = select_windows(index, Selection(window=4))
    global_batch = next(size for size in range(64, 160, 16) if len(table) % size > 8)
    layout = BatchLayout(seed=1, global_batch=global_batch, micro_batch=16, lanes=8, block_bytes=2**20)
    epochs = [plan(index, table, layout, epoch) for epoch in range(3)]
    dropped = [set(range(len(table))) - set(window_sab.ravel().tolist()) for window_sab in epochs]
    assert not np.array_equal(epochs[0], epochs[1])
    assert dropped[0] != dropped[1] != dropped[2]
    assert not np.array_equal(epochs[0], plan(index, table, replace(layout, seed=2), 0))


@pytest.mark.parametrize("num_shards", [16, 20, 64])
@pytest.mark.parametrize("global_batch", [64, 256, 1024])
def test_global_batches_hold_many_days(num_shards: int, global_batch: int) -> None:
    index = years(3, num_shards)
    table = select_windows(index, Selection(window=24))
    lanes = default_lanes(global_batch)
    block_bytes = default_block_bytes(global_batch, lanes)
    layout = BatchLayout(
        seed=0, global_batch=global_batch, micro_batch=global_batch, lanes=lanes, block_bytes=block_bytes
    )
    window_sb = plan(index, table, layout, epoch=0)[:, 0]
    start_s = np.array([entry.start_s for entry in index.sequences])[table.sequence] + table.start * CADENCE_S
    day = start_s // DAY_S
    permuted = np.random.default_rng(0).permutation(len(table))[: window_sb.size].reshape(window_sb.shape)
    full = np.mean([len(np.unique(day[rows])) for rows in permuted])
    ours = np.array([len(np.unique(day[rows])) for rows in window_sb])
    assert ours.min() >= 0.5 * full, f"{ours.min()} to {ours.max()} days, a permutation has {full:.1f}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_batch": 100}, r"not a multiple of the micro-batch of 16.*96, 112"),
        ({"global_batch": 8}, r"nearest global batches that are: 16"),
        ({"lanes": 3}, r"3 lanes; numbers of lanes that divide it: 1, 2, 4, 8, 16"),
        ({"world_size": 3}, r"3 processes; numbers of processes that work: 1, 2, 4, 8, 16"),
        ({"num_windows": 63}, r"63 windows are selected, fewer than one global batch of 64"),
        ({"micro_batch": 0}, r"micro-batch is 0; expected at least 1"),
    ],
)
def test_sizes_that_do_not_fit(change: dict[str, int], message: str) -> None:
    def check(num_windows: int = 1000, world_size: int = 2, **sizes: Any) -> None:
        layout = BatchLayout(seed=0, global_batch=64, micro_batch=16, lanes=4, block_bytes=1)
        replace(layout, **sizes).check(num_windows, world_size=world_size)

    check()
    with pytest.raises(ConfigError, match=message):
        check(**change)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"window": 5}, r"windows of 5 frames.*1 to 4 frames"),
        ({"window": 0}, r"windows of 0 frames were asked for; expected at least 1"),
        ({"target_frame": 4}, r"target frame is 4, outside a window of 4 frames; expected -4 to 3"),
        ({"min_rain_fraction": 1.5}, r"1\.5; it is a share, from 0 to 1"),
        ({"min_rain_fraction": 0.9}, r"hold 37, the highest rain fraction.*0\.500.*at least 0\.9"),
        ({"spans": (TimeSpan(start_s=0, stop_s=9),)}, r"none of them inside the time spans.*1 time"),
    ],
)
def test_selections_that_select_nothing(selection: dict[str, Any], message: str) -> None:
    index = index_in_memory([40], window=4, max_frames=20, num_shards=2)
    with pytest.raises(DataError, match=message):
        select_windows(index, Selection(**({"window": 4} | selection)))


@pytest.mark.parametrize(
    ("runs", "packed", "window", "message"),
    [
        # No run is so long: neither packing anew nor another selection helps.
        ([3, 7, 2], 12, 12, "^there is no window of 12 frames: the longest run of frames without a gap has 7; ask for"),
        ([1, 1], 2, 2, "^there is no window of 2 frames: the longest run of frames without a gap has 1;"),
        ([7], 4, 12, r"packed for windows of 1 to 4 frames; the longest run .* has 7: ask for shorter ones$"),
        # Packing anew does.
        ([40], 4, 12, r"packed for windows of 1 to 4 frames; pack again, or rainspark reshard, with --window 12"),
    ],
)
def test_advice_on_windows_fits_the_longest_run(runs: list[int], packed: int, window: int, message: str) -> None:
    index = index_in_memory(runs, window=packed, max_frames=max(20, packed), num_shards=2)
    with pytest.raises(DataError, match=message):
        select_windows(index, Selection(window=window))


@pytest.mark.parametrize("micro_batch", [1, 7, 8, 64, 100])
def test_evaluation_plan_is_exact(micro_batch: int) -> None:
    index = index_in_memory([40], window=4, max_frames=20, num_shards=2)
    table = select_windows(index, Selection(window=4))
    rows = evaluation_plan(table, micro_batch)
    assert rows.shape == (-(-37 // micro_batch), micro_batch)
    assert rows.ravel()[:37].tolist() == list(range(37))
    assert (rows.ravel()[37:] == -1).all()
    spread = evaluation_plan(table, micro_batch, limit=5).ravel()
    assert spread[spread >= 0].tolist() == [0, 7, 14, 22, 29]


def test_default_lanes_divide_the_micro_batch() -> None:
    assert [default_lanes(size) for size in (1, 2, 7, 12, 17, 30, 48, 256)] == [1, 2, 7, 12, 1, 15, 16, 16]
