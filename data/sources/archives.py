"""Tars and zips of strangers, read in place: every member's bytes by their own offset, nothing unpacked to disk.

A tar's headers are walked here (POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar's long names), so that no
declared length is believed before it is judged; zips go by their central directory (PKWARE APPNOTE 6.3.10).
"""

import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from ..errors import DataError

BLOCK_BYTES: Final = tarfile.BLOCKSIZE
MAX_HEADER_BYTES: Final = 2**16
"""Longest extended header or long name that is read."""

END_BYTES: Final = 2**20
"""Bytes behind a tar's end mark that are looked at in one go."""

MAX_DIRECTORY_BYTES: Final = 2**28
"""Largest central directory of a zip: some two million members."""

ZIP_END: Final = struct.Struct("<4s4H2LH")
"""End of central directory: signature, disks, counts, length and offset of the directory (APPNOTE 4.3.16)."""
ZIP_END_SIGNATURE: Final = b"PK\x05\x06"
ZIP64_LOCATOR: Final = struct.Struct("<4sLQL")
"""Zip64 end of central directory locator: signature, disk, offset of the record, disks (APPNOTE 4.3.15)."""
ZIP64_LOCATOR_SIGNATURE: Final = b"PK\x06\x07"
ZIP64_END: Final = struct.Struct("<40xQ8x")
"""Zip64 end of central directory record: length of the directory (APPNOTE 4.3.14)."""
ZIP_LOCAL: Final = struct.Struct("<4s22x2H")
"""Local file header: signature, ..., lengths of the name and of the extra field (APPNOTE 4.3.7)."""
ZIP_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
ZIP_ENCRYPTED: Final = 0x41
"""Flag bits 0 and 6: the member is encrypted (APPNOTE 4.4.4)."""

