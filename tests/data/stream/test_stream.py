"""The stream: right pixels in the plan's order for all ranks and threads, bounded memory, errors that say where."""

import threading
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rainspark.data.errors import ConfigError
from rainspark.data.stream.blocks import BlockMaker
from rainspark.data.stream.options import ReadOptions
from rainspark.data.stream.stream import Stream, evaluation_batches
from rainspark.data.windows.plan import plan
from rainspark.data.windows.selection import Selection, select_windows
from tests.data.archives import PackedArchive
from tests.data.store.remote_folder import RemoteFolder
from tests.data.stream.streams import (
    COLS,
    FRAME_MB,
    LAYOUT,
    ROWS,
    WINDOW,
    check_pixels,
    content,
    read_epochs,
    stream_of,
    table_of,
)


@settings(max_examples=80, deadline=None)
@given(
    world_size=st.sampled_from([1, 2, 3, 4, 6, 12]),
    threads=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    window=st.integers(1, WINDOW),
    lanes=st.sampled_from([1, 2, 3, 4, 6, 12]),
    decoded_frames=st.sampled_from([4, 5, 9, 20, 50, 200]),
    block_bytes=st.sampled_from([1, 15_000, 60_000, 10**7]),
    first_step=st.integers(0, 20),
    count=st.integers(1, 12),
    prefetch_steps=st.integers(0, 3),
)
def test_ranks_together_deliver_the_plan(
    archive: PackedArchive,
    world_size: int,
    threads: int,
    seed: int,
    window: int,
    lanes: int,
    decoded_frames: int,
    block_bytes: int,
    first_step: int,
    count: int,
    prefetch_steps: int,
) -> None:
    table = select_windows(archive.index, Selection(window=window))
    layout = replace(LAYOUT, seed=seed, lanes=lanes, block_bytes=block_bytes)
    options = ReadOptions(threads=threads, decoded_mb=decoded_frames * FRAME_MB, prefetch_steps=prefetch_steps)
    streams = [
        Stream(archive.storage, archive.index, table, layout, rank=rank, world_size=world_size, options=options)
        for rank in range(world_size)
    ]
    steps_per_epoch = streams[0].steps_per_epoch
    assert {stream.steps_per_epoch for stream in streams} == {len(table) // 24}

    runs = [list(stream.steps(first_step, first_step + count)) for stream in streams]
    assert {len(run) for run in runs} == {count}
    for number, step in enumerate(range(first_step, first_step + count)):
        epoch, in_epoch = divmod(step, steps_per_epoch)
        expected_ab = plan(archive.index, table, layout, epoch)[in_epoch]
        for micro_step in range(2):
            batches = [run[number][micro_step] for run in runs]
            assert np.concatenate([batch.window_b for batch in batches]).tolist() == expected_ab[micro_step].tolist()
            places = np.arange(12) + micro_step * 12
            assert np.concatenate([batch.index_b for batch in batches]).tolist() == places.tolist()
            for batch in batches:
                assert (batch.step, batch.micro_step, batch.epoch) == (step, micro_step, epoch)
                check_pixels(archive, table, batch)

    for stream in streams:
        stats = stream.stats()
        assert stats["decoded_bytes_peak"] <= decoded_frames * ROWS * COLS * 2
        assert stats["windows"] == count * 24 // world_size


def test_one_stream_can_be_started_again(archive: PackedArchive) -> None:
    stream = stream_of(archive.storage, archive.index)
    first = [content(step) for step in stream.steps(0, 4)]
    assert [content(step) for step in stream.steps(0, 4)] == first
    assert stream.stats()["windows"] == 2 * 4 * 24
    assert list(stream.steps(4, 4)) == []
    with pytest.raises(ConfigError, match="first step is -1"):
        next(stream.steps(-1, 4))


def test_memory_is_used_again_only_when_nobody_holds_it(archive: PackedArchive) -> None:
    stream = stream_of(archive.storage, archive.index, prefetch_steps=1)
    held, before, places = [], [], set()
    for number, batches in enumerate(stream.steps(0, 20)):
        places.add(batches[0].counts_bthw.data_ptr())
        if number % 3 == 0:
            # A slice shares the storage, as what a task keeps of a batch may.
            held.append(batches[1].counts_bthw[2:, 1:])
            before.append(held[-1].clone())
        del batches
    for now, then in zip(held, before, strict=True):
        assert torch.equal(now.view(torch.int16), then.view(torch.int16))
    assert len(places) < 20


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_sequence_is_read_by_one_rank_in_an_epoch(archive: PackedArchive, world_size: int) -> None:
    table = table_of(archive.index)
    readers: list[set[int]] = []
    for rank in range(world_size):
        stream = stream_of(archive.storage, archive.index, rank=rank, world_size=world_size)
        rows = np.concatenate([b.window_b for step in stream.steps(0, stream.steps_per_epoch) for b in step])
        readers.append(set(table.sequence[rows].tolist()))
        # A sequence that lies across the seam of two lanes is read once more at most.
        assert len(readers[-1]) <= stream.stats()["requests"] <= len(readers[-1]) + 4 // world_size
    shared = sum(len(seen) for seen in readers) - len(set().union(*readers))
    assert shared <= world_size - 1


def test_neighbouring_windows_share_decoded_frames(archive: PackedArchive) -> None:
    decoded = []
    for frames in (1000, 4):
        stream = stream_of(archive.storage, archive.index, decoded_mb=frames * FRAME_MB, block_bytes=10**7)
        stats = read_epochs(stream)
        decoded.append(stats["frames_decoded"] / stats["windows"])
    assert decoded[0] < 1.6
    assert decoded[0] < decoded[1] <= WINDOW


def test_closing_early_joins_all_threads(archive: PackedArchive) -> None:
    stream = stream_of(archive.storage, archive.index, threads=3)
    slow = stream_of(RemoteFolder(archive.folder, latency_s=0.02), archive.index)
    evaluation = evaluation_batches(archive.storage, archive.index, table_of(archive.index), micro_batch=8)
    iterators: list[tuple[Generator[Any, None, None], int]] = [(stream.steps(0, 50), taken) for taken in range(3)]
    for steps, num_taken in [*iterators, (slow.steps(0, 50), 1), (evaluation, 1)]:
        for _ in range(num_taken):
            next(steps)
        steps.close()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("rainspark")]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("limit", [None, 13])
