"""Pixels of strangers' files: decoded as HDF5 decodes them, in bounded memory, and never where none were written."""

import resource
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop
from rainspark.data.sources.knmi import read, read_header
from rainspark.data.sources.synthetic import file_name, write_knmi_file
from tests.data.radar_files import change, random_counts, replace_image, set_attribute

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


def test_a_chunk_that_gzip_left_out_is_read(radar_file: Path) -> None:
    def edit(file: Any) -> None:
        put_chunk(b"replaced")(file)
        file["image1/image_data"].id.write_direct_chunk((0, 0), COUNTS.tobytes(), filter_mask=1)

    change(radar_file, edit)
    with h5py.File(radar_file) as file:
        assert file["image1/image_data"].id.get_chunk_info(0).filter_mask == 1
        np.testing.assert_array_equal(file["image1/image_data"][()], COUNTS)
    np.testing.assert_array_equal(read(radar_file).counts, COUNTS)


def some_chunks(file: Any) -> None:
    replace_image(shape=(ROWS, COLS), dtype="u2", chunks=(8, 9), compression="gzip")(file)
    file["image1/image_data"][:20] = COUNTS[:20]


UNWRITTEN: list[tuple[Callable[[Any], None], str]] = [
    (some_chunks, "12 of its 20 chunks are stored"),
    (replace_image(shape=(ROWS, COLS), dtype="u2", chunks=(ROWS, COLS)), "0 of its 1 chunks are stored"),
    (replace_image(shape=(ROWS, COLS), dtype="u2"), "0 of its 2146 bytes are stored"),
]


@pytest.mark.parametrize(("edit", "message"), UNWRITTEN)
def test_pixels_that_were_never_written_are_no_dry_weather(
    radar_file: Path, edit: Callable[[Any], None], message: str
) -> None:
    change(radar_file, edit)
    with pytest.raises(DataError, match=f"{radar_file}: /image1/image_data: {message}"):
        read_header(radar_file)


def put_chunk(data: bytes) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        replace_image(shape=(ROWS, COLS), dtype="u2", chunks=(ROWS, COLS), compression="gzip")(file)
        file["image1/image_data"].id.write_direct_chunk((0, 0), data)

    return edit


PIXELS = COUNTS.tobytes()
WRONG_CHUNKS = [
    (zlib.compress(PIXELS + b"\0"), "decodes to more than 2146 bytes; expected 2146"),
    (zlib.compress(PIXELS[:-2]), "decodes to 2144 bytes; expected 2146"),
    (zlib.compress(PIXELS)[:-200], r"decodes to \d+ bytes; expected 2146"),
    (zlib.compress(b"")[:-4], "decodes to 0 bytes"),
    (PIXELS, "cannot be read as a KNMI HDF5 composite"),
    (zlib.compress(PIXELS)[:-4] + b"abcd", "cannot be read as a KNMI HDF5 composite"),
    (bytes(2 * 2146 + 1025), "5317 bytes are stored for 2146"),
]


@pytest.mark.parametrize(("data", "message"), WRONG_CHUNKS)
def test_chunks_of_other_sizes_are_refused(radar_file: Path, data: bytes, message: str) -> None:
    change(radar_file, put_chunk(data))
    with pytest.raises(DataError, match=message) as caught:
        read(radar_file)
    assert str(radar_file) in str(caught.value)


def test_a_checksum_that_does_not_fit_is_refused(radar_file: Path) -> None:
    change(radar_file, replace_image(data=COUNTS, chunks=(37, 29), fletcher32=True))
    with h5py.File(radar_file) as file:
        offset = file["image1/image_data"].id.get_chunk_info(0).byte_offset
    whole = radar_file.read_bytes()
    for place in (0, 1, 1000, 2145, 2146, 2149):
        damaged = bytearray(whole)
        damaged[offset + place] ^= 16
        radar_file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"chunk \(0, 0\): its checksum is [0-9a-f]{8}, [0-9a-f]{8} is stored"):
            read(radar_file)


def test_a_decompression_bomb_takes_no_memory(radar_file: Path) -> None:
    # 1 GiB of zeros in 1 MiB; the image's own chunk is 8 MB, so that as many stored bytes are plausible.
    deflate = zlib.compressobj()
    bomb = b"".join(deflate.compress(bytes(2**24)) for _ in range(64)) + deflate.flush()
    size = 2048

    def edit(file: Any) -> None:
        replace_image(shape=(size, size), dtype="u2", chunks=(size, size), compression="gzip")(file)
        file["image1/image_data"].id.write_direct_chunk((0, 0), bomb)
        for name in ("geo_number_rows", "geo_number_columns"):
            set_attribute("geographic", name, size)(file)

    change(radar_file, edit)
    program = (
        "import sys; from pathlib import Path; from rainspark.data.sources.knmi import read; read(Path(sys.argv[1]))"
    )
    limit = 900 * 2**20
    finished = subprocess.run(
        [sys.executable, "-c", program, str(radar_file)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "decodes to more than 8388608 bytes; expected 8388608" in finished.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"scaleoffset": 0, "chunks": (8, 9)},
        {"compression": "lzf", "chunks": (8, 9)},
        {"compression": "szip", "chunks": (8, 10)},
    ],
)
def test_other_filters_are_refused(radar_file: Path, arguments: dict[str, Any]) -> None:
    if arguments.get("compression") == "szip" and not h5py.h5z.filter_avail(h5py.h5z.FILTER_SZIP):
        arguments = {"compression": "lzf", "shuffle": True, "chunks": (8, 9)}
    change(radar_file, replace_image(data=COUNTS, **arguments))
    with pytest.raises(DataError, match=rf"{radar_file}: /image1/image_data is stored through the HDF5 filters \["):
        read_header(radar_file)


@pytest.mark.parametrize("filters", [("deflate", "deflate"), ("deflate", "shuffle"), ("shuffle", "shuffle")])
def test_filters_twice_or_in_another_order_are_refused(radar_file: Path, filters: tuple[str, ...]) -> None:
    def edit(file: Any) -> None:
        del file["image1/image_data"]
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((ROWS, COLS))
        codes = {"deflate": h5py.h5z.FILTER_DEFLATE, "shuffle": h5py.h5z.FILTER_SHUFFLE}
        for name in filters:
            plist.set_filter(codes[name], h5py.h5z.FLAG_OPTIONAL, (6,) if name == "deflate" else ())
        space = h5py.h5s.create_simple((ROWS, COLS))
        image = h5py.h5d.create(file["image1"].id, b"image_data", h5py.h5t.STD_U16LE, space, plist)
        h5py.Dataset(image)[...] = COUNTS

    change(radar_file, edit)
    with pytest.raises(DataError, match="each at most once and in this order"):
        read_header(radar_file)


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
