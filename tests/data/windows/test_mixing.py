"""Mixed sources: every batch has the same mix, repeats are whole passes, one source is read as it always was."""

import hashlib
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.shards.index import Index
from rainspark.data.windows.mixing import BatchLayout, deal_lanes, mix_sources, spread_lanes
from rainspark.data.windows.plan import order_lanes, plan
from rainspark.data.windows.selection import Selection, WindowTable, select_windows
from tests.data.archives import index_in_memory
from tests.data.mixed import mixed_index, two_sources

SMALL = BatchLayout(seed=0, global_batch=4, micro_batch=4, lanes=2, block_bytes=1000)


def source_of(index: Index, table: WindowTable, row: int) -> str:
    return index.origins[index.sequences[int(table.sequence[row])].origin].source


def check_mix(index: Index, table: WindowTable, layout: BatchLayout) -> None:
    """Check one epoch of a mixed plan against the words of its contract, window by window."""
    window_sab = plan(index, table, layout, epoch=2)
    shares = mix_sources(index, table, layout)
    per_lane = layout.micro_batch // layout.lanes
    assert window_sab.shape[0] == len(table) // layout.global_batch

    mixes = {
        tuple(sorted(Counter(source_of(index, table, row) for row in batch).items()))
        for step in window_sab
        for batch in step
    }
    assert mixes == {tuple(sorted((share.source, len(share.lanes) * per_lane) for share in shares))}
    for share in shares:
        seen = Counter(row for row in window_sab.ravel().tolist() if source_of(index, table, row) == share.source)
        passes, rest = divmod(share.num_read, len(share.row_n))
        assert set(seen.values()) <= {passes, passes + 1}
        assert sum(count - passes for count in (seen.get(row, 0) for row in share.row_n.tolist())) == rest

    reading_order = {}
    for lane in range(layout.lanes):
        rows = window_sab[:, :, lane * per_lane : (lane + 1) * per_lane].ravel().tolist()
        assert len({source_of(index, table, row) for row in rows}) == 1
        reading_order[lane] = rows
    order = order_lanes(index, table, layout, epoch=2)
    assert (np.diff(order.block_ln, axis=1) >= 0).all()
    assert [order.row_ln[lane].tolist() for lane in range(layout.lanes)] == list(reading_order.values())


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(4, 50), min_size=1, max_size=4), min_size=2, max_size=3),
    st.lists(st.floats(0.05, 5), min_size=3, max_size=3),
    st.booleans(),
    st.integers(3, 6),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_every_micro_batch_has_the_same_mix(
    runs: list[list[int]], weight: list[float], weighted: bool, lanes: int, per_lane: int, micro_steps: int
) -> None:
    parts = [index_in_memory(lengths, window=4, max_frames=12, num_shards=3) for lengths in runs]
    names = ["A", "B", "C"][: len(parts)]
    index = mixed_index(parts, sources=names)
    table = select_windows(index, Selection(window=4))
    micro_batch = lanes * per_lane
    layout = BatchLayout(
        seed=5,
        global_batch=micro_batch * micro_steps,
        micro_batch=micro_batch,
        lanes=lanes,
        block_bytes=20_000,
        weights=dict(zip(names, weight, strict=False)) if weighted else None,
    )
    if len(table) >= layout.global_batch:
        check_mix(index, table, layout)


def test_repeats_are_whole_passes_and_a_part() -> None:
    index = two_sources([54], [203], window=4)
    table = select_windows(index, Selection(window=4))
    assert len(table) == 51 + 200
    layout = BatchLayout(
        seed=0, global_batch=8, micro_batch=8, lanes=4, block_bytes=20_000, weights={"A": 0.5, "B": 0.5}
    )
    shares = mix_sources(index, table, layout)
    expected = ["A: 51 windows, 124 an epoch, 2.4 times each", "B: 200 windows, 124 an epoch"]
    assert [str(share) for share in shares] == expected
    epochs = []
    for epoch in range(2):
        window_sab = plan(index, table, replace(layout, weights={"A": 1, "B": 1}), epoch)
        lanes = [lane for share in shares if share.source == "A" for lane in share.lanes.tolist()]
        by_lane = [window_sab[:, :, 2 * lane : 2 * lane + 2].ravel().tolist() for lane in lanes]
        # Both lanes are in the same pass at about the same time: a window comes back when all others came once.
        half = [row for rows in by_lane for row in rows[:25]]
        assert len(set(half)) == len(half) == 50
        epochs.append(window_sab)
    assert not np.array_equal(epochs[0], epochs[1])
    used = [{row for row in epoch.ravel().tolist() if source_of(index, table, row) == "B"} for epoch in epochs]
    assert len(used[0]) == len(used[1]) == 124
    assert used[0] != used[1]


# What the plan of before mixed archives gave, as digests of rows and blocks at epochs 0, 1 and 7.
BEFORE = [
    (
        {"runs": [200, 37, 5, 61], "window": 6, "max_frames": 24, "num_shards": 4},
        {"global_batch": 12, "micro_batch": 6, "lanes": 3, "block_bytes": 30_000},
        ["ad34f28dd9e3736c", "9b25d656a9402f93", "6222b51c93cba7eb"],
    ),
    (
        {"runs": [500] * 3, "window": 12, "max_frames": 48, "num_shards": 16},
        {"global_batch": 64, "micro_batch": 32, "lanes": 16, "block_bytes": 100_000},
        ["f51a6dbbe968fef2", "cb9a49d170aa34a8", "f0f970bea982736f"],
    ),
    (
        {"runs": [90], "window": 4, "max_frames": 9, "num_shards": 2},
        {"global_batch": 5, "micro_batch": 5, "lanes": 1, "block_bytes": 5_000},
        ["e15263285d5f5baa", "51526591239c0ecb", "860a7336dbc9469c"],
    ),
]


