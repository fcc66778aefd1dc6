"""A store's shards on local disk: whole files, verified, the least recently used ones removed within a limit.

Files are named by their SHA-256, so archives may share a folder, and so may processes: downloads are written beside and
renamed when they are verified, one process at a time fetches a file (flock), and an open file outlives its removal.
What cannot be kept, for want of room or because the store's own copy is not the index's, is read from the store.
"""

import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from ..errors import DataError
from ..whole_file import PARTIAL_SUFFIX
from .names import Traffic, beyond_end, check_range
from .storage import Storage, copy_out

_DOWNLOADS: Final = 3
"""Times that a file which does not match its SHA-256 is fetched before the store's own copy is taken for another."""
_LOCK: Final = ".shard-cache.lock"
_COPY: Final = re.compile(r"[0-9a-f]{64}")
_UNFINISHED: Final = re.compile(rf"\.([0-9a-f]{{64}})(\.[0-9]+-[0-9]+)?{re.escape(PARTIAL_SUFFIX)}")
"""What has another name in the folder is somebody else's: it is neither counted nor removed."""
_Signature = tuple[int, int, int]
_logger = logging.getLogger(__name__)


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
        self._remote = remote
        self._root = folder.absolute()
        self._limit_bytes = limit_bytes
        self._files = dict(files)
        self._traffic = Traffic("cache_hits", "cache_misses", "cache_evictions", "cache_bytes")
        # What this process has found whole, by SHA-256, and the names whose files the store has in another version.
        self._verified: dict[str, _Signature] = {}
        self._replaced: set[str] = set()
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
        """Check whether there is such a file; one of the index is taken for granted."""
        return name in self._files or self._remote.exists(name)

    def size(self, name: str) -> int:
        """Give a file's length in bytes."""
        return self._files[name][0] if name in self._files else self._remote.size(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read bytes start to stop - 1, or to the end, of the local copy; it is fetched first where there is none."""
        if name not in self._files:
            return self._remote.read(name, start, stop)

        where = f"{self.url}/{name}"
        num_bytes = self._files[name][0]
        end = num_bytes if stop is None else stop
        check_range(where, start, stop)
        if max(start, end) > num_bytes:
            raise beyond_end(where, start, end, num_bytes)

        # An open file: others may remove the copy meanwhile.
        with self._errors("read"):
            file = self._open(name)
            if file is None:
                return self._remote.read(name, start, end)
            with file:
                file.seek(start)
                data = file.read(end - start)
        if len(data) < end - start:
            raise DataError(f"{self._root}: a cached file was cut short while it was read; do not write there")
        return data

    def read_checked(self, name: str, start: int, stop: int, check: Callable[[bytes], None]) -> bytes:
        """Read bytes and judge them; where they are refused, they come from the store, and the copy is fetched anew."""
        if name in self._files:
            data = self.read(name, start, stop)
            try:
                check(data)
            except DataError:
                self._discard(self._files[name][1])
            else:
                return data
        # The store's own reading tries again where bytes were damaged on the way.
        return self._remote.read_checked(name, start, stop, check)

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
        return {**self._remote.stats(), **self._traffic.stats()}

    def close(self) -> None:
        """Close the remote storage; the copies stay."""
        self._remote.close()

    def _open(self, name: str) -> BinaryIO | None:
        """Open the verified copy of a file that the index lists; None for one that cannot be kept here."""
        digest = self._files[name][1]
        if name in self._replaced:
            return None

        # Most reads end here, without a lock.
        file = self._open_copy(digest, may_hash=False)
        if file is None:
            with self._locked(f".{digest}.lock"):
                # Another thread or process may have fetched it meanwhile.
                file = self._open_copy(digest, may_hash=True)
                if file is None:
                    self._traffic.add(cache_misses=1)
                    return self._fetch(name)

        self._traffic.add(cache_hits=1)
        with suppress(OSError):
            # A use, for those who look for the least recently used copy.
            os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))
        return file

    def _open_copy(self, digest: str, *, may_hash: bool) -> BinaryIO | None:
        """Open a copy that this process has verified, or verifies now; None where there is none that is whole."""
        try:
            file = self._path(digest).open("rb")
        except FileNotFoundError:
            return None

        # Inode, length and time of change stand for the bytes that were hashed.
        signature = _signature(file)
        if self._verified.get(digest) == signature:
            return file
        if may_hash and hashlib.file_digest(file, "sha256").hexdigest() == digest:
            self._verified[digest] = signature
            return file
        file.close()
        return None

    def _fetch(self, name: str) -> BinaryIO | None:
        """Fetch a file beside its place, and give it its name where its SHA-256 is right; the caller holds its lock."""
        num_bytes, digest = self._files[name]
        temporary = self._root / f".{digest}{PARTIAL_SUFFIX}"
        with self._locked(_LOCK):
            if not self._make_room(num_bytes):
                return None
            temporary.unlink(missing_ok=True)
            file = temporary.open("x+b")
            with suppress(OSError):
                # Counted by other processes from here on.
                file.truncate(num_bytes)

        try:
            if num_bytes:
                # A full disk shows before the network is used.
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            for _ in range(_DOWNLOADS):
                file.seek(0)
                fetched = copy_out(self._remote, name, num_bytes, file.write)
                file.flush()
                if fetched == digest:
                    with self._locked(_LOCK):
                        # Whoever makes room counts it under one of its two names.
                        temporary.replace(self._path(digest))
                    self._verified[digest] = _signature(file)
                    self._traffic.add(cache_bytes=num_bytes)
                    return file
        except BaseException:
            file.close()
            raise
        finally:
            temporary.unlink(missing_ok=True)

        # What came each time is not the index's: the store has another file, parts of which may be good.
        file.close()
        self._replaced.add(name)
        _logger.warning(
            "%s/%s: its SHA-256 is not what the index says; fetched %d times, and from now on read from the store",
            self.url,
            name,
            _DOWNLOADS,
        )
        return None

    def _discard(self, digest: str) -> None:
        """Take a copy for damaged: the next read fetches the file again."""
        self._verified.pop(digest, None)
        self._path(digest).unlink(missing_ok=True)

    def _make_room(self, num_bytes: int) -> bool:
        """Remove the least recently used copies until a file fits; the caller holds the folder's lock.

        Returns:
            Whether it fits: what others are fetching may leave no room.
        """
        self._remove_abandoned()
        # What lies there: whole copies, and downloads in their full length.
        copies = []
        fetched_bytes = 0
        for entry in os.scandir(self._root):
            # A download that failed is removed without the lock.
            with suppress(FileNotFoundError):
                if _COPY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    copies.append((entry.stat(follow_symlinks=False), entry))
                elif _UNFINISHED.fullmatch(entry.name):
                    fetched_bytes += entry.stat(follow_symlinks=False).st_size
        if fetched_bytes + num_bytes > self._limit_bytes:
            return False

        # The time of access is the time of the last use, see _open.
        taken_bytes = fetched_bytes + sum(status.st_size for status, _ in copies)
        for status, entry in sorted(copies, key=lambda copy: copy[0].st_atime_ns):
            if taken_bytes + num_bytes <= self._limit_bytes:
                break
            Path(entry.path).unlink(missing_ok=True)
            taken_bytes -= status.st_size
            self._traffic.add(cache_evictions=1)
        return True

    def _remove_abandoned(self) -> None:
        """Remove what killed processes were fetching: nobody holds the lock of its file."""
        for entry in os.scandir(self._root):
            if match := _UNFINISHED.fullmatch(entry.name):
                lock = self._root / f".{match.group(1)}.lock"
                with suppress(BlockingIOError), lock.open("ab") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    Path(entry.path).unlink(missing_ok=True)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold a lock of the folder, against other processes and threads."""
        with (self._root / name).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, digest: str) -> Path:
        return self._root / digest

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Turn the operating system's errors into ones for the user."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self._root}: could not {action} the cache: {error.strerror or error}; expected a folder that can be "
                "written, with room for data.cache_gb: mend that, or choose another data.cache_dir"
            ) from error


def _signature(file: BinaryIO) -> _Signature:
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns
