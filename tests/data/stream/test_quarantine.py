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
from rainspark.data.store.storage import LocalStorage, Storage
from rainspark.data.stream.stream import Batch, Stream, evaluation_batches
from rainspark.data.windows.plan import plan
from rainspark.data.windows.selection import Selection, WindowTable, select_windows
from tests.data.archives import PackedArchive, pack_archive, random_runs
from tests.data.store.remote_folder import RemoteFolder

ROWS, COLS, WINDOW, STEPS = 12, 16, 4, 9
SIZES: dict[str, Any] = {"seed": 5, "global_batch": 12, "micro_batch": 12, "lanes": 6, "block_bytes": 30_000}


def pack(folder: Path) -> PackedArchive:
    runs = random_runs([40, 44, 37, 26], ROWS, COLS, missing=True)
    return pack_archive(folder, runs, window=WINDOW, max_frames=15, num_shards=4)


def flip(archive: PackedArchive, number: int) -> None:
    """Damage a sequence."""
    entry = archive.index.sequences[number]
    path = archive.folder / archive.index.shards[entry.shard].name
    data = bytearray(path.read_bytes())
    data[entry.frames_offset + entry.frames_bytes // 2] ^= 1
    path.write_bytes(bytes(data))


def with_bad_frame(archive: PackedArchive, number: int, frame: int) -> Index:
    """Spoil one frame's Blosc2 header, and let the index vouch for it: only decoding tells."""
    entry = archive.index.sequences[number]
    path = archive.folder / archive.index.shards[entry.shard].name
    data = bytearray(path.read_bytes())
    data[entry.frames_offset + (entry.frame_ends[frame - 1] if frame else 0) + 4] ^= 1
    path.write_bytes(bytes(data))
    digest = hashlib.sha256(data[entry.offset : entry.offset + entry.num_bytes]).hexdigest()
    sequences = list(archive.index.sequences)
    sequences[number] = replace(entry, sha256=digest)
    return signed(replace(archive.index, sequences=tuple(sequences)))


def stream_of(storage: Storage, index: Index, **changes: Any) -> Stream:
    table = select_windows(index, Selection(window=WINDOW))
    return Stream(storage, index, table, **(SIZES | {"decoded_mb": 1} | changes))


def delivered(archive: PackedArchive, table: WindowTable, batches: list[Batch], rows: list[int]) -> list[int]:
    """Check the windows of a step against the plan's rows; give those that were lost."""
    counts = np.concatenate([batch.counts_bthw.numpy() for batch in batches])
    found = np.concatenate([batch.window_b for batch in batches]).tolist()
    lost = []
    for place, row in enumerate(rows):
        if found[place] == -1:
            assert (counts[place] == 65535).all()
            lost.append(row)
        else:
            assert found[place] == row
            np.testing.assert_array_equal(counts[place], archive.window(table, row))
    for batch in batches:
        assert batch.has_missing == bool((batch.counts_bthw.numpy() == 65535).any())
        assert (batch.scale_mmh_b.numpy()[batch.window_b < 0] == 1).all()
    return lost


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_lost_windows_are_missing_and_all_others_stay(tmp_path: Path, kind: str) -> None:
    archive = pack(tmp_path)
    table = select_windows(archive.index, Selection(window=WINDOW))
    for number in (2, 7):
        flip(archive, number)
    index = with_bad_frame(archive, 4, frame=6)
    expected_lost = {
        row for row, (sequence, start) in enumerate(zip(table.sequence, table.start, strict=True))
        if sequence in (2, 7) or (sequence == 4 and start <= 6 < start + WINDOW)
    }  # fmt: skip
    rows = plan(index, table, epoch=0, **SIZES)[:, 0]
    for world_size in (1, 2, 4):
        for threads, readers, prefetch_mb, decoded_mb in ((1, 1, 512, 0.002), (3, 4, 0, 1), (2, 2, 0.02, 0.01)):
            storage = LocalStorage(tmp_path) if kind == "folder" else RemoteFolder(tmp_path)
            settings: dict[str, Any] = {
                "threads": threads, "readers": readers, "prefetch_mb": prefetch_mb, "decoded_mb": decoded_mb,
            }  # fmt: skip
            streams = [
                stream_of(storage, index, quarantine=3, rank=rank, world_size=world_size, **settings)
                for rank in range(world_size)
            ]
            steps = zip(*(stream.steps(0, STEPS) for stream in streams), strict=True)
            lost = [delivered(archive, table, [part[0] for part in parts], rows[step].tolist())
                    for step, parts in enumerate(steps)]  # fmt: skip
            needed = [[row for row in rows[step].tolist() if row in expected_lost] for step in range(STEPS)]
            assert lost == needed
            assert sum(stream.stats()["windows_lost"] for stream in streams) == sum(map(len, lost))
            keys = {one.key for stream in streams for one in stream.lost()}
            assert keys == {index.sequences[int(table.sequence[row])].key for some in lost for row in some}


def test_beyond_the_budget_the_run_stops_where_it_needs_the_sequence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive = pack(tmp_path)
    table = select_windows(archive.index, Selection(window=WINDOW))
    rows = plan(archive.index, table, epoch=0, **SIZES)[:, 0]
    # In the order in which steps, and lanes within a step, need them.
    order = list(dict.fromkeys(int(table.sequence[row]) for row in rows.ravel()))
    bad = [order[place] for place in (3, 6, 8)]
    first_use = [int(np.flatnonzero((table.sequence[rows] == number).any(axis=1))[0]) for number in bad]
    for number in bad:
        flip(archive, number)
    for budget in (0, 1, 2):
        for threads, readers in ((1, 1), (4, 3), (2, 6)):
            stream = stream_of(archive.storage, archive.index, quarantine=budget, threads=threads, readers=readers)
            good: list[int] = []
            caplog.clear()
            with caplog.at_level(logging.WARNING), pytest.raises(DamagedError) as caught:
                good.extend(batches[0].step for batches in stream.steps(0, STEPS))
            assert good == list(range(first_use[budget]))
            keys = [archive.index.sequences[number].key for number in bad]
            text = str(caught.value)
            assert text.startswith(
                f"shard shard-{bad[budget] % 4:05d}.tar, key {keys[budget]}: SHA-256 of its bytes is"
            )
            assert [one.key for one in stream.lost()] == keys[:budget]
            assert [line for line in caplog.messages if "SHA-256" in line] == caplog.messages
            assert [f"key {keys[i]}: SHA-256" in line for i, line in enumerate(caplog.messages)] == [True] * budget
            if budget:
                assert f"sequence {budget + 1} lost by this process, and data.quarantine allows {budget}" in text
                assert all(f"key {key}: SHA-256" in text for key in keys[: budget + 1])
    assert stream_of(archive.storage, archive.index, quarantine=3).steps_per_epoch >= STEPS


def test_a_sequence_counts_once_however_often_it_is_lost(tmp_path: Path) -> None:
    archive = pack(tmp_path)
    flip(archive, 3)
    stream = stream_of(archive.storage, archive.index, quarantine=1)
    table = select_windows(archive.index, Selection(window=WINDOW))
    for _ in stream.steps(0, 4 * stream.steps_per_epoch):
        pass
    assert [(one.shard, one.key) for one in stream.lost()] == [("shard-00003.tar", "s0003")]
    stats = stream.stats()
    assert stats["quarantined"] == 1
    assert stats["windows"] + stats["windows_lost"] == 4 * stream.steps_per_epoch * 12
    assert stats["windows_lost"] == pytest.approx(4 * (table.sequence == 3).sum(), abs=4)


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
@pytest.mark.parametrize("kind", ["folder", "store"])
def test_short_and_missing_objects_lose_what_is_gone(
    tmp_path: Path, damage: Callable[[PackedArchive], set[int]], kind: str
) -> None:
    archive = pack(tmp_path)
    gone = damage(archive)
    assert 0 < len(gone) < len(archive.index.sequences)
    storage = LocalStorage(tmp_path) if kind == "folder" else RemoteFolder(tmp_path)
    stream = stream_of(storage, archive.index, quarantine=len(gone), lanes=1, block_bytes=10**7)
    for _ in stream.steps(0, stream.steps_per_epoch):
        pass
    assert {one.key for one in stream.lost()} == {archive.index.sequences[number].key for number in gone}
    less = stream_of(storage, archive.index, quarantine=len(gone) - 1)
    with pytest.raises(DataError, match=f"sequence {len(gone)} lost by this process"):
        list(less.steps(0, less.steps_per_epoch))


def test_a_folder_that_is_gone_is_no_lost_sequence(tmp_path: Path) -> None:
    archive = pack(tmp_path / "shards")
    archive.folder.rename(tmp_path / "elsewhere")
    for storage in (LocalStorage(archive.folder), RemoteFolder(archive.folder)):
        stream = stream_of(storage, archive.index, quarantine=100)
        with pytest.raises(DataError, match=r"shard shard-0000\d.tar, keys? s\d+.*: cannot be read: .*No such file"):
            next(stream.steps(0, 1))
        assert stream.lost() == ()


@pytest.mark.parametrize("threads", [1, 3])
def test_an_evaluation_gives_lost_windows_as_padding(tmp_path: Path, threads: int) -> None:
    archive = pack(tmp_path)
    flip(archive, 3)
    table = select_windows(archive.index, Selection(window=WINDOW))
    with pytest.raises(DataError, match="key s0003: SHA-256"):
        list(evaluation_batches(archive.storage, archive.index, table, micro_batch=8, threads=threads))
    batches = list(
        evaluation_batches(archive.storage, archive.index, table, micro_batch=8, threads=threads, quarantine=1)
    )
    assert len(batches) == -(-len(table) // 8)
    for step, batch in enumerate(batches):
        rows = [row for row in range(8 * step, 8 * step + 8) if row < len(table)]
        lost = delivered(archive, table, [batch], rows)
        assert lost == [row for row in rows if table.sequence[row] == 3]