KINDS: Final = {
    tarfile.LNKTYPE: "a hard link", tarfile.SYMTYPE: "a symbolic link", tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a pipe", tarfile.GNUTYPE_SPARSE: "a sparse file",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A plain file inside an archive.

    Attributes:
        name: Its name there.
        offset: Where it begins in the archive: a tar member's data, a zip member's local header.
        num_stored: Bytes that it takes there.
        num_bytes: Bytes that it has.
        crc32: Checksum of a zip member's bytes; None in a tar.
        deflated: Whether it is compressed.
    """

    name: str
    offset: int
    num_stored: int
    num_bytes: int
    crc32: int | None = None
    deflated: bool = False


def tar_members(path: Path) -> Iterator[Member]:
    """Walk a tar's headers and give its plain files, in the archive's order; folders are passed over.

    Raises:
        DataError: It is cut, damaged or no tar, or more follows its end mark; a member is a link, a device or the like,
            or its name leads outside.
    """
    with _opened(path) as (file, total):
        at, long_name, extended = 0, "", dict[str, str]()
        while at + BLOCK_BYTES <= total:
            header = _exactly(file, at, BLOCK_BYTES, path)
            at += BLOCK_BYTES
            if not header.strip(b"\0"):
                _check_end(file, at, total, path)
                return
            info = _tar_header(header, path, at - BLOCK_BYTES)
            if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                data = _extension(file, at, info, path)
                if info.type == tarfile.XHDTYPE:
                    extended = _pax_values(data, path, at)
                elif info.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = data.rstrip(b"\0").decode("utf-8", errors="replace")
                at += -(-info.size // BLOCK_BYTES) * BLOCK_BYTES
                continue
            name, num_bytes = extended.get("path") or long_name or info.name, info.size
            if "size" in extended:
                num_bytes = _decimal(extended["size"], path, name)
            _check_name(path, name)
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE):
                _refuse_kind(path, name, KINDS.get(info.type, f"of kind {info.type!r}"))
            if any(key.startswith("GNU.sparse") for key in extended):
                _refuse_kind(path, name, KINDS[tarfile.GNUTYPE_SPARSE])
            if info.type != tarfile.DIRTYPE:
                if at + num_bytes > total:
                    _refuse_cut(path, f"member {name} needs {num_bytes} bytes from byte {at}", total)
                yield Member(name=name, offset=at, num_stored=num_bytes, num_bytes=num_bytes)
                at += -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
            long_name, extended = "", {}
        _refuse_cut(path, "its end mark is missing", total)


def zip_members(path: Path) -> Iterator[Member]:
    """Read a zip's central directory and give its plain files, in its order.

    Raises:
        DataError: It is cut, damaged or no zip; a member is encrypted, a link or of an unknown compression, or its name
            leads outside.
    """
    with _opened(path) as (file, total):
        _check_directory(file, total, path)
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    # What zipfile raises for damaged directories, depending on which byte is wrong.
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, struct.error) as error:
        raise DataError(f"{path} cannot be read as a zip ({error}); it is damaged: fetch it again") from error
    for info in infos:
        # zipfile cuts a name at a NUL and turns backslashes round where it must; the written name is judged.
        _check_name(path, info.orig_filename)
        kind = info.external_attr >> 16
        if stat.S_IFMT(kind) not in (0, stat.S_IFREG, stat.S_IFDIR):
            _refuse_kind(path, info.filename, "a symbolic link" if stat.S_ISLNK(kind) else "no plain file")
        if info.is_dir():
            continue
        if info.flag_bits & ZIP_ENCRYPTED:
            _refuse_kind(path, info.filename, "encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            _refuse_kind(path, info.filename, f"compressed by method {info.compress_type} (known: 0 stored, 8 deflate)")
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        yield Member(
            name=info.filename,
            offset=info.header_offset,
            num_stored=info.compress_size,
            num_bytes=info.file_size,
            crc32=info.CRC,
            deflated=deflated,
        )


def read_member(path: Path, member: Member, limit_bytes: int) -> bytes:
    """Read a member's bytes; any number of threads may, since every read has a handle of its own.

    Raises:
        DataError: It declares more bytes than the limit, holds more or fewer than it declares, or its checksum differs.
    """
    where = f"{path}, member {member.name}"
    if max(member.num_bytes, member.num_stored) > limit_bytes:
        raise DataError(
            f"{where} declares {member.num_bytes:,} bytes ({member.num_stored:,} stored); "
            f"expected one frame of at most {limit_bytes:,}: take it out"
        )
    with _opened(path) as (file, _):
        start = member.offset
        if member.crc32 is not None:
            signature, name_bytes, extra_bytes = ZIP_LOCAL.unpack(_exactly(file, start, ZIP_LOCAL.size, path))
            if signature != ZIP_LOCAL_SIGNATURE:
                raise DataError(f"{where}: no local header at byte {start}; the zip is damaged: fetch it again")
            start += ZIP_LOCAL.size + name_bytes + extra_bytes
        data = _exactly(file, start, member.num_stored, path)
    if member.deflated:
        try:
            # One byte more than declared tells a bomb from a file.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.num_bytes + 1)
        except zlib.error as error:
            raise DataError(f"{where} cannot be inflated ({error}); the zip is damaged: fetch it again") from error
    if len(data) != member.num_bytes:
        found = f"more than {member.num_bytes}" if len(data) > member.num_bytes else f"{len(data)}"
        raise DataError(f"{where} holds {found} bytes; expected {member.num_bytes} as declared: fetch the zip again")
    if member.crc32 is not None and zlib.crc32(data) != member.crc32:
        raise DataError(f"{where}: CRC-32 differs from the zip directory's; the zip is damaged: fetch it again")
    return data


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """Open a file: its descriptor and length."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{path}: could not read: {error.strerror or error}") from error
    try:
        yield descriptor, os.fstat(descriptor).st_size
    except OSError as error:
        raise DataError(f"{path}: could not read: {error.strerror or error}") from error
    finally:
        os.close(descriptor)


def _exactly(descriptor: int, start: int, num_bytes: int, path: Path) -> bytes:
    data = os.pread(descriptor, num_bytes, start)
    if len(data) != num_bytes:
        _refuse_cut(path, f"bytes {start} to {start + num_bytes} are needed", os.fstat(descriptor).st_size)
    return data


