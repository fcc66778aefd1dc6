"""SmaAt-UNet's collected HDF5: values back to the counts they were, frames and ready windows, and what is refused."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop
from rainspark.data.pack.__main__ import main
from rainspark.data.pack.archive import pack
from rainspark.data.pack.survey import PackOptions
from rainspark.data.shards.contact_sheet import read_frame
from rainspark.data.shards.index import load_index
from rainspark.data.sources.blocks import BlockReader
from rainspark.data.sources.smaat import SmaatSource, parse_time
from rainspark.data.store.storage import open_storage
from tests.data.radar_files import FIRST_S, random_counts, write_collected
from tests.data.radar_files import replace_by_link as link
from tests.data.radar_files import replace_dataset as put

WHOLE = Crop(row0=0, row1=12, col0=0, col1=10)
STORAGES: list[dict[str, Any]] = [
    {"chunks": (1, 12, 10), "compression": "gzip", "compression_opts": 9},
    {"chunks": (3, 5, 7), "compression": "gzip", "shuffle": True},
    {},
]


def frames(numbers: list[int]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
    counts = np.stack([random_counts(number, 12, 10) for number in numbers])
    return np.where(counts == 65535, 0, counts).astype(np.uint16), FIRST_S + 300 * np.array(numbers)


def windows(firsts: list[int], length: int = 6) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
    counts, times_s = zip(*(frames(list(range(first, first + length))) for first in firsts), strict=True)
    return np.stack(counts), np.stack(times_s)


@pytest.mark.parametrize("storage", STORAGES)
def test_frames_come_back_as_the_counts_they_were(tmp_path: Path, storage: dict[str, Any]) -> None:
    path = tmp_path / "collected.h5"
    train, test = frames([*range(7, 17), *range(20, 30)]), frames([2, 1, 0])
    write_collected(path, {"train": train, "test": test}, **storage)
    source = SmaatSource()
    found = source.scan([path])
    assert [ref.end_time_s for ref in found.refs] == sorted([*test[1].tolist(), *train[1].tolist()])
    expected = dict(zip([*train[1].tolist(), *test[1].tolist()], [*train[0], *test[0]], strict=True))
    part = Crop(row0=3, row1=9, col0=2, col1=10)
    for ref in found.refs:
        reading = source.read(ref, WHOLE)
        np.testing.assert_array_equal(reading.counts, expected[ref.end_time_s])
        np.testing.assert_array_equal(source.read(ref, part).counts, expected[ref.end_time_s][3:9, 2:10])
        surveyed = source.survey(ref)
        assert surveyed.sha256 == reading.sha256
        assert (surveyed.header.scale_mmh, surveyed.header.grid.pixel_km) == (0.12, 1.0)
    assert "not published" in source.survey(found.refs[0]).header.grid.projection
    assert [len(SmaatSource(group=group).scan([path]).refs) for group in ("train", "test")] == [20, 3]


@given(st.lists(st.integers(0, 65533), min_size=1, max_size=30))
def test_every_count_survives_the_published_scale(counts: list[int]) -> None:
    values = np.array(counts, np.float64) / 100 / 47.83
    exact = values.astype(np.float32).astype(np.float64) * 4783
    assert np.rint(exact).astype(int).tolist() == counts
    assert np.abs(exact - counts).max() <= 0.004


def test_missing_codes_become_missing(tmp_path: Path) -> None:
    path = tmp_path / "collected.h5"
    counts, times_s = frames([0, 1, 2])
    counts[1, 4, :2] = [65535, 65534]
    write_collected(path, {"train": (counts, times_s)})
    with h5py.File(path, "r+") as file:
        file["train/images"][1, 5, 5] = np.nan
    source = SmaatSource(group="train")
    read = source.read(source.scan([path]).refs[1], WHOLE).counts
    assert np.argwhere(read == 65535).tolist() == [[4, 0], [4, 1], [5, 5]]


@pytest.mark.parametrize("value", [0.5 / 4783, -1.0 / 4783, 65536.0 / 4783, np.inf, -np.inf])
def test_values_that_are_no_counts_are_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "collected.h5"
    write_collected(path, {"train": frames([0, 1, 2])}, chunks=(1, 12, 10))
    with h5py.File(path, "r+") as file:
        file["train/images"][2, 11, 3] = value
    source = SmaatSource(group="train")
    with pytest.raises(DataError, match=rf"{path}, /train/images, frame 2, pixel \(11, 3\) is .* whole counts within"):
        source.read(source.scan([path]).refs[2], WHOLE)


@pytest.mark.parametrize("storage", [{"chunks": (1, 6, 12, 10), "compression": "gzip"}, {}, {"chunks": (2, 3, 12, 4)}])
def test_ready_windows_are_packed_one_by_one_unchanged(tmp_path: Path, storage: dict[str, Any]) -> None:
    path = tmp_path / "nl50.h5"
    # Windows overlap, leave gaps, and stand in no order of time.
    train, test = windows([40, 0, 1, 3, 20, 300]), windows([500, 501])
    write_collected(path, {"train": train, "test": test}, **storage)
    index = pack([path], tmp_path / "out", PackOptions(window=None), source=SmaatSource())
    assert (index.window, len(index.sequences)) == (6, 8)
    counts_all, times_all = np.concatenate([train[0], test[0]]), np.concatenate([train[1], test[1]])
    expected = {int(times_s[0]): counts for counts, times_s in zip(counts_all, times_all, strict=True)}
    storage_out = open_storage(tmp_path / "out")
    for entry in index.sequences:
        assert (entry.num_starts, entry.num_frames, entry.rain_after) == (1, 6, -1.0)
        for i in range(6):
            np.testing.assert_array_equal(read_frame(storage_out, index, entry, i), expected[entry.start_s][i])
    assert [entry.start_s for entry in index.sequences] == sorted(expected)
    only = pack([path], tmp_path / "test", PackOptions(window=None), source=SmaatSource(group="test"))
    assert len(only.sequences) == 2


def test_ready_windows_across_gaps_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "nl50.h5"
    counts, times_s = windows([0, 10, 20, 30])
    times_s[1, 3:] += 300
    times_s[3, 5:] += 3600
    write_collected(path, {"train": (counts, times_s)})
    command = ["smaat", str(path), "--group", "train", "--out", str(tmp_path / "out")]
    assert main(command) == 4
    assert "2 of 4 ready windows are not 5 min from frame to frame" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--skip-gaps", "--window", "7"]) == 4
    assert "ready windows have 6 frames, --window is 7" in capsys.readouterr().err
    assert main([*command, "--skip-gaps"]) == 0
    told = capsys.readouterr()
    assert "2 of 4 ready windows lie across a gap and are left out" in told.err
    assert "frames        2 ready windows of 6 every 5 min, 2019-12-31T23:50:00Z to 2020-01-01T01:55:00Z" in told.out
    assert "gaps  " not in told.out
    index = load_index(open_storage(tmp_path / "out"))
    assert [entry.start_s for entry in index.sequences] == [FIRST_S, FIRST_S + 20 * 300]


def test_frames_are_cut_at_gaps(tmp_path: Path) -> None:
    path = tmp_path / "collected.h5"
    write_collected(path, {"train": frames([*range(12), *range(20, 25)])}, chunks=(1, 12, 10))
    options = PackOptions(window=4, max_frames=9)
    index = pack([path], tmp_path / "out", options, source=SmaatSource(group="train"))
    assert [(entry.start_s - FIRST_S) // 300 for entry in index.sequences] == [0, 6, 20]


def test_a_file_that_changes_while_it_is_packed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "collected.h5"
    write_collected(path, {"train": frames(list(range(8)))}, chunks=(1, 12, 10))
    with h5py.File(path) as file:
        offset = file["train/images"].id.get_chunk_info_by_coord((5, 0, 0)).byte_offset
    source = SmaatSource(group="train")
    ref = source.scan([path]).refs[5]
    before = source.survey(ref).sha256
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(bytes(480))
    assert source.read(ref, WHOLE).sha256 != before


TIMES = [
    ("26-AUG-2010;00:05:00.000", 1_282_781_100),
    ("26-AUG-2010;00:05:00", 1_282_781_100),
    ("201008260005", 1_282_781_100),
    ("20100826000500", 1_282_781_100),
    ("2010-08-26T00:05:00Z", 1_282_781_100),
    ("2010-08-26T00:05:00", 1_282_781_100),
    ("2010-08-26 02:05:00+02:00", 1_282_781_100),
    ("26-XXX-2010;00:05:00", None),
    ("2010-02-30T00:05:00", None),
    ("201013010000", None),
    ("2010-08-26T00:05:00.5", None),
    ("now", None),
    ("", None),
    ("__import__('os').abort()", None),
]


@pytest.mark.parametrize(("text", "time_s"), TIMES)
def test_times_are_read_or_refused(tmp_path: Path, text: str, time_s: int | None) -> None:
    path = tmp_path / "collected.h5"
    write_collected(path, {"train": frames([0, 1, 2])})
    with h5py.File(path, "r+") as file:
        file["train/timestamps"][1, 0] = text
    if time_s is not None:
        assert parse_time(text) == time_s
        assert time_s in [ref.end_time_s for ref in SmaatSource(group="train").scan([path]).refs]
    else:
        with pytest.raises(DataError, match=f"{path}: /train/timestamps holds .*; expected times such as"):
            SmaatSource(group="train").scan([path])


def holes(file: Any) -> None:
    del file["train/images"]
    images = file.create_dataset("train/images", (8, 12, 10), "f4", chunks=(1, 12, 10))
    images[:5] = 0


IMAGES, STAMPS = "train/images", "train/timestamps"
BROKEN: list[tuple[Callable[[Any], None], str]] = [
    (lambda file: file.pop(IMAGES), "/train/images is missing"),
    (lambda file: file.pop(STAMPS), "/train/timestamps is missing"),
    (link(IMAGES, h5py.ExternalLink("/etc/passwd", "/x")), r"/train/images is a link \(ExternalLink\)"),
    (link(STAMPS, h5py.SoftLink("/train/images")), r"/train/timestamps is a link \(SoftLink\)"),
    (
        put(IMAGES, shape=(8, 12, 10), dtype="f4", external=[("/etc/passwd", 0, 3840)]),
        "values in other files",
    ),
    (put(STAMPS, shape=(8, 1), dtype="S12", external=[("/etc/passwd", 0, 96)]), "in other files"),
    (put(IMAGES, data=np.zeros((8, 12))), r"float64 \(8, 12\); expected float32, float64 with 3 or 4 axes"),
    (put(IMAGES, data=np.zeros((8, 12, 10), np.uint16)), "uint16 .*; expected float32"),
    (
        put(IMAGES, shape=(2**20, 2**14, 2**14), dtype="f4", chunks=(1, 2**14, 2**14)),
        "in chunks of .* at most",
    ),
    (put(IMAGES, shape=(2**20, 2**10, 2**10), dtype="f4", chunks=(128, 2**10, 2)), "again with h5repack"),
    (put(IMAGES, shape=(2**30, 12, 10), dtype="f4", chunks=(1, 12, 10)), "0 of its 1,073,741,824 chunks"),
    (holes, "5 of its 8 chunks are stored"),
    (
        put(IMAGES, data=np.zeros((7, 12, 10), "f4")),
        r"timestamps is of shape \(8, 1\); expected \(7,\) or \(7, 1\)",
    ),
    (put(STAMPS, data=np.zeros((8, 1))), "is float64 .*; expected text"),
    (put(STAMPS, shape=(8, 1), dtype=h5py.ref_dtype), "is object .*; expected text"),
    (put(STAMPS, shape=(8, 1), dtype="S100000"), "expected text of at most 64"),
    (put(STAMPS, data=np.array([["x" * 5000]] * 8, object), dtype=h5py.string_dtype()), "holds 'xxx"),
    (
        put(STAMPS, data=np.array([[b"201008260005"]] * 8)),
        "two frames of one time: .*frame 0 and .*frame 1",
    ),
]


@pytest.mark.parametrize(("edit", "message"), BROKEN)
def test_broken_files_are_refused_by_name(tmp_path: Path, edit: Callable[[Any], None], message: str) -> None:
    path = tmp_path / "collected.h5"
    write_collected(path, {"train": frames(list(range(8)))}, chunks=(1, 12, 10), compression="gzip")
    SmaatSource(group="train").scan([path])
    with h5py.File(path, "r+") as file:
        edit(file)
    with pytest.raises(DataError, match=message) as caught:
        SmaatSource(group="train").scan([path])
    assert str(path) in str(caught.value)


def test_frames_and_windows_do_not_mix(tmp_path: Path) -> None:
    write_collected(tmp_path / "a.h5", {"train": frames([0, 1])})
    write_collected(tmp_path / "b.h5", {"train": windows([10])})
    write_collected(tmp_path / "c.h5", {"train": windows([30], length=5)})
    with pytest.raises(DataError, match=r"a\.h5 holds frames, .*b\.h5 ready windows"):
        SmaatSource(group="train").scan([tmp_path / "a.h5", tmp_path / "b.h5"])
    with pytest.raises(DataError, match=r"ready windows of \[5, 6\] frames"):
        SmaatSource(group="train").scan([tmp_path / "b.h5", tmp_path / "c.h5"])
    write_collected(tmp_path / "d.h5", {"train": windows([10])})
    with pytest.raises(DataError, match="two frames of one time"):
        SmaatSource(group="train").scan([tmp_path / "b.h5", tmp_path / "d.h5"])
    assert len(SmaatSource(group="train").scan([tmp_path / "b.h5", tmp_path / "b.h5"]).refs) == 6
    with pytest.raises(DataError, match="no HDF5 files"):
        SmaatSource().scan([])


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for number in (40, 400):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=np.zeros((number, 144, 144), "f4"), chunks=(1, 144, 144))
        reader = BlockReader(path, "x", "a test", cached_bytes=0)
        tracemalloc.start()
        for item in range(number):
            num_stored, sha256 = reader.digest(item)
            assert (reader.block(item).sha256, reader.block(item).first) == (sha256, item)
            assert num_stored == 144 * 144 * 4
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
