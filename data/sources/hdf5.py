"""HDF5 files of strangers: members through hard links only, plain attributes, and pixels decoded in bounded memory.

HDF5's own gzip filter lets its buffer grow for as long as a stream goes on, gives pixels that were never written the
fill value, and leaves what a stream ends before as the memory was. So stored chunks are read raw and decoded here: the
filters are those of the HDF5 File Format Specification, version 3.0, IV.A.2.l (filter pipeline message).
"""

import io
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..frames import Crop

FILTERS: Final = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32)
"""Filters that are decoded, in the order in which a writer applies them; each at most once."""

MAX_PIXELS: Final = 2**26
"""Largest image and largest chunk that are read: 128 MiB of counts, a hundred times KNMI's composite."""

STRIP_PIXELS: Final = 2**20
"""Pixels of an unchunked image that are read at a time."""

CHECKSUM_BYTES: Final = 4

LAYOUTS: Final = {
    "knmi": ("a KNMI HDF5 composite", ("overview", "image1")),
    "odim": ("an ODIM_H5 file", ("what", "where")),
    "smaat": ("SmaAt-UNet's collected HDF5", ("train", "test")),
}
"""What each sub-command of data.pack reads, and groups that stand in the root of such files."""

PLAIN_TYPES: Final = {
    "uint8": (h5py.h5t.STD_U8LE, h5py.h5t.STD_U8BE),
    "uint16": (h5py.h5t.STD_U16LE, h5py.h5t.STD_U16BE),
    "int16": (h5py.h5t.STD_I16LE, h5py.h5t.STD_I16BE),
    "int32": (h5py.h5t.STD_I32LE, h5py.h5t.STD_I32BE),
    "float32": (h5py.h5t.IEEE_F32LE, h5py.h5t.IEEE_F32BE),
    "float64": (h5py.h5t.IEEE_F64LE, h5py.h5t.IEEE_F64BE),
}
"""HDF5's types of plain numbers, by numpy's name."""


class ChoiceError(DataError):
    """A sound file, but the command asks for what it does not hold: another sub-command or option is needed."""


@contextmanager
def opened(place: Path | bytes, name: str, kind: str) -> Iterator[Any]:
    """Open a file, or the bytes of one, to read; whatever h5py raises inside becomes a DataError that names it.

    Args:
        place: The file's path, or all of its bytes.
        name: What messages call it.
        kind: What it should be, such as "a KNMI HDF5 composite".
    """
    with explained(name, kind), h5py.File(place if isinstance(place, Path) else io.BytesIO(place), "r") as file:
        yield file


