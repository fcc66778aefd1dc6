"""The quarantine: what is lost is counted, listed and delivered as missing, the same for any threads and ranks."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rainspark.data.errors import DamagedError, DataError
from rainspark.data.shards.index import Index, signed
from rainspark.data.store.storage import LocalStorage
from rainspark.data.stream.options import ReadOptions
from rainspark.data.stream.stream import Batch, evaluation_batches
from rainspark.data.units import MISSING_COUNT
from rainspark.data.windows.mixing import BatchLayout
from rainspark.data.windows.plan import plan
from rainspark.data.windows.selection import WindowTable
from tests.data.archives import PackedArchive
from tests.data.store.remote_folder import RemoteFolder
from tests.data.stream.streams import WINDOW, check_pixels, flip, pack, read_epochs, stream_of, table_of

STEPS = 9
LAYOUT = BatchLayout(seed=5, global_batch=12, micro_batch=12, lanes=6, block_bytes=30_000)


@pytest.fixture
def archive(tmp_path: Path) -> PackedArchive:
    """Pack an archive that a test may damage."""
    return pack(tmp_path / "shards", [40, 44, 37, 26], num_shards=4)


def with_bad_frame(archive: PackedArchive, number: int, frame: int) -> Index:
    """Spoil one frame's Blosc2 header, and let the index vouch for it: only decoding fails."""
    entry = archive.index.sequences[number]
    path = archive.folder / archive.index.shards[entry.shard].name
    data = bytearray(path.read_bytes())
    data[entry.frames_offset + (entry.frame_ends[frame - 1] if frame else 0) + 4] ^= 1
    path.write_bytes(bytes(data))
    digest = hashlib.sha256(data[entry.offset : entry.offset + entry.num_bytes]).hexdigest()
    sequences = list(archive.index.sequences)
    sequences[number] = replace(entry, sha256=digest)
    return signed(replace(archive.index, sequences=tuple(sequences)))


def check_delivered(archive: PackedArchive, table: WindowTable, batches: list[Batch], rows: list[int]) -> list[int]:
    """Check the windows of a step against the plan's rows; give those that were lost."""
    window_b = np.concatenate([batch.window_b for batch in batches]).tolist()
    assert window_b == [row if delivered >= 0 else -1 for row, delivered in zip(rows, window_b, strict=True)]
    for batch in batches:
        check_pixels(archive, table, batch, lost=MISSING_COUNT)
    return [row for row, delivered in zip(rows, window_b, strict=True) if delivered < 0]


@pytest.mark.parametrize("kind", [LocalStorage, RemoteFolder])
def test_lost_windows_are_missing_and_all_others_stay(archive: PackedArchive, kind: type[LocalStorage]) -> None:
    table = table_of(archive.index)
    for number in (2, 7):
        flip(archive, number)
    index = with_bad_frame(archive, 4, frame=6)
    expected_lost = {
        row
        for row, (sequence, start) in enumerate(zip(table.sequence, table.start, strict=True))
        if sequence in (2, 7) or (sequence == 4 and start <= 6 < start + WINDOW)
    }
    rows = plan(index, table, LAYOUT, epoch=0)[:, 0]
    for world_size in (1, 2, 4):
        for threads, readers, prefetch_mb, decoded_mb in ((1, 1, 512, 0.002), (3, 4, 0, 1), (2, 2, 0.02, 0.01)):
            changes: dict[str, Any] = {"threads": threads, "readers": readers, "quarantine": 3}
            changes |= {"prefetch_mb": prefetch_mb, "decoded_mb": decoded_mb, "world_size": world_size}
            streams = [
                stream_of(kind(archive.folder), index, LAYOUT, rank=rank, **changes) for rank in range(world_size)
            ]
            steps = zip(*(stream.steps(0, STEPS) for stream in streams), strict=True)
            lost = [
                check_delivered(archive, table, [batches[0] for batches in ranks], rows[step].tolist())
                for step, ranks in enumerate(steps)
            ]
            assert lost == [[row for row in step if row in expected_lost] for step in rows[:STEPS].tolist()]
            assert sum(stream.stats()["windows_lost"] for stream in streams) == sum(map(len, lost))
            keys = {sequence.key for stream in streams for sequence in stream.lost()}
            assert keys == {index.sequences[int(table.sequence[row])].key for of_step in lost for row in of_step}


