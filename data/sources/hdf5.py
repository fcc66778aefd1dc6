"""HDF5 files of strangers: members through hard links only, plain attributes, and pixels decoded in bounded memory.

HDF5's own gzip filter lets its buffer grow for as long as a stream goes on, gives pixels that were never written the
fill value, and leaves what a stream ends before as the memory was. So stored chunks are read raw and decoded here: the
filters are those of the HDF5 File Format Specification, version 3.0, IV.A.2.l (filter pipeline message).
"""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from data.frames import Crop, DataError

FILTERS: Final = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32)
"""Filters that are decoded, in the order in which a writer applies them; each at most once."""

MAX_PIXELS: Final = 2**26
"""Largest image and largest chunk that are read: 128 MiB of counts, a hundred times KNMI's composite."""

CHECKSUM_BYTES: Final = 4


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file to read; whatever h5py raises inside becomes a DataError that names it."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    # h5py raises all of these for damaged files, depending on which byte is wrong.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, AttributeError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as a KNMI HDF5 composite ({error}); it is damaged or of another kind: "
            "fetch it again or remove it"
        ) from error


def member(file: Any, name: str) -> Any:
    """Step down to a member through hard links only: no other kind can be kept from leaving the file."""
    item, walked = file, ""
    for part in name.split("/"):
        walked += f"/{part}"
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
        if link is None:
            raise DataError(f"{walked} is missing; expected a KNMI composite")
        if not isinstance(link, h5py.HardLink):
            raise DataError(
                f"{walked} is a link ({type(link).__name__}), perhaps into another file; links are never followed"
            )
        item = item[part]
    return item


def text(item: Any, name: str) -> str:
    """Read an attribute that is one line of text; raises DataError for any other."""
    value = _attribute(item, name)
    if isinstance(value, bytes):
        value = value.decode("ascii", errors="replace")
    # Control characters would steer the terminal of whoever reads the archive's summary.
    if not isinstance(value, str) or not value.strip("\0 ").isprintable():
        raise DataError(f"attribute {name} of {item.name} is {value!r:.80}; expected text that can be printed")
    return value.strip("\0 ")


def number(item: Any, name: str) -> float:
    """Read an attribute that is one finite number; raises DataError for any other."""
    value = _attribute(item, name)
    if not isinstance(value, (int, float, np.integer, np.floating)) or not math.isfinite(value):
        raise DataError(f"attribute {name} of {item.name} is {value!r}; expected a number")
    return float(value)


def check_image(image: Any, name: str) -> None:
    """Check, before any pixel is read, that an image can be read whole: kind, size, filters, and all of it stored.

    Raises:
        DataError: It is no uint16 (rows, columns), too large, keeps pixels in other files, is stored by a filter
            beyond gzip, shuffle and Fletcher32, or some of its pixels were never written.
    """
    if not isinstance(image, h5py.Dataset) or image.ndim != 2 or image.dtype.kind != "u" or image.dtype.itemsize != 2:
        found = f"{image.dtype} {image.shape}" if isinstance(image, h5py.Dataset) else "a group"
        raise DataError(f"{name} is {found}; expected uint16 (rows, columns)")
    if not any(image.id.get_type().equal(kind) for kind in (h5py.h5t.STD_U16LE, h5py.h5t.STD_U16BE)):
        raise DataError(f"{name} uses some bits of its 16 only; expected plain uint16")
    if image.external or image.is_virtual:
        raise DataError(f"{name} keeps its pixels in other files, which are never followed")
    rows, cols = image.shape
    if not 0 < rows * cols <= MAX_PIXELS or math.prod(image.chunks or (1,)) > MAX_PIXELS:
        raise DataError(f"{name} has {rows} x {cols} pixels in chunks of {image.chunks}; expected at most {MAX_PIXELS}")
    filters = _filters(image)
    if (
        not all(code in FILTERS for code in filters)
        or sorted(filters, key=FILTERS.index) != filters
        or len(set(filters)) < len(filters)
    ):
        raise DataError(
            f"{name} is stored through the HDF5 filters {filters}; expected shuffle (2), gzip (1) and Fletcher32 (3), "
            "each at most once and in this order: store it again with h5repack"
        )
    _check_stored(image, name)