def _tar_header(header: bytes, path: Path, at: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
    except (tarfile.HeaderError, ValueError) as error:
        raise DataError(
            f"{path}: byte {at} begins no tar header ({error}); expected an uncompressed tar: it is damaged or "
            "of another kind, fetch it again"
        ) from error
    if info.size < 0:
        raise DataError(f"{path}: the header at byte {at} declares {info.size} bytes; fetch it again")
    return info


def _check_end(descriptor: int, at: int, total: int, path: Path) -> None:
    """Demand zeros to the end: a header that was zeroed, or a second tar, would hide all frames behind it."""
    while at < total:
        data = _exactly(descriptor, at, min(END_BYTES, total - at), path)
        rest = data.lstrip(b"\0")
        if rest:
            raise DataError(
                f"{path}: byte {at + len(data) - len(rest)} lies behind the tar's end mark and is not zero; frames may "
                "be there: it is damaged, or several tars were joined; fetch it again, or pack them as files of their "
                "own"
            )
        at += len(data)


def _extension(descriptor: int, at: int, info: tarfile.TarInfo, path: Path) -> bytes:
    if info.size > MAX_HEADER_BYTES:
        raise DataError(
            f"{path}: the extended header at byte {at} declares {info.size} bytes; expected at most {MAX_HEADER_BYTES}"
        )
    return _exactly(descriptor, at, info.size, path)


def _pax_values(data: bytes, path: Path, at: int) -> dict[str, str]:
    """Read the "LENGTH KEY=VALUE\\n" records of an extended header."""
    values, rest = {}, data
    while rest.strip(b"\0"):
        length, _, _ = rest.partition(b" ")
        if not length.isdigit() or len(length) > 5 or not len(length) + 2 < int(length) <= len(rest):
            raise DataError(f"{path}: the extended header at byte {at} is damaged: fetch it again")
        record, rest = rest[len(length) + 1 : int(length)], rest[int(length) :]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        values[key.decode("utf-8", errors="replace")] = value.decode("utf-8", errors="replace")
    return values


def _decimal(text: str, path: Path, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise DataError(f"{path}, member {name!r:.200} declares {text!r:.40} bytes; expected a number: fetch it again")
    return int(text)


def _check_directory(descriptor: int, total: int, path: Path) -> None:
    """Bound the central directory before zipfile reads it whole."""
    tail_bytes = min(total, ZIP_END.size + 2**16)
    tail = _exactly(descriptor, total - tail_bytes, tail_bytes, path)
    at = tail.rfind(ZIP_END_SIGNATURE)
    if at < 0 or at + ZIP_END.size > len(tail):
        raise DataError(f"{path} has no zip directory at its end; it was cut or is of another kind: fetch it again")
    declared = ZIP_END.unpack_from(tail, at)[5]
    end = total - tail_bytes + at
    # Whatever the old record says: zipfile follows the locator wherever there is one.
    if end >= ZIP64_LOCATOR.size:
        signature, _, start, _ = ZIP64_LOCATOR.unpack(
            _exactly(descriptor, end - ZIP64_LOCATOR.size, ZIP64_LOCATOR.size, path)
        )
        if signature == ZIP64_LOCATOR_SIGNATURE and start + ZIP64_END.size <= total:
            declared = ZIP64_END.unpack(_exactly(descriptor, start, ZIP64_END.size, path))[0]
    if declared > MAX_DIRECTORY_BYTES:
        raise DataError(f"{path}: its directory declares {declared:,} bytes; expected at most {MAX_DIRECTORY_BYTES:,}")


def _check_name(path: Path, name: str) -> None:
    parts = name.rstrip("/").split("/")
    if (
        not name.isprintable()
        or "\\" in name
        or parts[0] == ""
        or ":" in parts[0]
        or any(part == ".." for part in parts)
    ):
        raise DataError(
            f"{path} holds a member named {name!r:.200}; expected relative names that stay inside: "
            "nothing of this archive is read"
        )


def _refuse_kind(path: Path, name: str, kind: str) -> NoReturn:
    raise DataError(
        f"{path}, member {name!r:.200} is {kind}; expected plain files only: nothing of this archive is read"
    )


def _refuse_cut(path: Path, what: str, total: int) -> NoReturn:
    raise DataError(f"{path} was cut: {what}, and it has {total}; fetch it again")
