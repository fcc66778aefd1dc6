"""Read tars and zips of strangers in place: each member's bytes where they lie, nothing unpacked to disk."""

import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import BinaryIO, Final

from ..errors import DataError
from .places.buckets import StoredObject
from .places.formats import TAR, ZIP, format_of_file

TAR_ENDING: Final = ".tar"
END_BYTES: Final = 2**20
"""Bytes behind a tar's end mark that are looked at in one go."""

MAX_OPEN_ZIPS: Final = 4
"""Zips that stay open between two reads: the directory of a year's files takes a second to read."""
ZIP_ENCRYPTED: Final = 0x41
"""Flag bits 0 and 6: the member is encrypted (PKWARE APPNOTE 6.3.10, 4.4.4)."""

# Opening and closing a zip's members counts references, which zipfile does not guard against other threads.
_references = threading.Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A plain file inside an archive.

    Attributes:
        name: Its name there.
        offset: Where it begins in the archive: a tar member's data, a zip member's local header.
        num_bytes: Bytes that it has.
    """

    name: str
    offset: int
    num_bytes: int


def list_members(path: Path) -> Iterator[Member]:
    """List the plain files of a tar or zip, in the archive's order; folders are passed over.

    Raises:
        DataError: The archive is cut, damaged or of another kind, or more follows a tar's end mark; a member is a link,
            a device or the like, is encrypted or of an unknown compression, or its name leads outside.
    """
    form = format_of_file(path)
    ending = TAR_ENDING if _is_tar(path) else ".zip"
    if form is not None and form.name not in (TAR, ZIP):
        raise DataError(f"{path} could not be read as its ending says ({ending}): it is {form.name}: {form.advice}")
    with _named(str(path)):
        yield from _tar_members(path) if _is_tar(path) else _zip_members(path)


def read_member(path: Path, member: Member, limit_bytes: int) -> bytes:
    """Read a member's bytes; any number of threads may.

    Raises:
        DataError: It declares more bytes than the limit, holds more or fewer than it declares, or its checksum differs.
    """
    name = f"{path}, member {member.name}"
    if member.num_bytes > limit_bytes:
        raise DataError(
            f"{name} declares {member.num_bytes:,} bytes; expected one frame of at most {limit_bytes:,}: take it out"
        )

    # Tars are read at the member's place, zips through their directory, which stays open.
    with _named(name):
        data = _read_from_tar(path, member) if _is_tar(path) else _read_from_zip(path, member)
    if len(data) != member.num_bytes:
        raise DataError(f"{name} holds {len(data)} bytes; expected {member.num_bytes} as declared: fetch it again")
    return data


def read_stored_member(stored: StoredObject, member: Member, limit_bytes: int) -> bytes:
    """Read the bytes of a member of a tar in a store; raises DataError for more than the limit."""
    if member.num_bytes > limit_bytes:
        raise DataError(
            f"{stored}, member {member.name} declares {member.num_bytes:,} bytes; expected one frame of at most "
            f"{limit_bytes:,}: copy the tar and take it out"
        )
    return stored.store.read(stored.name, member.offset, member.offset + member.num_bytes)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn what tarfile and zipfile raise for a damaged archive into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    # They raise nearly everything, depending on which byte is wrong.
    except Exception as error:
        raise DataError(
            f"{name} could not be read ({error}); expected a whole, uncompressed tar or a zip: it was cut, is damaged "
            "or of another kind, fetch it again"
        ) from error


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(TAR_ENDING)


def list_tar(name: str, file: BinaryIO) -> Iterator[Member]:
    """List the plain files of a tar that is open, wherever it lies; for the errors see `list_members`."""
    with _named(name), tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            _check_name(name, info.name)
            if info.isdir():
                continue
            _check_plain(name, info.name, info.isreg() and not info.issparse())
            yield Member(name=info.name, offset=info.offset_data, num_bytes=info.size)

        _check_end(name, file, tar.offset)


def _tar_members(path: Path) -> Iterator[Member]:
    with path.open("rb") as file:
        yield from list_tar(str(path), file)


def _check_end(name: str, file: BinaryIO, at: int) -> None:
    """Demand an end mark and zeros to the end: tarfile stops without a word at a damaged header or a second tar."""
    num_zeros = 0
    file.seek(at)
    while piece := file.read(END_BYTES):
        if piece.strip(b"\0"):
            raise DataError(
                f"{name}: what follows byte {at} is neither a member nor the end, and frames may lie there: "
                "it is damaged, or several tars were joined; fetch it again, or pack each tar as a file of its own"
            )
        num_zeros += len(piece)

    if num_zeros < tarfile.BLOCKSIZE:
        raise DataError(f"{name} was cut: its end mark is missing; fetch it again")


def _zip_members(path: Path) -> Iterator[Member]:
    for info in _zip_at(path).infolist():
        # zipfile cuts a name at a NUL; the written one is judged.
        _check_name(str(path), info.orig_filename)
        if info.is_dir():
            continue
        is_file = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG) and not info.flag_bits & ZIP_ENCRYPTED
        _check_plain(
            str(path), info.filename, is_file and info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        )
        yield Member(name=info.filename, offset=info.header_offset, num_bytes=info.file_size)


def _read_from_tar(path: Path, member: Member) -> bytes:
    with path.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.num_bytes)


def _read_from_zip(path: Path, member: Member) -> bytes:
    archive = _zip_at(path)
    with _references:
        file = archive.open(member.name)
    try:
        # Asked for its declared length, zipfile never inflates more than that, and then checks the CRC-32.
        return file.read(member.num_bytes)
    finally:
        with _references:
            file.close()


def _zip_at(path: Path) -> zipfile.ZipFile:
    status = path.stat()
    return _open_zip(path, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=MAX_OPEN_ZIPS)
def _open_zip(path: Path, _state: tuple[int, ...]) -> zipfile.ZipFile:
    """Open a zip and read its directory, once for all of its members and until the file's state changes."""
    return zipfile.ZipFile(path)


def _check_name(archive: str, name: str) -> None:
    # Windows' rules know both kinds of slashes, and drives.
    parts = PureWindowsPath(name)
    if not name.isprintable() or parts.anchor or ".." in parts.parts:
        raise DataError(
            f"{archive} holds a member named {name!r:.200}; expected relative names that stay inside: "
            "nothing of this archive is read"
        )


def _check_plain(archive: str, name: str, is_plain: bool) -> None:
    if not is_plain:
        raise DataError(
            f"{archive}, member {name!r:.200} is a link, a device, sparse, encrypted or of another compression than "
            "deflate; expected plain files only: nothing of this archive is read"
        )
