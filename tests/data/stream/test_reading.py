"""Reading from a store: the folder's windows whatever way they came, neighbours by one request, bounded bytes ahead."""

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.store.storage import Storage
from rainspark.data.stream import feed
from rainspark.data.stream import reading as sequence_reader
from rainspark.data.stream.reading import SequenceReader
from rainspark.data.stream.stream import Batch, Stream, evaluation_batches
from rainspark.data.windows.selection import Selection, select_windows
from tests.data.archives import PackedArchive, pack_archive, random_runs
from tests.data.store.remote_folder import Damage, RemoteFolder

ROWS, COLS, WINDOW = 12, 16, 4
SIZES: dict[str, Any] = {
    "seed": 3, "global_batch": 24, "micro_batch": 12, "lanes": 4, "block_bytes": 60_000, "decoded_mb": 1,
}  # fmt: skip
MIB = 2**20


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> PackedArchive:
    runs = random_runs([40, 3, 25, 70, 9, 2, 33, 14], ROWS, COLS, missing=True)
    return pack_archive(tmp_path_factory.mktemp("shards"), runs, window=WINDOW, max_frames=15, num_shards=3)


def stream_of(storage: Storage, archive: PackedArchive, **changes: Any) -> Stream:
    table = select_windows(archive.index, Selection(window=WINDOW))
    return Stream(storage, archive.index, table, **(SIZES | changes))


def content(batches: list[Batch]) -> list[tuple[Any, ...]]:
    return [(b.window_b.tolist(), b.has_missing, b.scale_mmh_b.tolist(), b.counts_bthw.numpy().tobytes())
            for b in batches]  # fmt: skip


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
        expected = [content(step) for step in stream_of(archive.storage, archive, **part).steps(0, 12)]
        settings: dict[str, Any] = {"prefetch_mb": prefetch_mb, "readers": readers, "threads": threads}
        stream = stream_of(remote, archive, **part, **settings)
        assert [content(step) for step in stream.steps(0, 12)] == expected
        stats = stream.stats()
        assert stats["ahead_bytes_peak"] <= prefetch_mb * MIB
        assert stats["quarantined"] == stats["windows_lost"] == 0
    assert stats["store_requests"] == len(remote.reads.ranges)
    assert remote.in_flight_peak <= readers


@pytest.mark.parametrize("prefetch_mb", [0, 0.001])
def test_a_budget_below_one_sequence_still_goes_on(archive: PackedArchive, prefetch_mb: float) -> None:
    assert prefetch_mb * MIB < longest_sequence(archive)
    for lanes, readers in ((1, 1), (12, 1), (4, 5)):
        stream = stream_of(RemoteFolder(archive.folder), archive, prefetch_mb=prefetch_mb, lanes=lanes, readers=readers)
        assert len(list(stream.steps(0, 2 * stream.steps_per_epoch))) == 2 * stream.steps_per_epoch
        assert stream.stats()["ahead_bytes_peak"] <= prefetch_mb * MIB
        assert stream.stats()["held_bytes_peak"] >= longest_sequence(archive)


def test_what_is_held_is_bounded_by_blocks_and_budget(archive: PackedArchive) -> None:
    for prefetch_mb in (0.0, 0.05, 512):
        stream = stream_of(RemoteFolder(archive.folder, latency_s=0.0002), archive, prefetch_mb=prefetch_mb, threads=3)
        for _ in stream.steps(0, 3 * stream.steps_per_epoch):
            pass
        in_use = SIZES["lanes"] * (SIZES["block_bytes"] + longest_sequence(archive))
        whole = sum(entry.num_bytes for entry in archive.index.sequences)
        assert stream.stats()["held_bytes_peak"] <= in_use + min(prefetch_mb * MIB, whole)


