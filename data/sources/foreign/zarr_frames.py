"""Open a Zarr hierarchy lazily, in a folder or a bucket, and tell what each of its frames is stored in."""

import hashlib
import re
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from ...errors import DataError
from ..places.buckets import Bucket
from .frames import Layer, Wanted, layer_of
from .keys import Folder, KeyStore
from .opening import PACKAGES, ZARR_MARKS, explaining

if TYPE_CHECKING:
    import numpy.typing as npt


MAX_LISTINGS: Final = 4
"""Most listings that are asked for again where nothing shows that one was damaged on the way."""


class ZarrFrames:
    """The frames of a variable in a Zarr hierarchy.

    Args:
        storage: Its folder or prefix.
        wanted: What is asked for.

    Raises:
        DataError: It cannot be opened or understood.
    """

    def __init__(self, storage: KeyStore, wanted: Wanted) -> None:
        self.address = storage.url
        with explaining(self.address, "zarr"), warnings.catch_warnings():
            # Of metadata that are not consolidated, of several fill values.
            warnings.simplefilter("ignore")
            import xarray as xr
            import zarr

            from .zarr_store import ZarrStorage

            self._store: ZarrStorage = ZarrStorage(storage)
            # Nothing is kept in memory, and nothing is split up by dask.
            dataset = xr.open_dataset(self._store, engine="zarr", chunks=None, cache=False)  # type: ignore[arg-type]
            self.layer: Layer = layer_of(dataset, wanted, None, "zarr")
            self._array: Any = zarr.open_group(self._store, mode="r")[wanted.variable]
        self._listed: npt.NDArray[Any] | None = None
        # A folder's files are digested one by one; a store names the versions of a thousand in one answer.
        self._is_listed = not isinstance(storage, Folder)

    def __str__(self) -> str:
        """Name the hierarchy as messages do."""
        return self.address

    def num_bytes(self) -> int:
        """Estimate what a frame takes in the store: half of its numbers."""
        return int(self._array.dtype.itemsize) * self.layer.placed.grid.rows * self.layer.placed.grid.cols // 2

    def listed_digest(self, index: int) -> str:
        """Digest what a frame is stored in before it is read: its chunks' versions, or in a folder their bytes."""
        if not self._is_listed:
            return self.digest(index)
        if self._listed is None:
            self._listed = self._list_chunks()
        positions = list(self._chunks_of(index))
        return _digest((self._key(position), bytes(self._listed[position])) for position in positions)

    def digest(self, index: int) -> str:
        """Digest what a frame is stored in after it was read, in the same way."""
        keys = [self._key(position) for position in self._chunks_of(index)]
        return _digest((key, self._store.identity(key)) for key in keys)

    def _chunks_of(self, index: int) -> Iterator[tuple[int, ...]]:
        """List the positions of the chunks that hold a frame."""
        shape, chunks = self._array.shape, self._chunk_shape()
        ranges = []
        for dimension, size, chunk in zip(self.layer.variable.dims, shape, chunks, strict=True):
            if dimension in (self.layer.placed.x_name, self.layer.placed.y_name):
                ranges.append(range(-(-size // chunk)))
            else:
                at = index if dimension == self.layer.time_name else 0
                ranges.append(range(at // chunk, at // chunk + 1))
        return product(*ranges)

    def _chunk_shape(self) -> tuple[int, ...]:
        """Give the shape of what is stored in one key: a chunk, or a shard of many."""
        return tuple(self._array.metadata.chunk_grid.chunk_shape)

    def _key(self, position: tuple[int, ...]) -> str:
        return f"{self._array.path}/{self._array.metadata.encode_chunk_key(position)}".lstrip("/")

    def _list_chunks(self) -> "npt.NDArray[Any]":
        """List the versions of all chunks, 32 bytes each, by a request a thousand."""
        from .zarr_store import identity_of

        counts = [-(-size // chunk) for size, chunk in zip(self._array.shape, self._chunk_shape(), strict=True)]
        listed = np.zeros(counts, "V32")
        prefix = f"{self._array.path}/".lstrip("/")

        def take(name: str, version: Any) -> None:
            position = tuple(map(int, re.findall(r"\d+", name.removeprefix(prefix))))
            if len(position) == len(counts) and all(at < count for at, count in zip(position, counts, strict=True)):
                listed[position] = np.void(identity_of(version))

        storage = self._store.storage
        storage.visit(prefix, take)
        # Without encryption a damaged version would look like a changed chunk: until it comes twice.
        for _ in range(MAX_LISTINGS if storage.is_plain else 0):
            before = listed.copy()
            storage.visit(prefix, take)
            if (before == listed).all():
                break
        return listed


def is_zarr_below(bucket: Bucket) -> bool:
    """Check whether a prefix of a bucket is a Zarr hierarchy, by its metadata."""
    store = cast(KeyStore, bucket.open(str(bucket).rstrip("/")))
    return any(name in ZARR_MARKS for name in store.children(""))


def open_zarr(where: Path | Bucket, wanted: Wanted) -> ZarrFrames:
    """Open a Zarr hierarchy in a folder or below a prefix of a bucket.

    Raises:
        DataError: It cannot be opened or understood, or a package is not installed.
    """
    try:
        import zarr  # noqa: F401
    except ImportError as error:
        raise DataError(f"{where}: zarr is not installed ({error}): {PACKAGES}") from error
    # What opens buckets gives our stores, which know more than a bucket is asked for.
    storage = Folder(where) if isinstance(where, Path) else cast(KeyStore, where.open(str(where).rstrip("/")))
    return ZarrFrames(storage, wanted)


def _digest(chunks: Iterator[tuple[str, bytes]]) -> str:
    """Digest chunks by their keys and what identifies them."""
    digest = hashlib.sha256()
    for key, identity in chunks:
        digest.update(key.encode() + b"\0" + identity)
    return digest.hexdigest()