@contextmanager
def explained(name: str, kind: str) -> Iterator[None]:
    """Turn whatever h5py raises inside into a DataError that names the file; for the arguments see `opened`."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{name}: {error}") from error
    # h5py raises all of these for damaged files, depending on which byte is wrong.
    except (
        OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, AttributeError, MemoryError, zlib.error
    ) as error:  # fmt: skip
        raise DataError(
            f"{name} cannot be read as {kind} ({error}); it is damaged or of another kind: fetch it again or remove it"
        ) from error


def check_layout(file: Any, wanted: str) -> None:
    """Check that a file is not of a kind that another sub-command of data.pack reads.

    Args:
        file: The file, open.
        wanted: The sub-command that reads it, a key of LAYOUTS.

    Raises:
        ChoiceError: It looks like a file of another one.
    """
    found = layout_of(file)
    if found not in (wanted, None):
        raise ChoiceError(
            f"it is {LAYOUTS[found][0]}, not {LAYOUTS[wanted][0]}: pack it with the sub-command {found} instead of "
            f"{wanted}"
        )


def layout_of(file: Any) -> str | None:
    """Tell which sub-command of data.pack reads a file, by the groups in its root; None where they do not say."""
    held = {name for _, names in LAYOUTS.values() for name in names if _holds(file, name)}
    if held & {"train", "test"}:
        return "smaat"
    if {"overview", "image1"} <= held:
        return "knmi"
    states_odim = {"what", "where"} <= held and ("Conventions" in file.attrs or "object" in file["what"].attrs)
    return "odim" if states_odim else None


def member(file: Any, name: str) -> Any:
    """Step down to a member through hard links only: no other kind can be kept from leaving the file."""
    item, walked = file, ""
    for part in name.split("/"):
        walked += f"/{part}"
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
        if link is None:
            raise DataError(f"{walked} is missing; expected a radar file that holds it")
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


def number(item: Any, name: str, *, may_be_nan: bool = False) -> float:
    """Read an attribute that is one finite number, or NaN where that is allowed; raises DataError for any other."""
    value = _attribute(item, name)
    if not isinstance(value, (int, float, np.integer, np.floating)) or not (
        math.isfinite(value) or (may_be_nan and math.isnan(value))
    ):
        raise DataError(f"attribute {name} of {item.name} is {value!r}; expected a number")
    return float(value)


def check_image(image: Any, name: str, dtypes: Sequence[str] = ("uint16",)) -> None:
    """Check, before any pixel is read, that an image can be read whole: kind, size, filters, and all of it stored.

    Raises:
        DataError: It is no (rows, columns) of one of the dtypes, too large, keeps pixels in other files, is stored by a
            filter beyond gzip, shuffle and Fletcher32, or some of its pixels were never written.
    """
    check_plain(image, name, (2,), dtypes)
    rows, cols = image.shape
    if not 0 < rows * cols <= MAX_PIXELS:
        raise DataError(f"{name} has {rows} x {cols} pixels in chunks of {image.chunks}; expected at most {MAX_PIXELS}")
    _check_stored(image, name)


def check_plain(dataset: Any, name: str, ndims: Sequence[int], dtypes: Sequence[str]) -> None:
    """Check that a dataset is an array of plain numbers in this file, in chunks of bounded size and known filters.

    Raises:
        DataError: As `check_image`; how much of it is stored is not judged.
    """
    axes = " or ".join({2: "(rows, columns)", 3: "(frames, rows, columns)", 4: "(windows, frames, rows, columns)"}[ndim]
                       for ndim in ndims)  # fmt: skip
    wanted = f"{', '.join(dtypes)} {axes}"
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim not in ndims or dataset.dtype.name not in dtypes:
        found = f"{dataset.dtype} {dataset.shape}" if isinstance(dataset, h5py.Dataset) else "a group"
        raise DataError(f"{name} is {found}; expected {wanted}")
    # A dtype may look plain although HDF5 stores fewer bits of it, or bits in another place.
    if not any(dataset.id.get_type().equal(kind) for kind in PLAIN_TYPES[dataset.dtype.name]):
        raise DataError(f"{name} uses some bits of its {8 * dataset.dtype.itemsize} only; expected plain {wanted}")
    check_storage(dataset, name)


def check_storage(dataset: Any, name: str) -> None:
    """Check that a dataset keeps its values in this file, in chunks of bounded size and through known filters.

    Raises:
        DataError: It does not.
    """
    if dataset.external or dataset.is_virtual:
        raise DataError(f"{name} keeps its pixels in other files, which are never followed")
    if math.prod(dataset.chunks or (1,)) > MAX_PIXELS:
        shape = " x ".join(map(str, dataset.shape))
        raise DataError(f"{name} has {shape} pixels in chunks of {dataset.chunks}; expected at most {MAX_PIXELS}")
    filters = _filters(dataset)
    if (
        not all(code in FILTERS for code in filters)
        or sorted(filters, key=FILTERS.index) != filters
        or len(set(filters)) < len(filters)
    ):
        raise DataError(
            f"{name} is stored through the HDF5 filters {filters}; expected shuffle (2), gzip (1) and Fletcher32 (3), "
            "each at most once and in this order: store it again with h5repack"
        )


def read_pixels(image: Any, crop: Crop) -> npt.NDArray[Any]:
    """Read a part of an image that passed `check_image`: (rows, cols), never more memory than image and chunk.

    Raises:
        DataError: A chunk is stored in more bytes than its pixels can take, or decodes to fewer or more of them.
    """
    pixels_hw = np.empty((crop.rows, crop.cols), image.dtype.newbyteorder("="))
    for row, col, part in read_parts(image, crop):
        pixels_hw[row : row + part.shape[0], col : col + part.shape[1]] = part
    return pixels_hw


def read_parts(image: Any, crop: Crop) -> Iterator[tuple[int, int, npt.NDArray[Any]]]:
    """Read a part of an image that passed `check_image` in pieces, one chunk in memory at a time.

    Yields:
        First row and first column, counted from the crop's, and pixels (rows, cols) in the file's byte order.

    Raises:
        DataError: As `read_pixels`; that pixels are missing is known after the last piece only.
    """
    if image.chunks is None:
        rows = max(STRIP_PIXELS // crop.cols, 1)
        for row in range(crop.row0, crop.row1, rows):
            yield row - crop.row0, 0, image[row : min(row + rows, crop.row1), crop.col0 : crop.col1]
        return
    chunks: dict[tuple[int, int], int] = {}
    image.id.chunk_iter(lambda info: chunks.__setitem__(info.chunk_offset, info.size))
    num_filled = 0
    for (row, col), num_stored in chunks.items():
        row0, row1 = max(row, crop.row0), min(row + image.chunks[0], crop.row1)
        col0, col1 = max(col, crop.col0), min(col + image.chunks[1], crop.col1)
        if row0 < row1 and col0 < col1:
            chunk_hw = decode_chunk(image, stored_chunk(image, (row, col), num_stored), (row, col))
            num_filled += (row1 - row0) * (col1 - col0)
            yield row0 - crop.row0, col0 - crop.col0, chunk_hw[row0 - row : row1 - row, col0 - col : col1 - col]
    # Chunks that a damaged file lists twice or beside the grid leave a hole elsewhere.
    if num_filled != crop.rows * crop.cols:
        raise DataError(
            f"{image.name} holds {num_filled} pixels of the {crop.rows * crop.cols} asked for; fetch it again"
        )


def stored_chunk(dataset: Any, offset: tuple[int, ...], num_stored: int) -> tuple[int, bytes]:
    """Read a chunk as it is stored: which filters its writer left out (bits), and its bytes, bounded.

    Args:
        dataset: One that passed `check_plain`.
        offset: The chunk's first pixel.
        num_stored: Its stored length, as the file's chunk index says.

    Raises:
        DataError: More bytes than any writer stores.
    """
    num_bytes = _chunk_bytes(dataset)
    # No writer stores more than this, even of noise: zlib adds 5 bytes a block and HDF5 a checksum.
    if num_stored > 2 * num_bytes + 1024:
        raise DataError(
            f"{dataset.name}, chunk {offset}: {num_stored} bytes are stored for {num_bytes}; fetch the file again"
        )
    skipped, data = dataset.id.read_direct_chunk(offset)
    return skipped, data


def decode_chunk(dataset: Any, stored: tuple[int, bytes], offset: tuple[int, ...]) -> npt.NDArray[Any]:
    """Decode what `stored_chunk` read: numbers of the chunk's shape, in the file's byte order; raises DataError."""
    return np.frombuffer(unfiltered(dataset, stored, offset), dataset.dtype).reshape(dataset.chunks)


def unfiltered(dataset: Any, stored: tuple[int, bytes], offset: tuple[int, ...]) -> bytes:
    """Undo the filters of what `stored_chunk` read, in memory bounded by the chunk's shape.

    Raises:
        DataError: Its checksum does not fit, or it decodes to another length than its shape has.
    """
    skipped, data = stored
    num_bytes = _chunk_bytes(dataset)
    where = f"{dataset.name}, chunk {offset}"
    filters = _filters(dataset)
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
            data = np.frombuffer(data, np.uint8).reshape(dataset.id.get_type().get_size(), -1).T.tobytes()
    if len(data) != num_bytes:
        found = f"more than {num_bytes}" if len(data) > num_bytes else str(len(data))
        raise DataError(
            f"{where}: decodes to {found} bytes; expected {num_bytes} for {dataset.chunks} {dataset.dtype.name}: "
            "fetch the file again"
        )
    return data


def _chunk_bytes(dataset: Any) -> int:
    # The stored type's size: a string of any length is kept as a reference of 16 bytes.
    return int(math.prod(dataset.chunks) * dataset.id.get_type().get_size())


def _holds(file: Any, name: str) -> bool:
    return isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Group)


def _attribute(item: Any, name: str) -> Any:
    if name not in item.attrs:
        raise DataError(f"attribute {name} of {item.name} is missing; expected a radar file that holds it")
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