def read_pixels(image: Any, crop: Crop) -> npt.NDArray[np.uint16]:
    """Read a part of an image that passed `check_image`: uint16 (rows, cols), never more memory than image and chunk.

    Raises:
        DataError: A chunk is stored in more bytes than its pixels can take, or decodes to fewer or more of them.
    """
    if image.chunks is None:
        return np.ascontiguousarray(image[crop.row0 : crop.row1, crop.col0 : crop.col1], dtype=np.uint16)
    chunks: dict[tuple[int, int], Any] = {}
    image.id.chunk_iter(lambda info: chunks.__setitem__(info.chunk_offset, info))
    counts_hw = np.empty((crop.rows, crop.cols), np.uint16)
    num_filled = 0
    for (row, col), info in chunks.items():
        row0, row1 = max(row, crop.row0), min(row + image.chunks[0], crop.row1)
        col0, col1 = max(col, crop.col0), min(col + image.chunks[1], crop.col1)
        if row0 < row1 and col0 < col1:
            chunk_hw = _chunk(image, info)
            part = chunk_hw[row0 - row : row1 - row, col0 - col : col1 - col]
            counts_hw[row0 - crop.row0 : row1 - crop.row0, col0 - crop.col0 : col1 - crop.col0] = part
            num_filled += part.size
    # Chunks that a damaged file lists twice or beside the grid leave a hole elsewhere.
    if num_filled != counts_hw.size:
        raise DataError(f"{image.name} holds {num_filled} pixels of the {counts_hw.size} asked for; fetch it again")
    return counts_hw


def _attribute(item: Any, name: str) -> Any:
    if name not in item.attrs:
        raise DataError(f"attribute {name} of {item.name} is missing; expected a KNMI composite")
    value = item.attrs[name]
    if isinstance(value, np.ndarray):
        if value.size != 1:
            raise DataError(f"attribute {name} of {item.name} has {value.size} values; expected one")
        value = value.reshape(())[()]
    return value


def _filters(image: Any) -> list[int]:
    plist = image.id.get_create_plist()
    return [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]


def _check_stored(image: Any, name: str) -> None:
    """Demand that every pixel was written: HDF5 reads the others as the fill value, which would be dry weather."""
    if image.chunks is None:
        found, expected, unit = image.id.get_storage_size(), image.size * image.dtype.itemsize, "bytes"
    else:
        expected = math.prod(-(-size // chunk) for size, chunk in zip(image.shape, image.chunks, strict=True))
        found, unit = image.id.get_num_chunks(), "chunks"
    if found != expected:
        raise DataError(
            f"{name}: {found} of its {expected} {unit} are stored, the other pixels were never written; "
            "expected all of them: fetch the file again or remove it"
        )


def _chunk(image: Any, info: Any) -> npt.NDArray[np.uint16]:
    """Decode one stored chunk: uint16 of the chunk's shape, in the file's byte order."""
    num_bytes = math.prod(image.chunks) * image.dtype.itemsize
    where = f"{image.name}, chunk {info.chunk_offset}"
    # No writer stores more than this, even of noise: zlib adds 5 bytes a block and HDF5 a checksum.
    if info.size > 2 * num_bytes + 1024:
        raise DataError(f"{where}: {info.size} bytes are stored for {num_bytes}; fetch the file again")
    skipped, data = image.id.read_direct_chunk(info.chunk_offset)
    filters = _filters(image)
    for place in reversed(range(len(filters))):
        # A bit is set where the writer left out a filter, as it does when gzip makes a chunk longer.
        if skipped >> place & 1:
            continue
        if filters[place] == h5py.h5z.FILTER_FLETCHER32:
            data = _verified(data, where)
        elif filters[place] == h5py.h5z.FILTER_DEFLATE:
            # One byte more than there should be tells a stream that goes on from one that ends.
            data = zlib.decompressobj().decompress(data, num_bytes + 1)
        elif len(data) == num_bytes:
            data = np.frombuffer(data, np.uint8).reshape(image.dtype.itemsize, -1).T.tobytes()
    if len(data) != num_bytes:
        found = f"more than {num_bytes}" if len(data) > num_bytes else str(len(data))
        raise DataError(
            f"{where}: decodes to {found} bytes; expected {num_bytes} for {image.chunks} uint16: fetch the file again"
        )
    return np.frombuffer(data, image.dtype).reshape(image.chunks)


def _verified(data: bytes, where: str) -> bytes:
    """Check and cut off HDF5's Fletcher32 checksum (H5_checksum_fletcher32 in its H5checksum.c)."""
    content, stored = data[:-CHECKSUM_BYTES], int.from_bytes(data[-CHECKSUM_BYTES:], "little")
    words = np.frombuffer(content + b"\0" * (len(content) % 2), ">u2").astype(np.uint64)
    # Word i is part of n - i of the running sums. Remainders keep 2**27 products of 32 bits inside 64.
    weights = np.arange(len(words), 0, -1, dtype=np.uint64) % np.uint64(65535)
    low, high = (int(value) for value in (words.sum(), (words * weights).sum()))
    # The C code folds carries instead of dividing, so a multiple of 65535 stays 65535 unless all is 0.
    found = sum(((value % 65535 or 65535) if value else 0) << shift for value, shift in ((low, 0), (high, 16)))
    if found != stored:
        raise DataError(f"{where}: its checksum is {found:08x}, {stored:08x} is stored; fetch the file again")
    return content
