"""Where shards lie: named files that are listed, read by ranges, and written atomically. Local folders for now."""

import errno
import itertools
import os
import re
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from data.frames import DataError

# Files under this ending are being written, or were when their writer was killed; no listing shows them.
PARTIAL_SUFFIX = ".partial"
URL_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class Storage(Protocol):
    """A flat space of named files under one root; every method may be called from several threads at once.

    Names are relative, with "/" between folders. Every failure is a DataError that names the file.
    """

    @property
    def url(self) -> str:
        """The root, as messages name it."""

    def names(self, prefix: str = "") -> list[str]:
        """List the names that begin with a prefix, sorted."""

    def exists(self, name: str) -> bool:
        """Tell whether there is such a file."""

    def size(self, name: str) -> int:
        """Give a file's length in bytes."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read bytes start to stop - 1, or to the end; a file that ends earlier is an error."""

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file: afterwards it is there in full, whatever happens; before, nothing of it is."""

    def writer(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file to write; it appears under its name when the block ends without an error."""

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""

    def delete_partial(self) -> None:
        """Remove what killed writers left; only for one that knows that nobody else is writing."""


def open_storage(url: str | Path) -> Storage:
    """Open a folder.

    Args:
        url: A path, or a file:// address.

    Raises:
        DataError: Another scheme, such as s3://.
    """
    text = str(url)
    scheme = URL_SCHEME.match(text)
    if scheme is None:
        return LocalStorage(Path(text))
    if scheme.group(1).lower() != "file":
        raise DataError(
            f"{text}: storage of the kind {scheme.group(1)}:// is not built yet (object stores will come through this "
            "same interface); expected the path of a folder"
        )
    return LocalStorage(Path(text[scheme.end() :]))


class LocalStorage:
    """A folder of the file system."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._temporary_numbers = itertools.count()

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self._root)

    def names(self, prefix: str = "") -> list[str]:
        """List the regular files that begin with a prefix, sorted; unfinished ones are left out."""
        found = []
        for folder, _, files in os.walk(self._root, onerror=_refuse_unlisted):
            for file in files:
                name = (Path(folder) / file).relative_to(self._root).as_posix()
                if name.startswith(prefix) and not name.endswith(PARTIAL_SUFFIX):
                    found.append(name)
        return sorted(found)

    def exists(self, name: str) -> bool:
        """Tell whether there is such a regular file."""
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
        if start < 0 or (stop is not None and stop < start):
            raise DataError(f"{path}: bytes {start} to {stop} were asked for; expected 0 <= start <= stop")
        try:
            with path.open("rb", buffering=0) as file:
                num_bytes = os.fstat(file.fileno()).st_size
                end = num_bytes if stop is None else stop
                # Judged before anything is allocated: the range may come from a damaged index.
                if max(start, end) > num_bytes:
                    raise DataError(
                        f"{path}: bytes {start} to {end} were asked for, but the file has {num_bytes}; it was cut "
                        "short, or the index is not its own: copy or pack it again"
                    )
                file.seek(start)
                parts, missing = [], end - start
                while missing:
                    part = file.read(missing)
                    if not part:
                        raise DataError(f"{path}: ended {missing} bytes before byte {end} while it was read")
                    parts.append(part)
                    missing -= len(part)
        except OSError as error:
            raise _failure("read", path, error) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file atomically."""
        with self.writer(name) as file:
            file.write(data)

    @contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """Open a file that takes its name, fsynced, when the block ends without an error; else it leaves nothing."""
        path = self._path(name)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{next(self._temporary_numbers)}{PARTIAL_SUFFIX}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            raise _failure("write", path, error) from error
        finally:
            with suppress(OSError):
                temporary.unlink()

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        path = self._path(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _failure("delete", path, error) from error

    def delete_partial(self) -> None:
        """Remove what killed writers left."""
        for path in self._root.rglob(f".*{PARTIAL_SUFFIX}"):
            with suppress(FileNotFoundError):
                path.unlink()

    def _path(self, name: str) -> Path:
        """Find a name's place; raises DataError for one that leads out of the root, by its text or by a link."""
        parts = name.split("/")
        if not name or "\0" in name or "\\" in name or any(part in ("", ".", "..") for part in parts):
            raise DataError(
                f"{self.url}: the name {name!r} is not allowed; expected one relative path inside the folder"
            )
        path = self._root.joinpath(*parts)
        try:
            inside = path.resolve().is_relative_to(self._root.resolve())
        except OSError as error:
            raise _failure("read", path, error) from error
        except RuntimeError as error:
            raise DataError(f"{path}: its links lead in a circle; expected a file or folder") from error
        if not inside:
            raise DataError(f"{path}: leads out of the folder {self.url} by a link; expected a file inside it")
        return path


def _refuse_unlisted(error: OSError) -> None:
    # A root that is not there yet holds no files; whatever else cannot be listed may hold some.
    if not isinstance(error, FileNotFoundError):
        raise _failure("list", Path(error.filename), error) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failure(action: str, path: Path, error: OSError) -> DataError:
    """Word an operating system's error for the user."""
    advice = {
        errno.ENOSPC: "; free space on that disk or choose another folder; no partial file was left",
        errno.EDQUOT: "; free space in your quota or choose another folder; no partial file was left",
        errno.ENOENT: "; check the path",
        errno.EACCES: "; check the permissions",
        errno.EPERM: "; check the permissions",
        errno.ENAMETOOLONG: "; choose a shorter path",
    }.get(error.errno or 0, "")
    return DataError(f"{path}: could not {action}: {error.strerror or error}{advice}")
