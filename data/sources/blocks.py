"""Long HDF5 arrays of strangers, read block by block along their first axis: memory does not grow with the file."""

import hashlib
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from ..errors import DataError
from . import hdf5

MAX_CHUNKS: Final = 2**24
CACHED_BYTES: Final = 2**26


@dataclass(frozen=True, kw_only=True)
class Block:
    """A few items of an array: their values (items, ...), stored length in the file, and its bytes' SHA-256."""

    first: int
    values: npt.NDArray[Any]
    num_stored: int
    sha256: str


class BlockReader:
    """One array of a file; `block` and `digest` may be called from several threads at once.

    Attributes:
        shape: The array's shape.
        items: Items of a block: as many as a chunk holds, so that no chunk is decoded twice.
    """

    def __init__(self, path: Path, name: str, kind: str, cached_bytes: int = CACHED_BYTES) -> None:
        """Open the array.

        Args:
            path: The file; it stays open.
            name: The array's path in it.
            kind: What the file should be, for messages.
            cached_bytes: Decoded blocks that are kept, four of them at least.

        Raises:
            DataError: It is no array of floats, too large a piece of it is stored in one, or some of it is not.
        """
        self._path, self._kind = path, kind
        with hdf5.explained(str(path), kind):
            # Closed when nobody holds the reader any more: opening it for every block would take as long as reading.
            self._file = h5py.File(path, "r")
            self._array = array = hdf5.member(self._file, name)
            hdf5.check_plain(array, f"/{name}", (3, 4), ("float32", "float64"))
            self.shape: tuple[int, ...] = array.shape
            pixels = math.prod(self.shape[1:])
            self.items: int = array.chunks[0] if array.chunks else max(1, hdf5.STRIP_PIXELS // max(pixels, 1))
            if min(self.shape) < 1 or self.items * pixels > hdf5.MAX_PIXELS:
                raise DataError(
                    f"/{name} has shape {self.shape} in chunks of {array.chunks}; expected pixels, and at most "
                    f"{hdf5.MAX_PIXELS} of them in a chunk's items: store it again with h5repack in chunks of one item"
                )
            self._stored = _chunk_sizes(array, f"/{name}")
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self._num_cached = max(4, cached_bytes // (self.items * pixels * array.dtype.itemsize))
        self._lock = threading.Lock()
        self._busy: dict[int, threading.Lock] = {}
        self._digested: tuple[int, int, str] = (-1, 0, "")

    def digest(self, item: int) -> tuple[int, str]:
        """Give the stored length of the block that holds an item, and the SHA-256 of its stored bytes."""
        number = item // self.items
        if self._digested[0] != number:
            _, num_stored, sha256 = self._read(number, decode=False)
            self._digested = (number, num_stored, sha256)
        return self._digested[1:]

    def block(self, item: int) -> Block:
        """Read the block that holds an item; the last ones are kept."""
        number = item // self.items
        with self._lock:
            if number in self._blocks:
                self._blocks.move_to_end(number)
                return self._blocks[number]
            busy = self._busy.setdefault(number, threading.Lock())
        # Threads that want the same block wait for the one that reads it.
        with busy:
            with self._lock:
                if number in self._blocks:
                    return self._blocks[number]
            values, num_stored, sha256 = self._read(number, decode=True)
            block = Block(first=number * self.items, values=values, num_stored=num_stored, sha256=sha256)
            with self._lock:
                self._blocks[number] = block
                self._busy.pop(number, None)
                while len(self._blocks) > self._num_cached:
                    self._blocks.popitem(last=False)
        return block

    def _read(self, number: int, *, decode: bool) -> tuple[npt.NDArray[Any], int, str]:
        with hdf5.explained(str(self._path), self._kind):
            return self._read_block(self._array, number, decode=decode)

    def _read_block(self, array: Any, number: int, *, decode: bool) -> tuple[npt.NDArray[Any], int, str]:
        first = number * self.items
        items = min(self.items, self.shape[0] - first)
        if array.chunks is None:
            values = array[first : first + items]
            return values, values.nbytes, hashlib.sha256(values.tobytes()).hexdigest()
        digest, num_stored = hashlib.sha256(), 0
        values = np.empty((items if decode else 0, *self.shape[1:]), array.dtype.newbyteorder("="))
        for place in np.ndindex(self._stored.shape[1:]):
            offset = tuple(at * size for at, size in zip((number, *place), array.chunks, strict=True))
            stored = hdf5.stored_chunk(array, offset, int(self._stored[(number, *place)]))
            digest.update(stored[0].to_bytes(8, "little") + stored[1])
            num_stored += len(stored[1])
            if decode:
                chunk = hdf5.decode_chunk(array, stored, offset)
                target = tuple(
                    slice(start, start + size) for start, size in zip(offset[1:], array.chunks[1:], strict=True)
                )
                part = values[(slice(None), *target)]
                part[...] = chunk[tuple(slice(size) for size in part.shape)]
        return values, num_stored, digest.hexdigest()


def _chunk_sizes(array: Any, name: str) -> npt.NDArray[np.int64]:
    """Map an array's chunks: stored length of each; raises DataError unless each is stored, once."""
    if array.chunks is None:
        found, expected = array.id.get_storage_size(), array.size * array.dtype.itemsize
        if found != expected:
            raise DataError(f"{name}: {found} of its {expected} bytes are stored; expected all: fetch the file again")
        return np.zeros((0,), np.int64)
    grid = tuple(-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True))
    if math.prod(grid) > MAX_CHUNKS:
        raise DataError(
            f"{name} is stored in {math.prod(grid):,} chunks; expected at most {MAX_CHUNKS:,}: use h5repack"
        )
    stored = np.zeros(grid, np.int64)
    strange = 0

    def note(info: Any) -> None:
        nonlocal strange
        at = tuple(offset // chunk for offset, chunk in zip(info.chunk_offset, array.chunks, strict=True))
        inside = all(0 <= place < size for place, size in zip(at, grid, strict=True))
        if inside and not stored[at] and info.size > 0:
            stored[at] = info.size
        else:
            strange += 1

    array.id.chunk_iter(note)
    if strange or not stored.all():
        raise DataError(
            f"{name}: {int(np.count_nonzero(stored))} of its {stored.size} chunks are stored, {strange} twice or "
            "beside it; expected each of them once: fetch the file again or remove it"
        )
    return stored
