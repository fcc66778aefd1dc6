"""Named files below one root, listed, read by ranges and written atomically: the protocol, and a local folder."""

import errno
import fcntl
import hashlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from ..command import expand_home
from ..credentials import redact
from ..errors import DamagedError, DataError
from ..whole_file import PARTIAL_SUFFIX, writing_whole
from .names import Traffic, already_there, beyond_end, check_name, check_range

_BLOCK_BYTES: Final = 32 << 20
"""Bytes asked for at once; a store splits them into ranges that come at the same time."""
URL_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_MISTYPED = re.compile(r"[\s'\"]{0,3}(?:s3|gs|az|https?|file)\s{0,2}:", re.IGNORECASE)
"""An address, nearly: taken for a path, it would be shown as it is, password and all."""


class Storage(Protocol):
    """A flat space of named files under one root; every method may be called from several threads at once.

    Names are relative, with "/" between folders. Every failure is a DataError that names the file.
    """

    @property
    def url(self) -> str:
        """The root, as messages name it; never with credentials or a query."""

    @property
    def folder(self) -> Path | None:
        """The folder of local files; None for a remote store."""

    def names(self, prefix: str = "") -> list[str]:
        """List the names that begin with a prefix, sorted."""

    def exists(self, name: str) -> bool:
        """Check whether there is such a file."""

    def size(self, name: str) -> int:
        """Give a file's length in bytes."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read bytes start to stop - 1, or to the end; a file that ends earlier is an error."""

    def read_checked(self, name: str, start: int, stop: int, check: Callable[[bytes], None]) -> bytes:
        """Read bytes start to stop - 1 and judge them.

        Bytes that `check` refuses with a DataError may have been damaged on the way: a remote store reads them again,
        before its deadline; a folder raises at once.
        """

    def write(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write a whole file: afterwards it is there in full, whatever happens; before, nothing of it is.

        With `if_absent`, a file that is already there is an error and stays as it is.
        """

    def writer(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file to write; it appears under its name when the block ends without an error."""

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""

    def delete_partial(self) -> None:
        """Remove unfinished files; only where nobody else is writing."""

    def stats(self) -> dict[str, float]:
        """Count since it was opened: requests, retries, bytes_read, bytes_written, wait_s (slept between tries)."""

    def close(self) -> None:
        """Let go of connections; nothing may be asked afterwards."""


def open_storage(url: str | Path, *, deadline_s: float = 300.0, to_write: bool = False) -> Storage:
    """Open a folder, an object store, or files on a web server.

    Credentials and endpoint of a store come from the usual environment variables, see data/store/object_store.py.

    Args:
        url: A path, or an address: file://, s3://, gs://, az://, https:// (read only, cannot be listed). http:// is
            taken for this machine, or with RAINSPARK_ALLOW_HTTP=1.
        deadline_s: Seconds after which an operation on a store that still fails is given up.
        to_write: Whether files shall be written there, which a web server takes from nobody.

    Raises:
        ConfigError: A home folder (~user) that there is not.
        DataError: Another scheme, a malformed address, missing credentials; a web server that is to be written to.
    """
    text = str(url)
    scheme = URL_SCHEME.match(text)
    if scheme is None and _MISTYPED.match(text):
        raise DataError(
            f"an address is mistyped near its {text[: text.index(':') + 1]!r}; expected it to begin with s3://, gs://, "
            "az://, https:// or file://, with nothing before that (a folder of such a name: ./ before it)"
        )
    if scheme is None:
        return LocalStorage(Path(expand_home(text)))
    if scheme.group(1).lower() == "file":
        return LocalStorage(Path(text[scheme.end() :]))
    if to_write and scheme.group(1).lower() in {"http", "https"}:
        raise DataError(f"{redact(text)}: a web server is only read; expected a folder, s3://, gs:// or az://")
    # Imported late: reading a folder needs no network library.
    from .object_store import open_store

    return open_store(text, deadline_s=deadline_s)


def copy_out(storage: Storage, name: str, num_bytes: int, write: Callable[[bytes], object] = lambda _: None) -> str:
    """Read a file in blocks, for it may be larger than the memory; hand each one on, and give the SHA-256 of all."""
    digest = hashlib.sha256()
    for start in range(0, num_bytes, _BLOCK_BYTES):
        block = storage.read(name, start, min(start + _BLOCK_BYTES, num_bytes))
        digest.update(block)
        write(block)
    return digest.hexdigest()


class LocalStorage:
    """A folder of the file system."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._traffic = Traffic()

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self._root)

    @property
    def folder(self) -> Path | None:
        """The folder."""
        return self._root

    def names(self, prefix: str = "") -> list[str]:
        """List the regular files that begin with a prefix, sorted; unfinished ones are left out."""
        names = (
            (Path(folder) / file).relative_to(self._root).as_posix()
            for folder, _, files in os.walk(self._root, onerror=_refuse_unlisted)
            for file in files
        )
        return sorted(name for name in names if name.startswith(prefix) and not name.endswith(PARTIAL_SUFFIX))

    def exists(self, name: str) -> bool:
        """Check whether there is such a regular file."""
        path = self._path(name)
        try:
            return stat.S_ISREG(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise _failure("read", path, error) from error

    def size(self, name: str) -> int:
        """Give a file's length in bytes."""
        try:
            return self._path(name).stat().st_size
        except OSError as error:
            raise _failure("read", self._path(name), error) from error

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read bytes start to stop - 1, or to the end."""
        path = self._path(name)
        check_range(str(path), start, stop)
        try:
            with path.open("rb") as file:
                num_bytes = os.fstat(file.fileno()).st_size
                end = num_bytes if stop is None else stop
                # Judged before anything is allocated: the range may come from a damaged index.
                if max(start, end) > num_bytes:
                    raise beyond_end(str(path), start, end, num_bytes)
                file.seek(start)
                data = file.read(end - start)
        except OSError as error:
            failure = _failure("read", path, error)
            # Where the folder is gone as a whole, it is not the file that is damaged.
            is_gone = isinstance(error, FileNotFoundError) and self._root.is_dir()
            raise (DamagedError(str(failure)) if is_gone else failure) from error

        if len(data) < end - start:
            raise DataError(f"{path}: ended {end - start - len(data)} bytes before byte {end} while it was read")
        self._traffic.add(requests=1, bytes_read=len(data))
        return data

    def read_checked(self, name: str, start: int, stop: int, check: Callable[[bytes], None]) -> bytes:
        """Read bytes start to stop - 1 and judge them once: a folder gives the same bytes again."""
        data = self.read(name, start, stop)
        check(data)
        return data

    def write(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write a whole file atomically; with `if_absent`, one that is already there is an error and stays."""
        with self._writing(name, if_absent=if_absent) as file:
            file.write(data)

    def writer(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file that takes its name, fsynced, when the block ends without an error; else it leaves nothing."""
        return self._writing(name, if_absent=False)

    @contextmanager
    def _writing(self, name: str, *, if_absent: bool) -> Iterator[BinaryIO]:
        path = self._path(name)
        # A whole file or none, whatever ends the block.
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with writing_whole(path, if_absent=if_absent) as file:
                yield file
                num_bytes = file.seek(0, os.SEEK_END)
        except OSError as error:
            if if_absent and isinstance(error, FileExistsError) and path.exists():
                raise already_there(str(path)) from error
            raise _failure("write", path, error) from error

        self._traffic.add(requests=1, bytes_written=num_bytes)

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        path = self._path(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _failure("delete", path, error) from error

    def delete_partial(self) -> None:
        """Remove the unfinished files of killed writers."""
        for path in self._root.rglob(f".*{PARTIAL_SUFFIX}"):
            with suppress(FileNotFoundError):
                path.unlink()

    def stats(self) -> dict[str, float]:
        """Count since it was opened; a folder is never asked twice and never waited for."""
        return self._traffic.stats()

    def close(self) -> None:
        """Do nothing: no file is kept open."""

    def _path(self, name: str) -> Path:
        """Make the path of a name; raises DataError for one that leads out of the root, by its text or by a link."""
        path = self._root.joinpath(*check_name(self.url, name))
        try:
            inside = path.resolve().is_relative_to(self._root.resolve())
        except OSError as error:
            raise _failure("read", path, error) from error
        except RuntimeError as error:
            raise DataError(f"{path}: its links lead in a circle; expected a file or folder") from error
        if not inside:
            raise DataError(f"{path}: leads out of the folder {self.url} by a link; expected a file inside it")
        return path


@contextmanager
def hold_folder(folder: Path, busy: str) -> Iterator[None]:
    """Make a folder, and hold it against other processes until the block ends.

    Args:
        folder: The folder.
        busy: What somebody else who holds it does, and what to do then.

    Raises:
        DataError: It cannot be made, or somebody else holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DataError(
            f"{folder}: could not be made a folder: {error.strerror or error}; choose another --out"
        ) from error

    # The lock goes with the process: a killed one leaves none behind.
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{folder}: {busy}") from error
        except OSError:
            # Some network file systems lock no folders; then nothing but the user keeps two writers apart.
            sys.stderr.write(f"warning: {folder} cannot be locked; do not start a second command that writes there\n")
        yield
    finally:
        os.close(descriptor)


def _refuse_unlisted(error: OSError) -> None:
    # A root that is not there yet holds no files; whatever else cannot be listed may hold some.
    if not isinstance(error, FileNotFoundError):
        raise _failure("list", Path(error.filename), error) from error


def _failure(action: str, path: Path, error: OSError) -> DataError:
    """Word an operating system's error for the user."""
    advice = {
        errno.ENOSPC: "; free space on that disk or choose another folder; no partial file was left",
        errno.EDQUOT: "; free space in your quota or choose another folder; no partial file was left",
        errno.ENOENT: "; check the path",
        errno.EACCES: "; check the permissions",
        errno.EPERM: "; check the permissions",
    }.get(error.errno or 0, "")
    return DataError(f"{path}: could not {action}: {error.strerror or error}{advice}")