def test_evaluation_is_exact(archive: PackedArchive, world_size: int, threads: int, limit: int | None) -> None:
    table = table_of(archive.index)
    options = ReadOptions(threads=threads, decoded_mb=5 * FRAME_MB)
    of_all: dict[str, Any] = {"micro_batch": 8, "world_size": world_size, "limit": limit, "options": options}
    ranks = [
        list(evaluation_batches(archive.storage, archive.index, table, rank=rank, **of_all))
        for rank in range(world_size)
    ]
    count = len(table) if limit is None else limit
    assert {len(batches) for batches in ranks} == {-(-count // 8)}
    seen = [row for step in zip(*ranks, strict=True) for batch in step for row in batch.window_b.tolist()]
    assert [row for row in seen if row >= 0] == [i * len(table) // count for i in range(count)]
    assert seen[count:] == [-1] * (len(seen) - count)
    for batch in (batch for batches in ranks for batch in batches):
        check_pixels(archive, table, batch)


def test_fingerprint_distinguishes_plans(archive: PackedArchive) -> None:
    def fingerprint(**changes: Any) -> dict[str, Any]:
        return stream_of(archive.storage, archive.index, **changes).fingerprint()

    base = fingerprint()
    assert base == fingerprint(threads=5, decoded_mb=2, rank=1, world_size=2)
    of_layout = ["seed", "global_batch", "micro_batch", "lanes", "block_bytes", "weights"]
    assert list(base) == ["data", "selection", "windows", *of_layout]
    for change in ({"seed": 4}, {"global_batch": 12}, {"micro_batch": 24}, {"lanes": 2}, {"block_bytes": 1}):
        assert fingerprint(**change) != base
    wet = select_windows(archive.index, Selection(window=WINDOW, min_rain_fraction=0.01))
    assert Stream(archive.storage, archive.index, wet, LAYOUT).fingerprint() != base


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoded_mb": 3.9 * FRAME_MB}, r"holds 3 frames of 12 x 16 pixels.*one window of 4"),
        ({"threads": 0}, "threads is 0; expected at least 1"),
        ({"prefetch_mb": -1}, "prefetch_mb is -1; expected at least 0"),
        ({"prefetch_steps": -1}, "prefetch_steps is -1; expected at least 0"),
        ({"readers": 0}, "readers is 0; expected at least 1"),
        ({"quarantine": -1}, "quarantine is -1; expected at least 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2 processes; expected 0 to 1"),
        ({"world_size": 5}, "5 processes; numbers of processes that work: 1, 2, 3, 4, 6, 12"),
        ({"global_batch": 12000}, "fewer than one global batch"),
    ],
)
def test_settings_that_cannot_work(archive: PackedArchive, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stream_of(archive.storage, archive.index, **change)


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no CUDA device")
def test_pinned_memory_needs_a_device(archive: PackedArchive) -> None:
    with pytest.raises(ConfigError, match="without a CUDA device"):
        stream_of(archive.storage, archive.index, pin_memory=True)


def test_block_maker_marks_missing_windows(archive: PackedArchive) -> None:
    table = table_of(archive.index)
    rows = np.concatenate([np.arange(len(table)), [-1]])
    zeros = np.zeros(len(rows), np.int64)
    halves = (rows > len(table) // 2).astype(np.int64)
    blocks = list(BlockMaker(archive.index, table).blocks(halves, rows, zeros, zeros, zeros))
    assert [len(block) for block in blocks] == [len(table) // 2 + 1, len(table) - len(table) // 2 - 1, 1]
    expected = [bool((archive.window(table, row) == 65535).any()) for row in range(len(table))]
    assert np.concatenate([block.missing_n for block in blocks]).tolist() == [*expected, False]
    assert 0 < sum(expected) < len(expected)


@pytest.mark.gpu
def test_pinned_batches_survive_copies_that_nobody_waits_for(archive: PackedArchive) -> None:
    table = table_of(archive.index)
    copies = []
    for batches in stream_of(archive.storage, archive.index, pin_memory=True).steps(0, 20):
        for batch in batches:
            assert batch.counts_bthw.is_pinned()
            copies.append((batch.window_b, batch.counts_bthw.to("cuda", non_blocking=True)))
    torch.cuda.synchronize()
    for rows, counts in copies:
        expected = np.stack([archive.window(table, row) for row in rows.tolist()])
        np.testing.assert_array_equal(counts.cpu().numpy(), expected)
