"""Read HDF5 files of strangers through h5py: hard links only, plain attributes, and arrays that are whole.

HDF5 reads values that were never written as the fill value, which would be dry weather, and its index of chunks has no
checksum. So an array's kind and size are checked before its values are read, and each of its chunks is looked up.
"""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..frames import Crop
from .places.formats import HDF5, HEAD_BYTES, XARRAY, format_of, format_of_file

MAX_PIXELS: Final = 2**26
"""Largest image and largest chunk that are read: 128 MiB of counts, a hundred times KNMI's composite."""

STRIP_PIXELS: Final = 2**20
"""Pixels of an unchunked image that are read at a time."""

CHECKSUM_BYTES: Final = 4
PACKING_FREE: Final = frozenset({h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32})
"""Filters that leave a chunk's length as it is, but for the checksum."""

KINDS: Final = {
    "knmi": "a KNMI HDF5 composite",
    "odim": "an ODIM_H5 composite",
    "smaat": "SmaAt-UNet's collected HDF5",
}
"""What each sub-command of data.pack reads."""
TELLING_GROUPS: Final = {"image1": "knmi", "what": "odim", "train": "smaat", "test": "smaat"}
"""Groups in the root of such files, and the sub-command that reads them."""


class ChoiceError(DataError):
    """A sound file, but the command asks for what it does not hold: another sub-command or option is needed.

    Args:
        message: What was found, what was expected, what to do.
        holds: What the file holds instead, in a word or two; "" where the command does not choose between files.
    """

    def __init__(self, message: str, holds: str = "") -> None:
        super().__init__(message)
        self.holds = holds


@contextmanager
def opened(content: Path | bytes, name: str, kind: str) -> Iterator[Any]:
    """Open a file, or the bytes of one, to read; whatever h5py raises inside becomes a DataError that names it.

    Args:
        content: The file's path, or all of its bytes.
        name: What messages call it.
        kind: What it should be, such as "a KNMI HDF5 composite".
    """
    with explained(name, kind):
        form = format_of_file(content) if isinstance(content, Path) else format_of(content[:HEAD_BYTES])
        if form is not None and form != HDF5:
            refused = f"it is {form.name}, not {kind}: {form.advice}"
            raise ChoiceError(refused, holds=f"another format ({form.name})") if form.is_sound else DataError(refused)
        with h5py.File(content if isinstance(content, Path) else io.BytesIO(content), "r") as file:
            yield file


@contextmanager
def explained(name: str, kind: str) -> Iterator[None]:
    """Turn whatever h5py raises inside into a DataError that names the file; for the arguments see `opened`."""
    try:
        yield
    except ChoiceError as error:
        raise ChoiceError(f"{name}: {error}", error.holds) from error
    except DataError as error:
        raise type(error)(f"{name}: {error}") from error
    # h5py raises nearly everything for damaged files, depending on which byte is wrong.
    except Exception as error:
        raise DataError(
            f"{name} cannot be read as {kind} ({error}); it is damaged or of another kind: fetch it again or remove it"
        ) from error


def check_layout(file: Any, wanted: str) -> None:
    """Check that a file is not of a kind that another sub-command of data.pack reads.

    Args:
        file: The file, open.
        wanted: The sub-command that reads it, a key of KINDS.

    Raises:
        ChoiceError: It looks like a file of another one.
    """
    readers = [reader for group, reader in TELLING_GROUPS.items() if group in file]
    if readers and wanted not in readers:
        raise ChoiceError(
            f"it is {KINDS[readers[0]]}, not {KINDS[wanted]}: pack it with the sub-command {readers[0]} instead of "
            f"{wanted}",
            holds=KINDS[readers[0]],
        )
    # NetCDF-4 is HDF5 too.
    conventions = file.attrs.get("Conventions", b"")
    text_of = conventions.decode("ascii", errors="replace") if isinstance(conventions, bytes) else str(conventions)
    if not readers and ("_NCProperties" in file.attrs or text_of.startswith("CF-")):
        raise ChoiceError(f"it is a NetCDF-4 file, not {KINDS[wanted]}: {XARRAY}", holds="NetCDF")


def member(file: Any, name: str) -> Any:
    """Step down to a member through hard links only: no other kind can be kept from leaving the file."""
    item = file
    walked = ""
    for step in name.split("/"):
        walked += f"/{step}"
        link = item.get(step, getlink=True) if isinstance(item, h5py.Group) else None
        if link is None:
            raise DataError(f"{walked} is missing; expected a radar file that holds it")
        if not isinstance(link, h5py.HardLink):
            raise DataError(
                f"{walked} is a link ({type(link).__name__}), perhaps into another file; links are never followed"
            )
        item = item[step]
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
    is_number = isinstance(value, (int, float, np.integer, np.floating))
    if not is_number or not (math.isfinite(value) or (may_be_nan and math.isnan(value))):
        raise DataError(f"attribute {name} of {item.name} is {value!r}; expected a number")
    return float(value)


class Attributes:
    """Attributes that groups of several levels hold, of which the nearest one that has a name counts.

    Args:
        kind: The groups' name, for messages.
        holders: The groups, nearest first.
    """

    def __init__(self, kind: str, holders: Sequence[Any]) -> None:
        self._kind = kind
        self._holders = holders

    def hold(self, *names: str) -> bool:
        """Check whether all of these attributes are stated."""
        return all(any(name in holder.attrs for holder in self._holders) for name in names)

    def text(self, name: str) -> str:
        """Read an attribute that is text."""
        return text(self._holder(name), name)

    def number(self, name: str, default: float | None = None, *, may_be_nan: bool = False) -> float:
        """Read an attribute that is a number; the default where none is stated."""
        if default is not None and not self.hold(name):
            return default
        return number(self._holder(name), name, may_be_nan=may_be_nan)

    def _holder(self, name: str) -> Any:
        """Find the group that holds an attribute; the farthest if none does."""
        if not self._holders:
            raise DataError(f"/{self._kind} is missing; expected a radar file that holds it")
        return next((holder for holder in self._holders if name in holder.attrs), self._holders[-1])