@pytest.mark.parametrize(("archive", "sizes", "expected"), BEFORE)
def test_one_source_is_read_as_before_there_were_several(
    archive: dict[str, Any], sizes: dict[str, Any], expected: list[str]
) -> None:
    index = index_in_memory(**archive, rain=(0.1, 0.6, 0.5))
    table = select_windows(index, Selection(window=archive["window"], min_rain_fraction=0.2))
    layout = BatchLayout(seed=3, **sizes)
    for epoch, digest in zip((0, 1, 7), expected, strict=True):
        rows = plan(index, table, layout, epoch)
        blocks = order_lanes(index, table, layout, epoch).block_ln
        data = rows.astype("<i8").tobytes() + blocks.astype("<i4").tobytes()
        assert hashlib.sha256(data).hexdigest()[:16] == digest


def test_tiles_of_one_source_are_one_source() -> None:
    parts = [index_in_memory([40], window=4, max_frames=20, num_shards=2) for _ in range(3)]
    index = mixed_index(parts, sources=("A", "A", "A"))
    table = select_windows(index, Selection(window=4))
    (share,) = mix_sources(index, table, SMALL)
    assert (share.source, len(share.row_n), share.share) == ("A", 3 * 37, 1.0)
    with pytest.raises(DataError, match=r"crop: the archive holds several.*tiles of A: pack one part"):
        _ = index.crop


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6), st.integers(0, 20))
def test_lanes_are_dealt_by_largest_remainder(weights: list[float], more: int) -> None:
    lanes = len(weights) + more
    counts = deal_lanes(weights, lanes)
    assert sum(counts) == lanes
    assert min(counts) >= 1
    rich = [i for i, count in enumerate(counts) if count > 1]
    for a in rich:
        for b in range(len(counts)):
            # Nobody is more than a lane ahead of what another one is owed.
            owed = weights[b] / weights[a] * (counts[a] - 1)
            assert counts[b] + 1 >= owed - 1e-6
    chosen = spread_lanes(counts)
    assert sorted(np.concatenate(chosen).tolist()) == list(range(lanes))
    assert [len(lanes) for lanes in chosen] == counts


@pytest.mark.parametrize(
    ("weights", "lanes", "expected"),
    [
        ([1, 1], 4, [2, 2]),
        ([0.5, 0.3, 0.2], 10, [5, 3, 2]),
        ([1, 1000], 4, [1, 3]),
        ([1, 1, 1000], 5, [1, 1, 3]),
        ([0.7, 0.3], 10, [7, 3]),
        ([1, 1, 1], 4, [2, 1, 1]),
        ([3], 7, [7]),
    ],
)
def test_lanes_dealt(weights: list[float], lanes: int, expected: list[int]) -> None:
    assert deal_lanes(weights, lanes) == expected


def test_the_lanes_of_each_source_are_spread() -> None:
    for counts, expected in (([2, 2], [[0, 2], [1, 3]]), ([1, 3], [[1], [0, 2, 3]])):
        assert [lanes.tolist() for lanes in spread_lanes(counts)] == expected


@pytest.mark.parametrize(
    ("weights", "sizes", "message"),
    [
        ({"C": 1.0}, {}, r"a weight is set for the source 'C', which is not in the archive; its sources: A; B"),
        ({"A": 1.0}, {}, r"none for the source B, which has windows too; every source needs one: A; B"),
        ({"A": 1.0, "B": 0.0}, {}, r"the weight of 'B' is 0.0; expected a share above 0"),
        ({"A": 1.0, "B": float("nan")}, {}, r"the weight of 'B' is nan"),
        (None, {"micro_batch": 8, "lanes": 1}, r"2 sources \(A; B\).*on 1 lanes.*numbers of lanes that work: 2, 4, 8"),
        (None, {"micro_batch": 1, "lanes": 1}, r"take a micro-batch of 2 windows or more"),
    ],
)
def test_what_cannot_be_mixed(weights: dict[str, float] | None, sizes: dict[str, int], message: str) -> None:
    index = two_sources([40], [60])
    table = select_windows(index, Selection(window=4))
    with pytest.raises(ConfigError, match=message):
        plan(index, table, replace(SMALL, global_batch=8, weights=weights, **sizes), epoch=0)


def test_a_weight_without_windows_and_repeats_without_end_are_refused() -> None:
    index = two_sources([3, 3], [60])
    table = select_windows(index, Selection(window=4))
    equal = replace(SMALL, weights={"A": 1, "B": 1})
    assert [share.source for share in mix_sources(index, table, SMALL)] == ["B"]
    with pytest.raises(ConfigError, match=r"source 'A', of which no window is selected"):
        mix_sources(index, table, equal)
    index = two_sources([4], [3000])
    table = select_windows(index, Selection(window=4))
    with pytest.raises(ConfigError, match=r"A: 1 windows, 1498 an epoch, 1498.0 times each; expected 1000"):
        mix_sources(index, table, equal)
