"""A store's shards on local disk: whole files, verified, the least recently used ones removed within a limit.

Files are named by their SHA-256, so archives may share a folder, and so may processes: downloads are written beside and
renamed when they are verified, one process at a time fetches a file (flock), and an open file outlives its removal.
"""

import errno
import fcntl
import hashlib
import itertools
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from ..errors import DamagedError, DataError
from ..whole_file import PARTIAL_SUFFIX
from .names import beyond_end, check_range
from .storage import Storage

_FETCH_BYTES: Final = 32 << 20
"""Bytes asked for at once; the store splits them into ranges that come at the same time."""
_HASH_BYTES: Final = 1 << 20
_DOWNLOADS: Final = 3
"""Times that a file which does not match its SHA-256 is fetched before the store's own copy is called damaged."""
_TOUCH_S: Final = 5.0
_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 600.0
_LOCK: Final = ".shard-cache.lock"
_COPY: Final = re.compile(r"[0-9a-f]{64}")
_UNFINISHED: Final = re.compile(rf"\.[0-9a-f]{{64}}\.[0-9]+-[0-9]+{re.escape(PARTIAL_SUFFIX)}")
"""What has another name in the folder is somebody else's: it is neither counted nor removed."""
_Signature = tuple[int, int, int]


class CachedStorage:
    """A remote storage whose listed files are read from local copies; everything else goes to the remote one.

    Args:
        remote: Where the files come from, and where writes go.
        folder: Of the copies; made where it is missing.
        limit_bytes: What the copies may take together.
        files: Name to (bytes, SHA-256 in hex), from the archive's index.

    Raises:
        DataError: A file is larger than the limit, or the folder cannot be made or written.
    """

    def __init__(self, remote: Storage, folder: Path, limit_bytes: int, files: Mapping[str, tuple[int, str]]) -> None:
        largest = max((num_bytes for num_bytes, _ in files.values()), default=0)
        if largest > limit_bytes:
            raise DataError(
                f"{folder}: the cache may take {limit_bytes:,} bytes and a shard of {remote.url} has {largest:,}; "
                f"raise data.cache_gb to {largest / 1e9:.3g} or more, best to the whole archive's size, or leave it out"
            )
        self._remote, self._root, self._limit_bytes, self._files = remote, folder.absolute(), limit_bytes, dict(files)
        self._guard = threading.Lock()
        self._file_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._verified: dict[str, _Signature] = {}
        self._touched: dict[str, float] = {}
        self._damaged: dict[str, str] = {}
        self._numbers = itertools.count()
        self._counts = dict.fromkeys(("cache_hits", "cache_misses", "cache_evictions", "cache_bytes"), 0.0)
        with self._errors("make"):
            self._root.mkdir(parents=True, exist_ok=True)
            with self._locked(_LOCK):
                self._remove_abandoned()

    @property
    def url(self) -> str:
        """The remote storage's address."""
        return self._remote.url

    @property
    def folder(self) -> Path | None:
        """None: the copies do not bear the files' names."""
        return None

    def names(self, prefix: str = "") -> list[str]:
        """List the remote files."""
        return self._remote.names(prefix)

    def exists(self, name: str) -> bool:
        """Tell whether there is such a file; one of the index is taken at its word."""
        return name in self._files or self._remote.exists(name)

    def size(self, name: str) -> int:
        """Give a file's length in bytes."""
        return self._files[name][0] if name in self._files else self._remote.size(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read bytes start to stop - 1, or to the end, of the local copy; it is fetched first where there is none."""
        if name not in self._files:
            return self._remote.read(name, start, stop)
        num_bytes = self._files[name][0]
        place, end = f"{self.url}/{name}", num_bytes if stop is None else stop
        check_range(place, start, stop)
        if max(start, end) > num_bytes:
            raise beyond_end(place, start, end, num_bytes)
        descriptor = self._open(name)
        try:
            with self._errors("read"):
                return self._pread(descriptor, start, end)
        finally:
            os.close(descriptor)

    def read_checked(self, name: str, start: int, stop: int, check: Callable[[bytes], None]) -> bytes:
        """Read bytes and judge them; where they are refused, the copy is fetched again once.

        A file that is damaged in the store is never kept here: its bytes come from there each time, and are judged.
        """
        if name not in self._files:
            return self._remote.read_checked(name, start, stop, check)
        try:
            data = self.read(name, start, stop)
        except DamagedError:
            if name not in self._damaged:
                raise
            # The rest of a file that is damaged in the store may be good: the check tells.
            return self._remote.read_checked(name, start, stop, check)
        try:
            check(data)
        except DataError:
            self._discard(self._files[name][1])
            data = self.read(name, start, stop)
            check(data)
        return data

    def write(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write to the remote storage."""
        self._remote.write(name, data, if_absent=if_absent)

    def writer(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Write to the remote storage."""
        return self._remote.writer(name)

    def delete(self, name: str) -> None:
        """Remove from the remote storage."""
        self._remote.delete(name)

    def delete_partial(self) -> None:
        """Remove what killed writers left in the remote storage."""
        self._remote.delete_partial()

    def stats(self) -> dict[str, float]:
        """Count as the remote storage does, and cache_hits, cache_misses (reads), cache_evictions, cache_bytes."""
        with self._guard:
            return {**self._remote.stats(), **self._counts}

    def close(self) -> None:
        """Close the remote storage; the copies stay."""
        self._remote.close()

    def _count(self, **counts: float) -> None:
        with self._guard:
            for name, count in counts.items():
                self._counts[name] += count

    def _open(self, name: str) -> int:
        """Open the verified copy of a file of the index."""
        num_bytes, digest = self._files[name]
        with self._errors("read"):
            descriptor = self._open_verified(digest, num_bytes, may_hash=False)
            if descriptor is None:
                with self._guard:
                    lock = self._file_locks[digest]
                with lock:
                    descriptor = self._open_verified(digest, num_bytes, may_hash=True)
                    if descriptor is None:
                        return self._fetch_once(name, num_bytes, digest)
        self._count(cache_hits=1)
        self._touch(digest)
        return descriptor

    def _fetch_once(self, name: str, num_bytes: int, digest: str) -> int:
        """Fetch a file, unless another process has just done so; returns its descriptor."""
        with self._locked(f".{digest}.lock"):
            descriptor = self._open_verified(digest, num_bytes, may_hash=True)
            if descriptor is not None:
                self._count(cache_hits=1)
                return descriptor
            if name in self._damaged:
                raise DamagedError(self._damaged[name])
            for download in range(1, _DOWNLOADS + 1):
                descriptor, found = self._download(name, num_bytes, digest)
                if found == digest:
                    self._count(cache_misses=1, cache_bytes=num_bytes)
                    return descriptor
                os.close(descriptor)
                if download == _DOWNLOADS:
                    self._damaged[name] = (
                        f"{self.url}/{name}: SHA-256 {found}, the index says {digest}; fetched {download} times: the "
                        "shard is damaged in the store or not the index's own: copy or pack it again"
                    )
                    raise DamagedError(self._damaged[name])
        raise AssertionError("a download neither succeeds nor fails")

    def _download(self, name: str, num_bytes: int, digest: str) -> tuple[int, str]:
        """Fetch a file beside its place; it takes its name where its SHA-256 is right. Gives descriptor and SHA-256."""
        temporary = self._root / f".{digest}.{os.getpid()}-{next(self._numbers)}{PARTIAL_SUFFIX}"
        descriptor = self._reserve(temporary, num_bytes)
        try:
            if num_bytes:
                # A full disk is told before the network is used.
                os.posix_fallocate(descriptor, 0, num_bytes)
            hasher = hashlib.sha256()
            for start in range(0, num_bytes, _FETCH_BYTES):
                data = self._remote.read(name, start, min(start + _FETCH_BYTES, num_bytes))
                hasher.update(data)
                view, at = memoryview(data), start
                while view:
                    written = os.pwrite(descriptor, view, at)
                    view, at = view[written:], at + written
            if hasher.hexdigest() == digest:
                os.fsync(descriptor)
                with self._locked(_LOCK):
                    # Whoever makes room counts it under one of its two names.
                    temporary.replace(self._path(digest))
                self._remember(digest, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        except BaseException:
            os.close(descriptor)
            raise
        finally:
            with suppress(OSError):
                temporary.unlink()
        return descriptor, hasher.hexdigest()

    def _reserve(self, temporary: Path, num_bytes: int) -> int:
        """Open a file to fetch into, once there is room for it; what others are fetching becomes room in a while."""
        give_up_at = time.monotonic() + _LONGEST_WAIT_S
        while True:
            with self._locked(_LOCK):
                others = self._make_room(num_bytes)
                if not others:
                    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
                    # Held while this process lives: who finds it free removes what a killed one left.
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    with suppress(OSError):
                        # Counted by other processes from here on.
                        os.ftruncate(descriptor, num_bytes)
                    return descriptor
            if time.monotonic() > give_up_at:
                raise DataError(
                    f"{self._root}: {others:,} bytes are being fetched by others for {_LONGEST_WAIT_S:g} s, and "
                    f"{num_bytes:,} more do not fit into the cache's {self._limit_bytes:,}; raise data.cache_gb, or "
                    "share the folder with fewer processes"
                )
            time.sleep(_WAIT_S)

    def _open_verified(self, digest: str, num_bytes: int, *, may_hash: bool) -> int | None:
        """Open a copy that this process has verified, or verifies now; None where there is none that is whole."""
        try:
            descriptor = os.open(self._path(digest), os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            self._discard(digest)
            return None
        whole = False
        try:
            signature = _signature(descriptor)
            with self._guard:
                whole = self._verified.get(digest) == signature
            if not whole and may_hash:
                whole = signature[1] == num_bytes and _sha256(descriptor) == digest
                if whole:
                    self._remember(digest, descriptor)
                else:
                    self._discard(digest)
        finally:
            if not whole:
                os.close(descriptor)
        return descriptor if whole else None

    def _remember(self, digest: str, descriptor: int) -> None:
        with self._guard:
            self._verified[digest] = _signature(descriptor)

    def _discard(self, digest: str) -> None:
        """Take a copy for damaged: the next read fetches the file again."""
        with self._guard:
            self._verified.pop(digest, None)
        with suppress(FileNotFoundError):
            self._path(digest).unlink()

    def _touch(self, digest: str) -> None:
        """Note a use, for those who look for the least recently used copy."""
        now = time.time()
        with self._guard:
            if now - self._touched.get(digest, 0.0) < _TOUCH_S:
                return
            self._touched[digest] = now
        path = self._path(digest)
        with suppress(OSError):
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))

    def _make_room(self, num_bytes: int) -> int:
        """Remove the least recently used copies until a file fits; the caller holds the folder's lock.

        Returns:
            0, or the bytes that others are fetching, where these leave no room.
        """
        self._remove_abandoned()
        copies, fetched_bytes = [], 0
        for entry in os.scandir(self._root):
            # One that failed to come is removed without the lock.
            with suppress(FileNotFoundError):
                if _COPY.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
                    copies.append((entry.stat(follow_symlinks=False), entry))
                elif _UNFINISHED.fullmatch(entry.name):
                    fetched_bytes += entry.stat(follow_symlinks=False).st_size
        if fetched_bytes + num_bytes > self._limit_bytes:
            return fetched_bytes
        taken = fetched_bytes + sum(found.st_size for found, _ in copies)
        for found, entry in sorted(copies, key=lambda pair: pair[0].st_atime_ns):
            if taken + num_bytes <= self._limit_bytes:
                break
            with suppress(FileNotFoundError):
                Path(entry.path).unlink()
            taken -= found.st_size
            self._count(cache_evictions=1)
        return 0

    def _remove_abandoned(self) -> None:
        """Remove what killed processes were fetching."""
        for entry in os.scandir(self._root):
            if _UNFINISHED.fullmatch(entry.name):
                with suppress(FileNotFoundError, BlockingIOError), Path(entry.path).open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    Path(entry.path).unlink()

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold a lock of the folder, against other processes and threads."""
        with (self._root / name).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, digest: str) -> Path:
        return self._root / digest

    def _pread(self, descriptor: int, start: int, stop: int) -> bytes:
        parts, at = [], start
        while at < stop:
            part = os.pread(descriptor, stop - at, at)
            if not part:
                raise DataError(f"{self._root}: a cached file was cut short while it was read; do not write there")
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Word the operating system's errors for the user."""
        try:
            yield
        except OSError as error:
            advice = {
                errno.ENOSPC: "; free space on that disk, lower data.cache_gb, or choose another data.cache_dir",
                errno.EDQUOT: "; free space in your quota, lower data.cache_gb, or choose another data.cache_dir",
                errno.EROFS: "; choose a data.cache_dir that can be written",
                errno.EACCES: "; choose a data.cache_dir that you may write",
                errno.EPERM: "; choose a data.cache_dir that you may write",
            }.get(error.errno or 0, "; check data.cache_dir")
            raise DataError(f"{self._root}: could not {action} the cache: {error.strerror or error}{advice}") from error


def _signature(descriptor: int) -> _Signature:
    found = os.fstat(descriptor)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _sha256(descriptor: int) -> str:
    hasher, at = hashlib.sha256(), 0
    while block := os.pread(descriptor, _HASH_BYTES, at):
        hasher.update(block)
        at += len(block)
    return hasher.hexdigest()
