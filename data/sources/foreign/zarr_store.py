"""Read Zarr (v2, v3) in a folder or an object store through our own stores: their retries, their access, their limits.

Zarr's metadata name the codecs that decode what a stranger stored. Some run code (pickles), so only known ones are let
through. Chunks that hold several frames are kept for a while, since each frame would ask for them again.
"""

import asyncio
import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from ...errors import DamagedError, DataError
from ...json_checks import shown
from .keys import KeyStore, Version

METADATA: Final = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
CODECS: Final = frozenset(
    [
        "adler32",
        "astype",
        "bitround",
        "blosc",
        "bytes",
        "bz2",
        "crc32",
        "crc32c",
        "delta",
        "fixedscaleoffset",
        "fletcher32",
        "gzip",
        "jenkins_lookup3",
        "lz4",
        "lzma",
        "packbits",
        "quantize",
        "shuffle",
        "sharding_indexed",
        "transpose",
        "vlen-array",
        "vlen-bytes",
        "vlen-utf8",
        "zfpy",
        "zlib",
        "zstd",
    ]
)
"""Codecs that only compute; `pickle` and what a plug-in adds are none of them."""
CACHE_BYTES: Final = 64 << 20
"""Chunks that are kept: a few of the usual size, one megabyte to ten."""
MAX_METADATA_BYTES: Final = 64 << 20
MAX_CHUNK_BYTES: Final = 2**30
"""Longest value that is read: a gigabyte holds any frame, and shards of many."""
MAX_IDENTITIES: Final = 4096
"""Chunks of which the version that was read is remembered until their frame's digest is made."""
ABSENT: Final = bytes(32)


def identity_of(version: Version) -> bytes:
    """Identify a version of a chunk, 32 bytes."""
    return hashlib.sha256(f"{version.num_bytes} {version.e_tag}".encode()).digest()


class ZarrStorage(Store):
    """The keys of a Zarr hierarchy in a store; read only.

    Args:
        storage: The folder or store whose root is the hierarchy's.
    """

    def __init__(self, storage: KeyStore) -> None:
        super().__init__(read_only=True)
        self.storage = storage
        self._identities: OrderedDict[str, bytes] = OrderedDict()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._absent: set[str] = set()
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def __eq__(self, other: object) -> bool:
        """Compare the addresses."""
        return isinstance(other, ZarrStorage) and other.storage.url == self.storage.url

    def __hash__(self) -> int:
        """Hash the address."""
        return hash(self.storage.url)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read a key's value, or a part of it; None where there is none."""
        data = await asyncio.to_thread(self._read, key, byte_range)
        return None if data is None else prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read several parts of values."""
        return list(await asyncio.gather(*(self.get(key, prototype, span) for key, span in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Check whether there is such a key."""
        return await asyncio.to_thread(self.storage.exists, key)

    async def list(self) -> AsyncIterator[str]:
        """List all keys."""
        for name in await asyncio.to_thread(self.storage.names):
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """List the keys that begin with a prefix."""
        for name in await asyncio.to_thread(self.storage.names, prefix):
            yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """List what lies directly below a prefix."""
        for child in await asyncio.to_thread(self.storage.children, prefix.rstrip("/")):
            yield child

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse to write."""
        del key, value
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse to remove."""
        del key
        self._check_writable()

    @property
    def supports_writes(self) -> bool:
        """No."""
        return False

    @property
    def supports_deletes(self) -> bool:
        """No."""
        return False

    @property
    def supports_listing(self) -> bool:
        """Yes."""
        return True

    def identity(self, key: str) -> bytes:
        """Identify the version of a chunk that was read last, or else the one that there is, 32 bytes.

        A chunk that is not stored is its fill value, and zeros stand for it.
        """
        with self._guard:
            identity = self._identities.get(key)
        if identity is not None:
            return identity
        try:
            return identity_of(self.storage.version(key))
        except DamagedError:
            return ABSENT

    def _read(self, key: str, byte_range: ByteRequest | None) -> bytes | None:
        is_metadata = key.rpartition("/")[2] in METADATA
        if is_metadata or byte_range is None:
            data = self._whole(key)
            if data is not None and is_metadata:
                _check_codecs(self.storage.url, key, data)
            return data
        return self._ranged(key, byte_range)

    def _whole(self, key: str) -> bytes | None:
        """Read a whole value, once for all threads that ask for it at the same time."""
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        try:
            with lock:
                with self._guard:
                    if key in self._absent:
                        return None
                    if key in self._kept:
                        self._kept.move_to_end(key)
                        return self._kept[key]
                data = self._stored(key)
                if data is not None:
                    self._keep(key, data)
                return data
        finally:
            with self._guard:
                self._locks.pop(key, None)

    def _stored(self, key: str) -> bytes | None:
        try:
            data, version = self.storage.read_whole(key, MAX_CHUNK_BYTES)
        except DamagedError:
            # All of a value was asked for, so it is not there at all.
            with self._guard:
                self._absent.add(key)
            return None
        with self._guard:
            self._identities[key] = identity_of(version)
            if len(self._identities) > MAX_IDENTITIES:
                self._identities.popitem(last=False)
        return data

    def _keep(self, key: str, data: bytes) -> None:
        with self._guard:
            self._kept[key] = data
            self._kept_bytes += len(data)
            while self._kept_bytes > CACHE_BYTES:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])

    def _ranged(self, key: str, byte_range: ByteRequest) -> bytes | None:
        """Read a part of a value: of shards, whose chunks lie behind each other."""
        try:
            if isinstance(byte_range, RangeByteRequest):
                return self.storage.read(key, byte_range.start, byte_range.end)
            if isinstance(byte_range, OffsetByteRequest):
                return self.storage.read(key, byte_range.offset)
            assert isinstance(byte_range, SuffixByteRequest)
            return self.storage.read(key, max(0, self.storage.size(key) - byte_range.suffix))
        except DamagedError:
            if self.storage.exists(key):
                raise
            return None


def _check_codecs(where: str, key: str, data: bytes) -> None:
    """Refuse metadata that name a codec which is not known to be harmless."""
    try:
        if len(data) > MAX_METADATA_BYTES:
            raise ValueError(f"{len(data):,} bytes")
        waiting: list[Any] = [json.loads(data)]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}/{key} is no JSON of Zarr ({error}); fetch it again") from error
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += [inner for name, inner in value.items() if name not in ("attributes", ".zattrs")]
            for holder in ("filters", "compressor", "codecs", "index_codecs"):
                inner = value.get(holder)
                for codec in inner if isinstance(inner, list) else [inner]:
                    if isinstance(codec, dict):
                        _check_codec(where, key, codec)


def _check_codec(where: str, key: str, codec: dict[str, Any]) -> None:
    name = str(codec.get("id", codec.get("name", ""))).lower()
    if re.sub(r"^numcodecs\.", "", name) not in CODECS:
        raise DataError(
            f"{where}/{key} names the codec {shown(name)!r}; expected one that only computes, such as blosc or zstd: "
            "store it again without"
        )
