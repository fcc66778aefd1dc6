"""Pixels of strangers' files: read as they were written, whatever the storage, and never where none were written."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop
from rainspark.data.sources.knmi_writer import file_name, write_knmi_file
from tests.data.knmi_frames import read
from tests.data.radar_files import change, random_counts, read_header, replace_image, set_attribute

TIME_S = 1_282_780_800
ROWS, COLS = 37, 29
COUNTS = random_counts(5, ROWS, COLS)


@pytest.fixture
def radar_file(tmp_path: Path) -> Path:
    """Make one good file of 37 x 29 pixels."""
    path = tmp_path / file_name(TIME_S)
    write_knmi_file(path, COUNTS, TIME_S)
    return path


STORAGES: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunks": {"chunks": (8, 9)},
    "one chunk larger than the image": {"chunks": (37, 29), "maxshape": (None, 40), "compression": "gzip"},
    "gzip": {"chunks": (8, 9), "compression": "gzip"},
    "shuffle": {"chunks": (8, 9), "shuffle": True},
    "shuffle, gzip": {"chunks": (8, 9), "shuffle": True, "compression": "gzip"},
    "checksum": {"chunks": (8, 9), "fletcher32": True},
    "all": {"chunks": (8, 9), "shuffle": True, "compression": "gzip", "fletcher32": True},
    "lzf": {"chunks": (8, 9), "compression": "lzf"},
    "scale and offset": {"chunks": (8, 9), "scaleoffset": 0},
    "all in one": {"chunks": (37, 29), "shuffle": True, "compression": "gzip", "fletcher32": True},
}


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("storage", STORAGES)
def test_every_storage_reads_as_hdf5_reads_it(radar_file: Path, storage: str, dtype: str) -> None:
    for counts in (COUNTS, np.zeros_like(COUNTS), np.full_like(COUNTS, 65535), np.arange(COUNTS.size).reshape(37, 29)):
        change(radar_file, replace_image(data=counts.astype(dtype), **STORAGES[storage]))
        np.testing.assert_array_equal(read(radar_file).counts, np.where(counts == 65534, 65535, counts))
        for crop in (Crop(row0=7, row1=17, col0=8, col1=29), Crop(row0=36, row1=37, col0=0, col1=1)):
            expected = counts[crop.row0 : crop.row1, crop.col0 : crop.col1]
            np.testing.assert_array_equal(read(radar_file, crop).counts, expected)


def some_chunks(file: Any) -> None:
    replace_image(shape=(ROWS, COLS), dtype="u2", chunks=(8, 9), compression="gzip")(file)
    file["image1/image_data"][:20] = COUNTS[:20]


UNWRITTEN: list[tuple[Callable[[Any], None], str]] = [
    (some_chunks, "12 of its 20 chunks are stored"),
    (replace_image(shape=(ROWS, COLS), dtype="u2", chunks=(ROWS, COLS)), "0 of its 1 chunks are stored"),
    (replace_image(shape=(ROWS, COLS), dtype="u2"), "0 of its 2,146 bytes are stored"),
]


@pytest.mark.parametrize(("edit", "message"), UNWRITTEN)
def test_pixels_that_were_never_written_are_no_dry_weather(
    radar_file: Path, edit: Callable[[Any], None], message: str
) -> None:
    change(radar_file, edit)
    with pytest.raises(DataError, match=f"{radar_file}: /image1/image_data: {message}"):
        read_header(radar_file)


def put_chunk(data: bytes, **arguments: Any) -> Callable[[Any], None]:
    """Make an edit that stores bytes as the image's only chunk; the filter mask says which filters were left out."""
    mask = arguments.pop("filter_mask", 0)

    def edit(file: Any) -> None:
        replace_image(shape=(ROWS, COLS), dtype="u2", chunks=(ROWS, COLS), **arguments)(file)
        file["image1/image_data"].id.write_direct_chunk((0, 0), data, filter_mask=mask)

    return edit


GZIP = {"compression": "gzip"}
PIXELS = COUNTS.tobytes()
WRONG_CHUNKS: list[tuple[Callable[[Any], None], str]] = [
    (put_chunk(zlib.compress(PIXELS)[:-200], **GZIP), "cannot be read as a KNMI HDF5 composite"),
    (put_chunk(PIXELS, **GZIP), "cannot be read as a KNMI HDF5 composite"),
    (put_chunk(zlib.compress(PIXELS)[:-4] + b"abcd", **GZIP), "cannot be read as a KNMI HDF5 composite"),
    (put_chunk(bytes(2 * 2146 + 1025), **GZIP), "5317 bytes are stored for 2146"),
    (put_chunk(zlib.compress(PIXELS), filter_mask=1, **GZIP), r"chunk \(0, 0\): \d+ bytes are stored for 2146"),
    (put_chunk(PIXELS, fletcher32=True), "2146 bytes are stored for 2146"),
    (put_chunk(PIXELS + b"abcd", fletcher32=True), "cannot be read as a KNMI HDF5 composite"),
]


@pytest.mark.parametrize(("edit", "message"), WRONG_CHUNKS)
def test_damaged_chunks_are_refused(radar_file: Path, edit: Callable[[Any], None], message: str) -> None:
    change(radar_file, edit)
    with pytest.raises(DataError, match=message) as caught:
        read(radar_file)
    assert str(radar_file) in str(caught.value)


def test_a_chunk_that_gzip_left_out_is_read(radar_file: Path) -> None:
    change(radar_file, put_chunk(PIXELS, filter_mask=1, **GZIP))
    np.testing.assert_array_equal(read(radar_file).counts, COUNTS)


def test_a_flipped_bit_of_the_index_makes_no_dry_weather(radar_file: Path) -> None:
    """HDF5's index of chunks has no checksum; what it does not find reads as the fill value."""
    whole = radar_file.read_bytes()
    signature = b"TREE\x01\x00\x01\x00"
    assert whole.count(signature) == 1
    start = whole.index(signature)
    refused = 0
    for place in range(start, start + 96):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        radar_file.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read(radar_file).counts, COUNTS)
        except DataError:
            refused += 1
    assert refused > 40


def test_a_filter_that_is_not_installed_is_named(radar_file: Path) -> None:
    def edit(file: Any) -> None:
        del file["image1/image_data"]
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((ROWS, COLS))
        plist.set_filter(32123, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple((ROWS, COLS))
        image = h5py.h5d.create(file["image1"].id, b"image_data", h5py.h5t.STD_U16LE, space, plist)
        image.write_direct_chunk((0, 0), b"packed by a filter of its own")

    change(radar_file, edit)
    with pytest.raises(DataError, match=f"{radar_file} cannot be read as .*plugin"):
        read(radar_file)


@pytest.mark.parametrize("formula", ["GEO=1e99*PV", "GEO=10*PV", "GEO=1e-9*PV"])
def test_scales_that_no_radar_has_are_refused(radar_file: Path, formula: str) -> None:
    change(radar_file, set_attribute("image1/calibration", "calibration_formulas", np.bytes_(formula)))
    with pytest.raises(DataError, match=r"calibration_formulas is .* of 1e-06 to 100 mm/h a count"):
        read_header(radar_file)


def test_text_that_steers_terminals_is_refused(radar_file: Path) -> None:
    change(radar_file, set_attribute("overview", "product_group_name", np.bytes_(b"RAD\x1b[2J")))
    with pytest.raises(
        DataError, match=r"product_group_name of /overview is 'RAD\\x1b\[2J'; expected text that can be printed"
    ):
        read_header(radar_file)
