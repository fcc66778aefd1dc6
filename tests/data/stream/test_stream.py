"""The stream: right pixels in the plan's order for all ranks and threads, bounded memory, errors that say where."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rainspark.data.errors import ConfigError
from rainspark.data.stream.feed import BlockMaker
from rainspark.data.stream.stream import Batch, Stream, evaluation_batches
from rainspark.data.windows.plan import plan
from rainspark.data.windows.selection import Selection, WindowTable, select_windows
from tests.data.archives import PackedArchive, pack_archive, random_runs
from tests.data.store.remote_folder import RemoteFolder

ROWS, COLS, WINDOW = 12, 16, 4
FRAME_MB = ROWS * COLS * 2 / 2**20


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> PackedArchive:
    """Pack 8 runs, some shorter than a window, into 5 shards; a few frames lack a pixel."""
    runs = random_runs([40, 3, 25, 70, 9, 2, 33, 14], ROWS, COLS, missing=True)
    return pack_archive(tmp_path_factory.mktemp("shards"), runs, window=WINDOW, max_frames=15, num_shards=5)


def make_stream(archive: PackedArchive, table: WindowTable, **changes: Any) -> Stream:
    sizes: dict[str, Any] = {
        "seed": 3,
        "global_batch": 24,
        "micro_batch": 12,
        "lanes": 4,
        "block_bytes": 60_000,
        "decoded_mb": 40 * FRAME_MB,
    }
    return Stream(archive.storage, archive.index, table, **(sizes | changes))


def content(batches: list[Batch]) -> list[tuple[Any, ...]]:
    return [
        (
            b.step,
            b.micro_step,
            b.epoch,
            b.has_missing,
            b.window_b.tolist(),
            b.index_b.tolist(),
            b.counts_bthw.numpy().tobytes(),
        )
        for b in batches
    ]


def check_pixels(archive: PackedArchive, table: WindowTable, batch: Batch) -> None:
    counts = batch.counts_bthw.numpy()
    for place, row in enumerate(batch.window_b.tolist()):
        expected = archive.window(table, row) if row >= 0 else np.zeros_like(counts[place])
        np.testing.assert_array_equal(counts[place], expected)
    assert batch.has_missing == bool((counts == 65535).any())


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
    sizes: dict[str, Any] = {
        "seed": seed,
        "global_batch": 24,
        "micro_batch": 12,
        "lanes": lanes,
        "block_bytes": block_bytes,
    }
    streams = [
        Stream(
            archive.storage,
            archive.index,
            table,
            rank=rank,
            world_size=world_size,
            threads=threads,
            decoded_mb=decoded_frames * FRAME_MB,
            prefetch_steps=prefetch_steps,
            **sizes,
        )
        for rank in range(world_size)
    ]
    steps_per_epoch = streams[0].steps_per_epoch
    assert {stream.steps_per_epoch for stream in streams} == {len(table) // 24}
    runs = [list(stream.steps(first_step, first_step + count)) for stream in streams]
    assert {len(run) for run in runs} == {count}
    for number, step in enumerate(range(first_step, first_step + count)):
        epoch, in_epoch = divmod(step, steps_per_epoch)
        expected_ab = plan(archive.index, table, epoch=epoch, **sizes)[in_epoch]
        for micro_step in range(2):
            parts = [run[number][micro_step] for run in runs]
            assert np.concatenate([part.window_b for part in parts]).tolist() == expected_ab[micro_step].tolist()
            assert np.concatenate([part.index_b for part in parts]).tolist() == list(
                range(micro_step * 12, micro_step * 12 + 12)
            )
            for part in parts:
                assert (part.step, part.micro_step, part.epoch) == (step, micro_step, epoch)
                check_pixels(archive, table, part)
    for stream in streams:
        stats = stream.stats()
        assert stats["decoded_bytes_peak"] <= decoded_frames * ROWS * COLS * 2
        assert stats["windows"] == count * 24 // world_size


def test_any_position_restores_exactly(archive: PackedArchive) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    whole = list(make_stream(archive, table, threads=3).steps(0, 20))
    assert make_stream(archive, table).steps_per_epoch < 10
    for first in range(0, 20, 3):
        again = list(make_stream(archive, table, threads=1).steps(first, 20))
        assert [content(step) for step in again] == [content(step) for step in whole[first:]]


def test_one_stream_can_be_started_again(archive: PackedArchive) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    stream = make_stream(archive, table)
    first = [content(step) for step in stream.steps(0, 4)]
    assert [content(step) for step in stream.steps(0, 4)] == first
    assert stream.stats()["windows"] == 2 * 4 * 24
    assert list(stream.steps(4, 4)) == []
    with pytest.raises(ConfigError, match="first step is -1"):
        next(stream.steps(-1, 4))


def test_memory_is_used_again_only_when_nobody_holds_it(archive: PackedArchive) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    stream = make_stream(archive, table, prefetch_steps=1)
    held, before, places = [], [], set()
    for number, batches in enumerate(stream.steps(0, 20)):
        places.add(batches[0].counts_bthw.data_ptr())
        if number % 3 == 0:
            # A slice shares the storage, as what a task keeps of a batch may.
            held.append(batches[1].counts_bthw[2:, 1:])
            before.append(held[-1].clone())
        del batches
    assert all(
        torch.equal(now.view(torch.int16), then.view(torch.int16)) for now, then in zip(held, before, strict=True)
    )
    assert len(places) < 20


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_sequence_is_read_by_one_rank_in_an_epoch(archive: PackedArchive, world_size: int) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    readers: list[set[int]] = []
    for rank in range(world_size):
        stream = make_stream(archive, table, rank=rank, world_size=world_size)
        rows = np.concatenate([b.window_b for step in stream.steps(0, stream.steps_per_epoch) for b in step])
        readers.append(set(table.sequence[rows].tolist()))
        assert stream.stats()["requests"] >= len(readers[-1])
        # A sequence that lies across the seam of two lanes is read once more at most.
        assert stream.stats()["requests"] <= len(readers[-1]) + 4 // world_size
    shared = sum(len(seen) for seen in readers) - len(set().union(*readers))
    assert shared <= world_size - 1


@pytest.mark.parametrize("lanes", [1, 4, 12])
@pytest.mark.parametrize("frames", [4, 20, 100])
def test_decoded_frames_stay_within_their_budget(archive: PackedArchive, lanes: int, frames: int) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    stream = make_stream(archive, table, decoded_mb=frames * FRAME_MB, lanes=lanes, threads=3)
    for _ in stream.steps(0, 2 * stream.steps_per_epoch):
        pass
    peak_frames = stream.stats()["decoded_bytes_peak"] / (ROWS * COLS * 2)
    assert peak_frames <= frames
    assert peak_frames > 0 or frames < lanes


def test_neighbouring_windows_share_decoded_frames(archive: PackedArchive) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    decoded = []
    for frames in (1000, 4):
        stream = make_stream(archive, table, decoded_mb=frames * FRAME_MB, block_bytes=10**7)
        for _ in stream.steps(0, stream.steps_per_epoch):
            pass
        decoded.append(stream.stats()["frames_decoded"] / stream.stats()["windows"])
    assert decoded[0] < 1.6
    assert decoded[0] < decoded[1] <= WINDOW


def test_closing_early_joins_all_threads(archive: PackedArchive) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    stream = make_stream(archive, table, threads=3)
    for taken in range(3):
        steps = stream.steps(0, 50)
        for _ in range(taken):
            next(steps)
        steps.close()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("rainspark")]
    slow = RemoteFolder(archive.folder, latency_s=0.02)
    steps = Stream(
        slow, archive.index, table, seed=0, global_batch=24, micro_batch=12, lanes=4, block_bytes=60_000, decoded_mb=1
    ).steps(0, 50)
    next(steps)
    steps.close()
    evaluation = evaluation_batches(archive.storage, archive.index, table, micro_batch=8)
    next(evaluation)
    evaluation.close()


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("limit", [None, 13])
def test_evaluation_is_exact(archive: PackedArchive, world_size: int, threads: int, limit: int | None) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    ranks = [
        list(
            evaluation_batches(
                archive.storage,
                archive.index,
                table,
                micro_batch=8,
                rank=rank,
                world_size=world_size,
                limit=limit,
                threads=threads,
                decoded_mb=5 * FRAME_MB,
            )
        )
        for rank in range(world_size)
    ]
    count = len(table) if limit is None else limit
    assert {len(batches) for batches in ranks} == {-(-count // 8)}
    seen = [row for parts in zip(*ranks, strict=True) for part in parts for row in part.window_b.tolist()]
    assert [row for row in seen if row >= 0] == [i * len(table) // count for i in range(count)]
    assert seen[count:] == [-1] * (len(seen) - count)
    for batches in ranks:
        for batch in batches:
            check_pixels(archive, table, batch)


def test_fingerprint_tells_plans_apart(archive: PackedArchive) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    base = make_stream(archive, table).fingerprint()
    assert base == make_stream(archive, table, threads=5, decoded_mb=1, rank=1, world_size=2).fingerprint()
    others = [
        make_stream(archive, table, **change).fingerprint()
        for change in ({"seed": 4}, {"global_batch": 12}, {"micro_batch": 24}, {"lanes": 2}, {"block_bytes": 1})
    ]
    wet = select_windows(archive.index, Selection(window=WINDOW, min_rain_fraction=0.01))
    others.append(make_stream(archive, wet).fingerprint())
    assert all(other != base for other in others)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoded_mb": 3.9 * FRAME_MB}, r"holds 3 frames of 12 x 16 pixels.*one window of 4"),
        ({"threads": 0}, "0 threads"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2 processes; expected 0 to 1"),
        ({"world_size": 5}, "5 processes; numbers of processes that work: 1, 2, 3, 4, 6, 12"),
        ({"global_batch": 12000}, "fewer than one global batch"),
    ],
)
def test_settings_that_cannot_work(archive: PackedArchive, change: dict[str, Any], message: str) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    with pytest.raises(ConfigError, match=message):
        make_stream(archive, table, **({"micro_batch": 12} | change))


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no CUDA device")
def test_pinned_memory_needs_a_device(archive: PackedArchive) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    with pytest.raises(ConfigError, match="without a CUDA device"):
        make_stream(archive, table, pin_memory=True)


def test_block_maker_marks_missing_windows(archive: PackedArchive) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    rows = np.concatenate([np.arange(len(table)), [-1]])
    zeros = np.zeros(len(rows), np.int64)
    block = BlockMaker(archive.index, table).block(rows, zeros, zeros, zeros)
    expected = [bool((archive.window(table, row) == 65535).any()) for row in range(len(table))]
    assert block.missing_n.tolist() == [*expected, False]
    assert 0 < sum(expected) < len(expected)


@pytest.mark.gpu
def test_pinned_batches_survive_copies_that_nobody_waits_for(archive: PackedArchive) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    copies = []
    for batches in make_stream(archive, table, pin_memory=True).steps(0, 20):
        for batch in batches:
            assert batch.counts_bthw.is_pinned()
            copies.append((batch.window_b, batch.counts_bthw.to("cuda", non_blocking=True)))
    torch.cuda.synchronize()
    for rows, counts in copies:
        expected = np.stack([archive.window(table, row) for row in rows.tolist()])
        np.testing.assert_array_equal(counts.cpu().numpy(), expected)


def test_statistics_of_iterators_under_way_together_add_up(archive: PackedArchive) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    alone = make_stream(archive, table)
    for _ in alone.steps(0, 6):
        pass
    stream = make_stream(archive, table)
    first, second = stream.steps(0, 6), stream.steps(0, 6)
    next(first)
    next(second)
    for _ in first:
        pass
    assert stream.stats()["windows"] >= 6 * 24 + 24
    for _ in second:
        pass
    both = stream.stats()
    for name in ("windows", "requests", "bytes_read", "frames_decoded"):
        assert both[name] == 2 * alone.stats()[name], name
    assert both["decoded_bytes_peak"] >= alone.stats()["decoded_bytes_peak"]
    assert stream.stats() == both