def test_beyond_the_budget_the_run_stops_where_it_needs_the_sequence(
    archive: PackedArchive, caplog: pytest.LogCaptureFixture
) -> None:
    table = table_of(archive.index)
    rows = plan(archive.index, table, LAYOUT, epoch=0)[:, 0]
    # In the order in which steps, and lanes within a step, need them.
    order = list(dict.fromkeys(int(table.sequence[row]) for row in rows.ravel()))
    bad = [order[place] for place in (3, 6, 8)]
    keys = [archive.index.sequences[number].key for number in bad]
    first_use = [int(np.flatnonzero((table.sequence[rows] == number).any(axis=1))[0]) for number in bad]
    for number in bad:
        flip(archive, number)

    for budget in (0, 1, 2):
        for threads, readers in ((1, 1), (4, 3), (2, 6)):
            changes = {"quarantine": budget, "threads": threads, "readers": readers}
            stream = stream_of(archive.storage, archive.index, LAYOUT, **changes)
            good: list[int] = []
            caplog.clear()
            with caplog.at_level(logging.WARNING), pytest.raises(DamagedError) as caught:
                good.extend(batches[0].step for batches in stream.steps(0, STEPS))
            assert good == list(range(first_use[budget]))
            text = str(caught.value)
            assert text.startswith(f"shard shard-{bad[budget] % 4:05d}.tar, key {keys[budget]}: SHA-256 of its bytes")
            assert [lost.key for lost in stream.lost()] == keys[:budget]
            assert len(caplog.messages) == budget
            for key, line in zip(keys, caplog.messages, strict=False):
                assert f"key {key}: SHA-256" in line
            if budget:
                assert f"sequence {budget + 1} lost by this process, and data.quarantine allows {budget}" in text
                assert all(f"key {key}: SHA-256" in text for key in keys[: budget + 1])
    assert stream_of(archive.storage, archive.index, LAYOUT, quarantine=3).steps_per_epoch >= STEPS


def test_a_sequence_counts_once_however_often_it_is_lost(archive: PackedArchive) -> None:
    flip(archive, 3)
    stream = stream_of(archive.storage, archive.index, LAYOUT, quarantine=1)
    stats = read_epochs(stream, 4)
    assert [(lost.shard, lost.key) for lost in stream.lost()] == [("shard-00003.tar", "s0003")]
    assert stats["quarantined"] == 1
    assert stats["windows"] + stats["windows_lost"] == 4 * stream.steps_per_epoch * 12
    assert stats["windows_lost"] == pytest.approx(4 * (table_of(archive.index).sequence == 3).sum(), abs=4)


def cut_away(archive: PackedArchive) -> set[int]:
    """Cut a shard in the middle; give the sequences that are gone."""
    path = archive.folder / archive.index.shards[2].name
    keep = path.stat().st_size // 2
    path.write_bytes(path.read_bytes()[:keep])
    return {i for i, one in enumerate(archive.index.sequences) if one.shard == 2 and one.offset + one.num_bytes > keep}


def take_away(archive: PackedArchive) -> set[int]:
    """Remove a shard; give the sequences that are gone."""
    (archive.folder / archive.index.shards[1].name).unlink()
    return {i for i, one in enumerate(archive.index.sequences) if one.shard == 1}


@pytest.mark.parametrize("damage", [cut_away, take_away])
@pytest.mark.parametrize("kind", [LocalStorage, RemoteFolder])
def test_short_and_missing_objects_lose_what_is_gone(
    archive: PackedArchive, damage: Callable[[PackedArchive], set[int]], kind: type[LocalStorage]
) -> None:
    gone = damage(archive)
    assert 0 < len(gone) < len(archive.index.sequences)
    storage = kind(archive.folder)
    stream = stream_of(storage, archive.index, LAYOUT, quarantine=len(gone), lanes=1, block_bytes=10**7)
    read_epochs(stream)
    assert {lost.key for lost in stream.lost()} == {archive.index.sequences[number].key for number in gone}
    with pytest.raises(DataError, match=f"sequence {len(gone)} lost by this process"):
        read_epochs(stream_of(storage, archive.index, LAYOUT, quarantine=len(gone) - 1))


@pytest.mark.parametrize("kind", [LocalStorage, RemoteFolder])
def test_a_folder_that_is_gone_is_no_lost_sequence(archive: PackedArchive, kind: type[LocalStorage]) -> None:
    archive.folder.rename(archive.folder.with_name("elsewhere"))
    stream = stream_of(kind(archive.folder), archive.index, LAYOUT, quarantine=100)
    with pytest.raises(DataError, match=r"shard shard-0000\d.tar, keys? s\d+.*: cannot be read: .*No such file"):
        next(stream.steps(0, 1))
    assert stream.lost() == ()


@pytest.mark.parametrize("threads", [1, 3])
def test_an_evaluation_gives_lost_windows_as_padding(archive: PackedArchive, threads: int) -> None:
    flip(archive, 3)
    table = table_of(archive.index)

    def batches(quarantine: int) -> list[Batch]:
        options = ReadOptions(threads=threads, quarantine=quarantine)
        return list(evaluation_batches(archive.storage, archive.index, table, micro_batch=8, options=options))

    with pytest.raises(DataError, match="key s0003: SHA-256"):
        batches(0)
    whole = batches(1)
    assert len(whole) == -(-len(table) // 8)
    for step, batch in enumerate(whole[:-1]):
        rows = list(range(8 * step, 8 * step + 8))
        assert check_delivered(archive, table, [batch], rows) == [row for row in rows if table.sequence[row] == 3]