def check_array(array: Any, ndims: Sequence[int], dtypes: Sequence[str]) -> None:
    """Check, before a value is read, that an array of plain numbers can be read whole and from this file.

    Raises:
        DataError: It has other axes or another dtype, keeps values in other files, is too large to be read piece by
            piece, or some of its values were never written.
    """
    wanted = f"{', '.join(dtypes)} with {' or '.join(map(str, ndims))} axes"
    if not isinstance(array, h5py.Dataset) or array.ndim not in ndims or array.dtype.name not in dtypes:
        held = f"{array.dtype} {array.shape}" if isinstance(array, h5py.Dataset) else "a group"
        raise DataError(f"{array.name} is {held}; expected {wanted}")
    # A damaged type may look plain although HDF5 takes fewer bits, or bits in another place.
    if not array.id.get_type().equal(h5py.h5t.py_create(array.dtype)):
        raise DataError(f"{array.name} uses some bits of its {8 * array.dtype.itemsize} only; expected plain {wanted}")

    check_inside(array)
    # What is read at once: an image, or the frames or windows of one chunk.
    at_once = [max(size, chunk) for size, chunk in zip(array.shape, array.chunks or array.shape, strict=True)]
    if array.ndim > 2:
        at_once[0] = array.chunks[0] if array.chunks else 1
    if 0 in array.shape or math.prod(at_once) > MAX_PIXELS:
        raise DataError(
            f"{array.name} has {' x '.join(map(str, array.shape))} pixels in chunks of {array.chunks}; expected some, "
            f"and at most {MAX_PIXELS} in an image or a chunk's frames: store it again with h5repack"
        )

    # HDF5 keeps no chunk of values that nobody wrote.
    if array.chunks is None:
        num_stored, num_expected, unit = array.id.get_storage_size(), array.size * array.dtype.itemsize, "bytes"
    else:
        grid = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
        num_stored, num_expected, unit = array.id.get_num_chunks(), math.prod(grid), "chunks"
    if num_stored != num_expected:
        raise DataError(
            f"{array.name}: {num_stored:,} of its {num_expected:,} {unit} are stored, the other values were never "
            "written; expected all of them: fetch the file again or remove it"
        )


def check_inside(dataset: Any) -> None:
    """Check that a dataset keeps its values in this file; raises DataError if not."""
    if dataset.external or dataset.is_virtual:
        raise DataError(f"{dataset.name} keeps its values in other files, which are never followed")


def stored_chunk(array: Any, offset: tuple[int, ...]) -> tuple[int, bytes]:
    """Read a chunk as it is stored: a bit for each filter that its writer left out, and its bytes.

    Every chunk is looked up here before HDF5 decodes it: HDF5 reads a chunk that its index does not find as the fill
    value, and one of a wrong length as whatever lay in memory, both without an error.

    Raises:
        DataError: Its length is none that its filters can give.
    """
    filter_mask, stored = array.id.read_direct_chunk(offset)
    num_bytes = math.prod(array.chunks) * array.dtype.itemsize
    plist = array.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    applied = [code for i, code in enumerate(filters) if not filter_mask >> i & 1]

    is_packed = bool(set(applied) - PACKING_FREE)
    num_expected = num_bytes + CHECKSUM_BYTES * applied.count(h5py.h5z.FILTER_FLETCHER32)
    # No writer packs into more, even noise: gzip adds 5 bytes a block.
    if len(stored) > 2 * num_bytes + 1024 or (not is_packed and len(stored) != num_expected):
        raise DataError(
            f"{array.name}, chunk {offset}: {len(stored)} bytes are stored for {num_bytes}; fetch the file again"
        )
    return filter_mask, stored


def read_pieces(image: Any, crop: Crop) -> Iterator[tuple[slice, slice, npt.NDArray[Any]]]:
    """Read a part of an image that passed `check_array`, a chunk at a time: none is decoded twice.

    Yields:
        Rows and columns, counted from the crop's first, and pixels (rows, cols) in the file's byte order.
    """
    rows, cols = image.chunks or (max(STRIP_PIXELS // image.shape[1], 1), image.shape[1])
    for row in range(crop.row0 - crop.row0 % rows, crop.row1, rows):
        for col in range(crop.col0 - crop.col0 % cols, crop.col1, cols):
            if image.chunks:
                stored_chunk(image, (row, col))
            row0, row1 = max(row, crop.row0), min(row + rows, crop.row1)
            col0, col1 = max(col, crop.col0), min(col + cols, crop.col1)
            inside = slice(row0 - crop.row0, row1 - crop.row0), slice(col0 - crop.col0, col1 - crop.col0)
            yield *inside, image[row0:row1, col0:col1]


def _attribute(item: Any, name: str) -> Any:
    if name not in item.attrs:
        raise DataError(f"attribute {name} of {item.name} is missing; expected a radar file that holds it")
    value = item.attrs[name]
    if isinstance(value, np.ndarray):
        if value.size != 1:
            raise DataError(f"attribute {name} of {item.name} has {value.size} values; expected one")
        value = value.reshape(())[()]
    return value
