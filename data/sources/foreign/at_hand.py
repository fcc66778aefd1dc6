"""Bring a file to where libraries can open it: objects of stores, and what is compressed, as a temporary copy."""

import gzip
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from ...errors import DataError
from ..files import RadarFile, digest_of
from ..places.formats import format_of_file
from .opening import GZIPPED, USUAL

MAX_FILE_BYTES: Final = 2**31
"""Longest object, and longest content of a compressed file, that is copied to the disk."""


@dataclass(frozen=True, kw_only=True)
class AtHand:
    """A file on the disk.

    Attributes:
        path: Where it can be opened.
        num_bytes: How long it is where it lies.
        copied_sha256: Digest of a copy, of what is compressed after it was unpacked; None for the file itself.
    """

    path: Path
    num_bytes: int
    copied_sha256: str | None = None

    def sha256(self) -> str:
        """Digest the bytes that are opened; of the file itself, once while nobody writes to it."""
        return digest_of_state(self.path) if self.copied_sha256 is None else self.copied_sha256


@contextmanager
def at_hand(file: RadarFile) -> Iterator[AtHand]:
    """Give a file on the disk: itself, or a copy of an object or of what is compressed in it, until the block ends.

    Raises:
        DataError: It cannot be read, is damaged, or too long for a copy.
    """
    with file.on_disk(MAX_FILE_BYTES) as path:
        try:
            num_bytes = path.stat().st_size
        except OSError as error:
            raise DataError(f"{file}: could not read: {error.strerror or error}") from error
        if not _is_packed(path):
            copied_sha256 = None if path == file.path else digest_of(path)
            yield AtHand(path=path, num_bytes=num_bytes, copied_sha256=copied_sha256)
            return

        with tempfile.TemporaryDirectory(prefix="rainspark-") as folder:
            unpacked = Path(folder) / file.name.removesuffix(".gz")
            unpacked.write_bytes(_unpacked(path, str(file)))
            yield AtHand(path=unpacked, num_bytes=num_bytes, copied_sha256=digest_of(unpacked))


def digest_of_state(path: Path) -> str:
    """Digest a file's bytes, once while it is not written to: one may hold thousands of frames."""
    status = path.stat()
    return _digest(path, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=4096)
def _digest(path: Path, _state: tuple[int, ...]) -> str:
    return digest_of(path)


def _is_packed(path: Path) -> bool:
    """Check whether a file is compressed as a whole; RADOLAN is read through its compression."""
    form = format_of_file(path)
    return form is not None and form.name not in USUAL and form.name.endswith(GZIPPED)


def _unpacked(path: Path, name: str) -> bytes:
    """Take off a file's compression, up to a limit."""
    try:
        with gzip.open(path) as packed:
            data = packed.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} cannot be decompressed ({error}): fetch it again or remove it") from error
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{name} holds more than {MAX_FILE_BYTES:,} bytes; expected a frame or a few: unpack it first")
    return data
