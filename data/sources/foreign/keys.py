"""State what is asked of a store of keys and values, and read a folder as one: names of strangers lead nowhere else."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...errors import DamagedError, DataError
from ...json_checks import shown


class Version(Protocol):
    """A version of a value."""

    @property
    def num_bytes(self) -> int:
        """Its length."""

    @property
    def e_tag(self) -> str | None:
        """What names this version among those of the value; None where the store has no such name."""


class KeyStore(Protocol):
    """What is asked of a store, such as `data.store.object_store.ObjectStorage`; safe for threads."""

    @property
    def url(self) -> str:
        """Its address, for messages."""

    @property
    def is_plain(self) -> bool:
        """Whether nothing shows a byte of a listing that was damaged on the way."""

    def exists(self, name: str) -> bool:
        """Check whether there is such a value."""

    def names(self, prefix: str = "") -> list[str]:
        """List the keys that begin with a prefix."""

    def children(self, folder: str) -> list[str]:
        """List what lies directly in a folder ("" for the root)."""

    def size(self, name: str) -> int:
        """Give a value's length."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read a part of a value; raises DamagedError for one that is not there."""

    def read_whole(self, name: str, limit_bytes: int) -> tuple[bytes, Version]:
        """Read all of a value, and say which version it was; raises DamagedError for one that is not there."""

    def version(self, name: str) -> Version:
        """Say which version of a value there is; raises DamagedError where there is none."""

    def visit(self, prefix: str, take: Callable[[str, Version], object]) -> None:
        """List the keys that begin with a prefix, with their versions."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """A version of a file: its length, and the SHA-256 of its bytes."""

    num_bytes: int
    e_tag: str | None


class Folder:
    """A folder of files, as a store (`KeyStore`).

    Args:
        root: The folder.
    """

    is_plain = False

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self._root)

    def exists(self, name: str) -> bool:
        """Check whether there is such a file."""
        return self._path(name).is_file()

    def names(self, prefix: str = "") -> list[str]:
        """List the files whose names begin with a prefix."""
        files = (Path(folder) / file for folder, _, inner in os.walk(self._root) for file in inner)
        return sorted(name for file in files if (name := file.relative_to(self._root).as_posix()).startswith(prefix))

    def children(self, folder: str) -> list[str]:
        """List what lies directly in a folder ("" for the root)."""
        path = self._path(folder) if folder else self._root
        return sorted(child.name for child in path.iterdir()) if path.is_dir() else []

    def size(self, name: str) -> int:
        """Give a file's length."""
        try:
            return self._path(name).stat().st_size
        except OSError as error:
            raise DamagedError(f"{self._root / name} is not there; expected a file of the store") from error

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read a part of a file."""
        path = self._path(name)
        try:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(-1 if stop is None else stop - start)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise DamagedError(f"{path} is not there; expected a file of the store") from error
        except OSError as error:
            raise DataError(f"{path}: could not read: {error.strerror or error}") from error

    def read_whole(self, name: str, limit_bytes: int) -> tuple[bytes, Version]:
        """Read all of a file, and digest it."""
        data = self.read(name, 0, limit_bytes + 1)
        if len(data) > limit_bytes:
            raise DataError(f"{self._root / name} has more than {limit_bytes:,} bytes; expected a chunk: remove it")
        return data, Content(num_bytes=len(data), e_tag=hashlib.sha256(data).hexdigest())

    def version(self, name: str) -> Version:
        """Digest a file."""
        data = self.read(name)
        return Content(num_bytes=len(data), e_tag=hashlib.sha256(data).hexdigest())

    def visit(self, prefix: str, take: Callable[[str, Version], object]) -> None:
        """List the files whose names begin with a prefix, each with the digest of its bytes."""
        for name in self.names(prefix):
            take(name, self.version(name))

    def _path(self, name: str) -> Path:
        """Make the path of a name; raises DataError for one that leads out of the folder, by its text or by a link."""
        path = self._root / name
        if not path.resolve().is_relative_to(self._root.resolve()):
            raise DataError(f"{self._root}: the name {shown(name)!r} leads out of the folder; expected one inside")
        return path
