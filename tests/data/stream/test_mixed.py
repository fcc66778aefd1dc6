"""Streams of a mixed archive: right windows, right scales, the same batches whatever the number of processes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rainspark.data.errors import DataError
from rainspark.data.shards.contact_sheet import draw_contact_sheet
from rainspark.data.shards.decode import check_sequence
from rainspark.data.shards.index import load_index, of_source
from rainspark.data.shards.summary import rain_of, run_lengths, summarise
from rainspark.data.shards.totals import RainTotals
from rainspark.data.stream.stream import Stream, evaluation_batches
from rainspark.data.windows.plan import plan
from rainspark.data.windows.selection import Selection, select_windows
from tests.data.archives import PackedArchive, random_runs
from tests.data.mixed import pack_mixed

WINDOW = 4
SCALES_MMH = {"Fine": 0.01, "KNMI": 0.12}
SIZES: dict[str, Any] = {"seed": 7, "global_batch": 16, "micro_batch": 8, "lanes": 4, "block_bytes": 20_000}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> PackedArchive:
    runs = random_runs([40, 110], 8, 9, missing=True)
    return pack_mixed(
        tmp_path_factory.mktemp("mixed"), dict(zip(SCALES_MMH, runs, strict=True)),
        scales_mmh=tuple(SCALES_MMH.values()), window=WINDOW, max_frames=20, num_shards=5,
    )  # fmt: skip


@pytest.mark.parametrize("weights", [None, {"KNMI": 0.5, "Fine": 0.5}])
def test_every_number_of_processes_sees_the_same_batches(
    archive: PackedArchive, weights: dict[str, float] | None
) -> None:
    index = archive.index
    table = select_windows(index, Selection(window=WINDOW))
    num_steps = 2 * (len(table) // 16)
    expected = np.concatenate([plan(index, table, epoch=epoch, weights=weights, **SIZES) for epoch in range(2)])
    for world_size in (1, 2, 4, 8):
        found = np.full_like(expected, -2)
        for rank in range(world_size):
            stream = Stream(
                archive.storage, index, table, rank=rank, world_size=world_size, weights=weights, decoded_mb=1, **SIZES
            )
            for step, batches in enumerate(stream.steps(0, num_steps)):
                for batch in batches:
                    places = batch.index_b - 8 * batch.micro_step
                    found[step, batch.micro_step, places] = batch.window_b
                    for place, row in enumerate(batch.window_b.tolist()):
                        np.testing.assert_array_equal(batch.counts_bthw[place].numpy(), archive.window(table, row))
                        source = index.sequences[int(table.sequence[row])].key.split("-")[0]
                        assert batch.scale_mmh_b[place].item() == SCALES_MMH[source]
        np.testing.assert_array_equal(found, expected)


def test_weights_are_part_of_the_fingerprint(archive: PackedArchive) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    streams = [
        Stream(archive.storage, archive.index, table, weights=weights, decoded_mb=1, **SIZES)
        for weights in (None, {"KNMI": 0.5, "Fine": 0.5}, {"KNMI": 0.75, "Fine": 0.25})
    ]
    prints = [stream.fingerprint() for stream in streams]
    assert [one["weights"] for one in prints] == [None, {"KNMI": 0.5, "Fine": 0.5}, {"KNMI": 0.75, "Fine": 0.25}]
    assert [len(share.lanes) for share in streams[2].shares] == [1, 3]


def test_an_evaluation_reads_each_window_once_with_its_scale(archive: PackedArchive) -> None:
    table = select_windows(archive.index, Selection(window=WINDOW))
    seen = []
    for batch in evaluation_batches(archive.storage, archive.index, table, micro_batch=16):
        assert batch.scale_mmh_b.dtype.is_floating_point
        for place, row in enumerate(batch.window_b.tolist()):
            source = archive.index.sequences[int(table.sequence[row])].key.split("-")[0] if row >= 0 else ""
            assert batch.scale_mmh_b[place].item() == SCALES_MMH.get(source, 1)
        seen += batch.window_b[batch.window_b >= 0].tolist()
    assert seen == list(range(len(table)))


def test_one_source_of_the_index_reads_as_an_archive_of_its_own(archive: PackedArchive) -> None:
    index = of_source(load_index(archive.storage), "KNMI")
    assert (index.source, index.scale_mmh, index.fingerprint) == ("KNMI", 0.12, archive.index.fingerprint)
    table = select_windows(index, Selection(window=WINDOW, sources=("KNMI",)))
    assert len(table) == 107
    for batch in evaluation_batches(archive.storage, index, table, micro_batch=10):
        for place, row in enumerate(batch.window_b.tolist()):
            if row >= 0:
                key = index.sequences[int(table.sequence[row])].key
                first = int(table.start[row])
                expected = archive.counts_thw[key][first : first + WINDOW]
                np.testing.assert_array_equal(batch.counts_bthw[place].numpy(), expected)
    with pytest.raises(DataError, match=r"the source 'OPERA' is not in the archive; its sources: Fine; KNMI"):
        of_source(archive.index, "OPERA")


def test_a_sequence_is_checked_against_its_own_origin(archive: PackedArchive) -> None:
    index = archive.index
    entry = index.sequences[0]
    data = archive.storage.read(index.shards[entry.shard].name, entry.offset, entry.offset + entry.num_bytes)
    check_sequence(index, entry, data)
    with pytest.raises(DataError, match=r"says (licence|source|scale_mmh) = .*, the index says"):
        check_sequence(index, replace(entry, origin=1 - entry.origin), data)


def test_the_summary_tells_each_source(archive: PackedArchive) -> None:
    index = archive.index
    assert [run_lengths(index, origin)[0] for origin in (0, 1)] == [[40], [110]]
    for source, num_frames in (("Fine", 40), ("KNMI", 110)):
        rain = rain_of(index, source)
        assert rain.frames == num_frames
        frames = [frame for key, some in archive.counts_thw.items() if key.startswith(source) for frame in some]
        assert rain.max_count == max(RainTotals.of_frame(frame, SCALES_MMH[source]).max_count for frame in frames)
    text = summarise(index)
    assert text.index("source        Fine (none)") < text.index("source        KNMI (none)")
    assert "frames        40 every 5 min" in text
    assert "frames        110 every 5 min" in text
    assert "8 x 9, crop 0:8,0:9 of 8 x 9, 0.01 mm/h a count" in text
    assert text.count("fingerprint") == 1
    with pytest.raises(DataError, match=r"no sums of the source KNMI"):
        rain_of(replace(index, statistics={}), "KNMI")
    assert draw_contact_sheet(archive.storage, index).startswith(b"\x89PNG")


def test_what_sources_share_is_given_and_what_they_do_not_is_refused(archive: PackedArchive) -> None:
    index = archive.index
    assert (index.sources, index.source, index.licence) == (("Fine", "KNMI"), "Fine, KNMI", "none")
    assert index.grid.rows == 8
    with pytest.raises(DataError, match=r"scale_mmh: .*0.01 and 0.12.*choose one of its sources .*: Fine; KNMI"):
        _ = index.scale_mmh


def test_shards_say_nothing_of_their_neighbours(tmp_path: Path) -> None:
    """A source's KEY.json is the same whichever place its origin has in the index."""
    frames = {source: random_runs([n], 8, 9, missing=True)[0] for source, n in (("KNMI", 20), ("Fine", 20))}
    packed = []
    for order in (("KNMI", "Fine"), ("Fine", "KNMI")):
        one = pack_mixed(
            tmp_path / order[0], {source: frames[source] for source in order},
            scales_mmh=[SCALES_MMH[source] for source in order], window=WINDOW, max_frames=20, num_shards=1,
        )  # fmt: skip
        packed.append({entry.key: entry.sha256 for entry in one.index.sequences})
    assert packed[0] == packed[1]