def test_neighbours_are_read_by_one_request(archive: PackedArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    num_sequences = len(np.unique(table.sequence))
    requests = {}
    for range_bytes in (0, 30_000, 8 * MIB):
        monkeypatch.setattr(feed, "RANGE_BYTES", range_bytes)
        remote = RemoteFolder(archive.folder)
        stream = stream_of(remote, archive, lanes=1, block_bytes=10**7)
        for _ in stream.steps(0, stream.steps_per_epoch):
            pass
        requests[range_bytes] = len(remote.reads.ranges)
        assert stream.stats()["requests"] == requests[range_bytes]
        longest = max(stop - start for _, start, stop in remote.reads.ranges)
        assert longest <= max(range_bytes, longest_sequence(archive))
        # Nothing is read twice.
        assert sum(stop - start for _, start, stop in remote.reads.ranges) <= sum(
            shard.num_bytes for shard in archive.index.shards
        )
    assert requests[0] == num_sequences
    assert num_sequences / 3 > requests[30_000] > requests[8 * MIB] == len(archive.index.shards)
    folder = stream_of(archive.storage, archive, lanes=1, block_bytes=10**7)
    for _ in folder.steps(0, folder.steps_per_epoch):
        pass
    assert folder.stats()["requests"] == num_sequences


def test_ranges_skip_holes_and_never_cross_shards(archive: PackedArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_reader, "HOLE_BYTES", 0)
    entries = archive.index.sequences
    by_place = sorted(range(len(entries)), key=lambda number: (entries[number].shard, entries[number].offset))
    wanted = [number for place, number in enumerate(by_place) if place % 4 != 1]
    remote = RemoteFolder(archive.folder)
    reader = SequenceReader(remote, archive.index, readers=2, ahead_bytes=MIB, range_bytes=MIB)
    try:
        reader.request([(number, 0) for number in wanted])
        for number in wanted:
            entry = entries[number]
            begin = entry.frames_offset
            data = archive.storage.read(archive.index.shards[entry.shard].name, begin, begin + entry.frames_bytes)
            assert bytes(reader.frames(number)) == data
    finally:
        reader.close()
    places = {(entries[number].shard, entries[number].offset): number for number in wanted}
    read = {number for name, start, stop in remote.reads.ranges for (shard, offset), number in places.items()
            if archive.index.shards[shard].name == name and start <= offset < stop}  # fmt: skip
    assert read == set(wanted)
    assert sum(stop - start for _, start, stop in remote.reads.ranges) == sum(entries[n].num_bytes for n in wanted)


@pytest.mark.parametrize("readers", [1, 2])
def test_what_the_first_step_needs_of_every_lane_is_read_first(archive: PackedArchive, readers: int) -> None:
    remote = RemoteFolder(archive.folder, latency_s=0.002)
    changes: dict[str, Any] = {"block_bytes": 10_000, "global_batch": 12}
    stream = stream_of(remote, archive, **changes, threads=1, readers=readers)
    steps = stream.steps(0, stream.steps_per_epoch)
    (batch,) = next(steps)
    steps.close()
    table = select_windows(archive.index, Selection(window=WINDOW))
    places = {}
    for number in set(table.sequence[batch.window_b].tolist()):
        entry = archive.index.sequences[number]
        places[archive.index.shards[entry.shard].name, entry.offset] = number
    is_needed = [any(shard == name and start <= at < stop for shard, at in places)
                 for name, start, stop in remote.reads.ranges]  # fmt: skip
    assert is_needed.count(True) >= SIZES["lanes"] - 1
    # A reader takes what is there: the first ones may be at work before the last lane has asked.
    assert False not in is_needed[: is_needed.count(True)]
    assert len(is_needed) > is_needed.count(True)


@pytest.mark.parametrize("times", [1, 2, -1])
def test_a_damaged_sequence_of_a_range_is_read_again_alone(archive: PackedArchive, times: int) -> None:
    shard = archive.index.shards[1].name
    some = sorted((entry for entry in archive.index.sequences if entry.shard == 1), key=lambda entry: entry.offset)
    bad = some[3]
    remote = RemoteFolder(archive.folder, damage=[Damage(shard, bad.frames_offset + 9, times)])
    stream = stream_of(remote, archive, lanes=1, block_bytes=10**7)
    if times > 0:
        assert len(list(stream.steps(0, stream.steps_per_epoch))) == stream.steps_per_epoch
        assert stream.stats()["retries"] == times - 1
    else:
        with pytest.raises(DataError, match=rf"shard {shard}, key {bad.key}: SHA-256 .* expected {bad.sha256}"):
            list(stream.steps(0, stream.steps_per_epoch))
    again = [one for one in remote.reads.ranges if one == (shard, bad.offset, bad.offset + bad.num_bytes)]
    assert len(again) == (times if times > 0 else 4)
    assert len(remote.reads.ranges) == len(archive.index.shards) + len(again)


def test_a_dead_store_is_named_and_ends_all_threads(archive: PackedArchive) -> None:
    remote = RemoteFolder(archive.folder)
    stream = stream_of(remote, archive, quarantine=1000, prefetch_mb=0.01, block_bytes=15_000)
    steps = stream.steps(0, 3 * stream.steps_per_epoch)
    next(steps)
    remote.is_dead = True
    with pytest.raises(DataError, match=r"shard shard-0000\d.tar, keys? s\d+.*: cannot be read: .*no answer within"):
        list(steps)
    assert stream.stats()["quarantined"] == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rainspark")]


class DyingFolder(RemoteFolder):
    """Damages the first range on its way, and is dead from then on."""

    tries = 0

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Count the tries."""
        self.tries += 1
        self.is_dead = self.tries > 1
        data = super().read(name, start, stop)
        return bytes(len(data))


def test_a_store_that_dies_after_a_damaged_range_is_asked_once_more_only(archive: PackedArchive) -> None:
    entries = archive.index.sequences
    numbers = [number for number, entry in enumerate(entries) if entry.shard == 0]
    numbers.sort(key=lambda number: entries[number].offset)
    remote = DyingFolder(archive.folder)
    reader = SequenceReader(remote, archive.index, readers=1, ahead_bytes=MIB, range_bytes=MIB)
    try:
        reader.request([(number, 0) for number in numbers])
        for number in numbers:
            with pytest.raises(DataError, match=f"key {entries[numbers[0]].key}: cannot be read: .*no answer"):
                reader.frames(number)
            reader.release(number)
    finally:
        reader.close()
    assert remote.tries == 2
    assert (reader._held_bytes, reader._ahead_bytes, reader._payloads) == (0, 0, {})


def test_closing_while_everything_waits_joins_all_threads(archive: PackedArchive) -> None:
    for prefetch_mb in (0, 512):
        steps = stream_of(
            RemoteFolder(archive.folder, latency_s=0.01), archive, prefetch_mb=prefetch_mb, readers=3
        ).steps(0, 50)
        next(steps)
        steps.close()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("rainspark")]


def test_readers_follow_the_storage(archive: PackedArchive) -> None:
    def reading() -> int:
        return sum(thread.name.startswith("rainspark-read") for thread in threading.enumerate())

    remote = RemoteFolder(archive.folder)
    for storage, readers, expected in ((archive.storage, None, 3), (remote, None, 8), (remote, 2, 2)):
        steps = stream_of(storage, archive, threads=3, readers=readers).steps(0, 2)
        next(steps)
        assert reading() == expected
        steps.close()


def test_evaluation_from_a_store_is_the_folders(archive: PackedArchive) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    expected = content(list(evaluation_batches(archive.storage, archive.index, table, micro_batch=8)))
    for prefetch_mb, threads in ((0, 1), (0.02, 3), (512, 2)):
        batches = evaluation_batches(
            RemoteFolder(archive.folder), archive.index, table, micro_batch=8, prefetch_mb=prefetch_mb, threads=threads
        )
        assert content(list(batches)) == expected


@pytest.mark.parametrize("change", [{"prefetch_mb": -1}, {"readers": 0}, {"quarantine": -1}])
def test_settings_that_cannot_work(archive: PackedArchive, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected at least 0, 1 and 0"):
        stream_of(archive.storage, archive, **change)


def test_statistics_tell_the_stores_tries_from_what_was_asked(archive: PackedArchive) -> None:
    entry = archive.index.sequences[0]
    damage = [Damage(archive.index.shards[entry.shard].name, entry.frames_offset, 3)]
    remote = RemoteFolder(archive.folder, damage=damage)
    stream = stream_of(remote, archive, prefetch_mb=0)
    for _ in stream.steps(0, stream.steps_per_epoch):
        pass
    stats = stream.stats()
    assert stats["retries"] == 3
    assert stats["store_requests"] == stats["requests"] + 3
    assert stats["store_bytes_read"] == stats["bytes_read"] + 3 * entry.num_bytes
    assert stats["wait_s"] == 0


def test_nothing_is_left_over_after_a_run(archive: PackedArchive) -> None:
    remote = RemoteFolder(archive.folder)
    reader = SequenceReader(remote, archive.index, readers=2, ahead_bytes=MIB, range_bytes=MIB)
    try:
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
    finally:
        reader.close()
