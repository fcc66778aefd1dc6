"""Reading from a store: the folder's windows whatever way they came, bounded bytes ahead."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rainspark.data.errors import DataError
from rainspark.data.store.storage import Storage
from rainspark.data.stream.reading import SequenceReader
from tests.data.archives import PackedArchive
from tests.data.store.remote_folder import Damage, RemoteFolder
from tests.data.stream.streams import LAYOUT, content, read_epochs, stream_of, table_of

MIB = 2**20


@contextmanager
def reader_of(storage: Storage, archive: PackedArchive, readers: int) -> Iterator[SequenceReader]:
    reader = SequenceReader(storage, archive.index, readers=readers, ahead_bytes=MIB)
    try:
        yield reader
    finally:
        reader.close()


def longest_sequence(archive: PackedArchive) -> int:
    return max(entry.num_bytes for entry in archive.index.sequences)


@settings(max_examples=25, deadline=None)
@given(
    prefetch_mb=st.sampled_from([0, 0.001, 0.01, 0.05, 512]),
    readers=st.integers(1, 6),
    threads=st.integers(1, 3),
    world_size=st.sampled_from([1, 2, 3, 4]),
    latency_s=st.sampled_from([0, 0.0005]),
    damaged=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 3)), max_size=4),
)
def test_a_store_delivers_what_the_folder_does(
    archive: PackedArchive,
    prefetch_mb: float,
    readers: int,
    threads: int,
    world_size: int,
    latency_s: float,
    damaged: list[tuple[int, int]],
) -> None:
    entries = archive.index.sequences
    damage = [
        Damage(archive.index.shards[entry.shard].name, entry.offset + entry.num_bytes // 2, times)
        for entry, times in ((entries[number % len(entries)], times) for number, times in damaged)
    ]
    remote = RemoteFolder(archive.folder, latency_s=latency_s, damage=damage)
    for rank in range(world_size):
        part: dict[str, Any] = {"rank": rank, "world_size": world_size}
        expected = [content(step) for step in stream_of(archive.storage, archive.index, **part).steps(0, 12)]
        changes: dict[str, Any] = {"prefetch_mb": prefetch_mb, "readers": readers, "threads": threads}
        stream = stream_of(remote, archive.index, **part, **changes)
        assert [content(step) for step in stream.steps(0, 12)] == expected
        stats = stream.stats()
        assert stats["ahead_bytes_peak"] <= prefetch_mb * MIB
        assert stats["quarantined"] == stats["windows_lost"] == 0
    assert stats["store_requests"] == len(remote.ranges)
    assert remote.in_flight_peak <= readers


@pytest.mark.parametrize("prefetch_mb", [0, 0.001])
def test_a_budget_below_one_sequence_still_goes_on(archive: PackedArchive, prefetch_mb: float) -> None:
    assert prefetch_mb * MIB < longest_sequence(archive)
    for lanes, readers in ((1, 1), (12, 1), (4, 5)):
        changes: dict[str, Any] = {"prefetch_mb": prefetch_mb, "lanes": lanes, "readers": readers}
        stream = stream_of(RemoteFolder(archive.folder), archive.index, **changes)
        stats = read_epochs(stream, 2)
        assert stats["windows"] == 2 * stream.steps_per_epoch * LAYOUT.global_batch
        assert stats["ahead_bytes_peak"] <= prefetch_mb * MIB
        assert stats["held_bytes_peak"] >= longest_sequence(archive)


def test_what_is_held_is_bounded_by_blocks_and_budget(archive: PackedArchive) -> None:
    in_use = LAYOUT.lanes * (LAYOUT.block_bytes + longest_sequence(archive))
    whole = sum(entry.num_bytes for entry in archive.index.sequences)
    for prefetch_mb in (0.0, 0.05, 512):
        remote = RemoteFolder(archive.folder, latency_s=0.0002)
        stats = read_epochs(stream_of(remote, archive.index, prefetch_mb=prefetch_mb, threads=3), 3)
        assert stats["held_bytes_peak"] <= in_use + min(prefetch_mb * MIB, whole)


@pytest.mark.parametrize("readers", [1, 2])
def test_what_the_first_step_needs_of_every_lane_is_read_first(archive: PackedArchive, readers: int) -> None:
    remote = RemoteFolder(archive.folder, latency_s=0.002)
    changes: dict[str, Any] = {"block_bytes": 10_000, "global_batch": 12, "threads": 1, "readers": readers}
    stream = stream_of(remote, archive.index, **changes)
    steps = stream.steps(0, stream.steps_per_epoch)
    (batch,) = next(steps)
    steps.close()
    needed = [archive.index.sequences[n] for n in set(table_of(archive.index).sequence[batch.window_b].tolist())]
    is_needed = [
        any(archive.index.shards[entry.shard].name == name and start <= entry.offset < stop for entry in needed)
        for name, start, stop in remote.ranges
    ]
    assert is_needed.count(True) >= LAYOUT.lanes - 1
    # A reader takes what is there: the other ones may be at work before the last lane has asked.
    assert is_needed[: is_needed.count(True)].count(False) <= readers - 1
    assert len(is_needed) > is_needed.count(True)


@pytest.mark.parametrize("times", [1, 2, -1])
def test_a_sequence_that_was_damaged_on_the_way_is_read_again(archive: PackedArchive, times: int) -> None:
    bad = archive.index.sequences[0]
    shard = archive.index.shards[bad.shard].name
    remote = RemoteFolder(archive.folder, damage=[Damage(shard, bad.frames_offset + 9, times)])
    stream = stream_of(remote, archive.index, lanes=1, block_bytes=10**7)
    if times > 0:
        assert read_epochs(stream)["retries"] == times
    else:
        with pytest.raises(DataError, match=rf"shard {shard}, key {bad.key}: SHA-256 .* expected {bad.sha256}"):
            read_epochs(stream)
    again = remote.ranges.count((shard, bad.offset, bad.offset + bad.num_bytes))
    assert again == (times + 1 if times > 0 else 4)


def test_a_dead_store_is_named_and_ends_all_threads(archive: PackedArchive) -> None:
    remote = RemoteFolder(archive.folder)
    stream = stream_of(remote, archive.index, quarantine=1000, prefetch_mb=0.01, block_bytes=15_000)
    steps = stream.steps(0, 3 * stream.steps_per_epoch)
    next(steps)
    remote.is_dead = True
    with pytest.raises(DataError, match=r"shard shard-0000\d.tar, keys? s\d+.*: cannot be read: .*no answer within"):
        list(steps)
    assert stream.stats()["quarantined"] == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rainspark")]


def test_readers_follow_the_storage(archive: PackedArchive) -> None:
    remote = RemoteFolder(archive.folder)
    for storage, readers, expected in ((archive.storage, None, 3), (remote, None, 8), (remote, 2, 2)):
        steps = stream_of(storage, archive.index, threads=3, readers=readers).steps(0, 2)
        next(steps)
        assert sum(thread.name.startswith("rainspark-read") for thread in threading.enumerate()) == expected
        steps.close()


def test_statistics_count_the_stores_tries_beside_what_was_asked(archive: PackedArchive) -> None:
    entry = archive.index.sequences[0]
    damage = [Damage(archive.index.shards[entry.shard].name, entry.frames_offset, 3)]
    stats = read_epochs(stream_of(RemoteFolder(archive.folder, damage=damage), archive.index, prefetch_mb=0))
    assert stats["retries"] == 3
    assert stats["store_requests"] == stats["requests"] + 3
    assert stats["store_bytes_read"] == stats["bytes_read"] + 3 * entry.num_bytes
    assert stats["wait_s"] == 0


def test_nothing_is_left_over_after_a_run(archive: PackedArchive) -> None:
    with reader_of(RemoteFolder(archive.folder), archive, 2) as reader:
        for _ in range(3):
            needs = [(number, 0) for number in range(len(archive.index.sequences))]
            reader.request(needs)
            reader.request(needs[:5])
            for number, _ in needs:
                reader.frames(number)
                reader.release(number)
            for number, _ in needs[:5]:
                reader.release(number)
        assert (reader._held_bytes, reader._ahead_bytes, reader._payloads) == (0, 0, {})
