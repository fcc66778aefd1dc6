"""Streams of a mixed archive: right windows, right scales, the same batches whatever the number of processes."""

from dataclasses import replace

import numpy as np
import pytest

from rainspark.data.errors import DataError
from rainspark.data.shards.contact_sheet import draw_contact_sheet
from rainspark.data.shards.index import load_index, of_source
from rainspark.data.shards.summary import rain_of, runs_of, summarise
from rainspark.data.shards.totals import RainTotals
from rainspark.data.stream.stream import Batch, evaluation_batches
from rainspark.data.windows.mixing import BatchLayout
from rainspark.data.windows.plan import plan
from rainspark.data.windows.selection import Selection, WindowTable, select_windows
from tests.data.archives import PackedArchive, random_runs
from tests.data.mixed import pack_mixed
from tests.data.stream.streams import WINDOW, check_pixels, stream_of, table_of

SCALES_MMH = {"Fine": 0.01, "KNMI": 0.12}
LAYOUT = BatchLayout(seed=7, global_batch=16, micro_batch=8, lanes=4, block_bytes=20_000)
EQUAL = {"KNMI": 0.5, "Fine": 0.5}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> PackedArchive:
    runs = random_runs([40, 110], 8, 9, missing=True)
    return pack_mixed(
        tmp_path_factory.mktemp("mixed"),
        dict(zip(SCALES_MMH, runs, strict=True)),
        scales_mmh=tuple(SCALES_MMH.values()),
        window=WINDOW,
        max_frames=20,
        num_shards=5,
    )


def check_batch(archive: PackedArchive, table: WindowTable, batch: Batch) -> None:
    """Check pixels, and that each window has its source's scale."""
    check_pixels(archive, table, batch)
    assert batch.scale_mmh_b.dtype.is_floating_point
    for scale_mmh, row in zip(batch.scale_mmh_b.tolist(), batch.window_b.tolist(), strict=True):
        source = archive.index.sequences[int(table.sequence[row])].key.split("-")[0] if row >= 0 else ""
        assert scale_mmh == SCALES_MMH.get(source, 1)


@pytest.mark.parametrize("weights", [None, EQUAL])
def test_every_number_of_processes_sees_the_same_batches(
    archive: PackedArchive, weights: dict[str, float] | None
) -> None:
    index = archive.index
    table = table_of(index)
    layout = replace(LAYOUT, weights=weights)
    expected = np.concatenate([plan(index, table, layout, epoch) for epoch in range(2)])
    for world_size in (1, 2, 4, 8):
        delivered = np.full_like(expected, -2)
        for rank in range(world_size):
            stream = stream_of(archive.storage, index, layout, rank=rank, world_size=world_size)
            for step, batches in enumerate(stream.steps(0, len(expected))):
                for batch in batches:
                    delivered[step, batch.micro_step, batch.index_b - 8 * batch.micro_step] = batch.window_b
                    check_batch(archive, table, batch)
        np.testing.assert_array_equal(delivered, expected)


def test_weights_are_part_of_the_fingerprint(archive: PackedArchive) -> None:
    unequal = {"KNMI": 0.75, "Fine": 0.25}
    streams = [stream_of(archive.storage, archive.index, LAYOUT, weights=weights) for weights in (None, EQUAL, unequal)]
    assert [stream.fingerprint()["weights"] for stream in streams] == [None, EQUAL, unequal]
    assert [len(share.lanes) for share in streams[2].shares] == [1, 3]


def test_an_evaluation_reads_each_window_once_with_its_scale(archive: PackedArchive) -> None:
    table = table_of(archive.index)
    seen = []
    for batch in evaluation_batches(archive.storage, archive.index, table, micro_batch=16):
        check_batch(archive, table, batch)
        seen += batch.window_b[batch.window_b >= 0].tolist()
    assert seen == list(range(len(table)))


def test_one_source_of_the_index_reads_as_an_archive_of_its_own(archive: PackedArchive) -> None:
    index = of_source(load_index(archive.storage), "KNMI")
    assert (index.source, index.scale_mmh, index.fingerprint) == ("KNMI", 0.12, archive.index.fingerprint)
    table = select_windows(index, Selection(window=WINDOW, sources=("KNMI",)))
    assert len(table) == 107
    for batch in evaluation_batches(archive.storage, index, table, micro_batch=10):
        check_pixels(replace(archive, index=index), table, batch)
    with pytest.raises(DataError, match=r"the source 'OPERA' is not in the archive; its sources: Fine; KNMI"):
        of_source(archive.index, "OPERA")


def test_the_summary_tells_each_source(archive: PackedArchive) -> None:
    index = archive.index
    assert [[run.num_frames for run in runs_of(index, origin).runs] for origin in (0, 1)] == [[40], [110]]
    for source, num_frames in (("Fine", 40), ("KNMI", 110)):
        rain = rain_of(index, source)
        assert rain.frames == num_frames
        frames = [frame for key, run in archive.counts_thw.items() if key.startswith(source) for frame in run]
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
