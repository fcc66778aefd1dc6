"""Read long HDF5 arrays of strangers block by block along their first axis: memory does not grow with the file."""

import hashlib
import math
import threading
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from . import hdf5

CACHED_BYTES: Final = 2**26


@dataclass(frozen=True, kw_only=True)
class Block:
    """A few items of an array: the first one's number, their values (items, ...), and the stored bytes' SHA-256."""

    first: int
    values: npt.NDArray[Any]
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
            array = hdf5.member(self._file, name)
            hdf5.check_array(array, (3, 4), ("float32", "float64"))
            self.shape: tuple[int, ...] = array.shape
            pixels = math.prod(self.shape[1:])
            self.items: int = array.chunks[0] if array.chunks else max(1, hdf5.STRIP_PIXELS // pixels)

        # Threads that want one block wait for the one that reads it.
        num_cached = max(4, cached_bytes // (self.items * pixels * array.dtype.itemsize))
        self._lock = threading.Lock()
        self._digest = lru_cache(maxsize=1)(partial(_digest_block, array, self.items))
        self._block = lru_cache(maxsize=num_cached)(partial(_read_block, array, self.items))

    def digest(self, item: int) -> tuple[int, str]:
        """Measure the block that holds an item: its stored length, and the SHA-256 of its stored bytes."""
        with self._lock, hdf5.explained(str(self._path), self._kind):
            return self._digest(item // self.items)

    def block(self, item: int) -> Block:
        """Read the block that holds an item; the last ones are kept."""
        with self._lock, hdf5.explained(str(self._path), self._kind):
            return self._block(item // self.items)


def _read_block(array: Any, items: int, number: int) -> Block:
    first = number * items
    _, sha256 = _digest_block(array, items, number)
    return Block(first=first, values=array[first : first + items], sha256=sha256)


def _digest_block(array: Any, items: int, number: int) -> tuple[int, str]:
    if array.chunks is None:
        stored = array[number * items : (number + 1) * items].tobytes()
        return len(stored), hashlib.sha256(stored).hexdigest()

    # Of the stored bytes, so that the survey need not decode them.
    digest = hashlib.sha256()
    num_stored = 0
    grid = [-(-size // chunk) for size, chunk in zip(array.shape[1:], array.chunks[1:], strict=True)]
    for inner in np.ndindex(*grid):
        offset = tuple(at * size for at, size in zip((number, *inner), array.chunks, strict=True))
        filter_mask, stored = hdf5.stored_chunk(array, offset)
        digest.update(filter_mask.to_bytes(8, "little") + stored)
        num_stored += len(stored)
    return num_stored, digest.hexdigest()
