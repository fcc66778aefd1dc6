"""One file from a web address: resumed where it stopped, checked when it is whole, and only then given its name."""

import base64
import binascii
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from ..errors import DataError
from ..store.storage import Storage
from ..whole_file import PARTIAL_SUFFIX, make_durable
from .knmi_api import RemoteFile
from .web import AnswerError, Body, FaultError, Web

COPY_BYTES: Final = 2**23
# A connection that brought this much before it broke was worth having: it does not count as a fault.
MIN_PROGRESS_BYTES: Final = 2**20
MAX_EXPIRED: Final = 3
MD5: Final = re.compile(r'"([0-9a-f]{32})"')
CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,16})-(\d{1,16})/(\d{1,16})")
HDF5_MAGIC: Final = b"\x89HDF\r\n\x1a\n"
"""HDF5 File Format Specification, version 3.0, II.A."""
NO_TEXTS: Final = {"modified": "", "etag": "", "md5": ""}
ZIP_MAGIC: Final = b"PK\x03\x04"
ZIP_END_MAGIC: Final = b"PK\x05\x06"
ZIP_END_BYTES: Final = 22 + 65535
"""The end of central directory record, comment and all (APPNOTE.TXT 6.3.10, 4.3.16)."""


@dataclass(frozen=True, kw_only=True)
class _State:
    """What is known of a file that is half there: the file as listed, and how the server marked its version."""

    num_bytes: int
    modified: str
    etag: str
    md5: str


class Downloader:
    """Downloads files into a folder of unfinished ones; several threads may ask for different files.

    Args:
        web: Sends the requests.
        url_of: Asks for a file's temporary address.
        parts: Folder of unfinished files.
        progress: Gets the bytes that came; less than 0 where some were thrown away.
    """

    def __init__(self, web: Web, url_of: Callable[[str], str], parts: Path, progress: Callable[[int], object]) -> None:
        self._web, self._url_of, self._parts, self._progress = web, url_of, parts, progress

    def fetch(self, file: RemoteFile) -> Path:
        """Download a file, or the rest of it.

        Returns:
            The whole, checked file, still under its unfinished name.

        Raises:
            DataError: Naming the file: the server gave up, sends something else than it listed, or the disk is full.
        """
        for attempt in (1, 2):
            path = self._whole(file)
            try:
                check_file(path, file.name, self._read_state(file).md5)
            except DataError:
                self.drop(file)
                if attempt == 2:
                    raise
            else:
                return path
        raise AssertionError("the second attempt returns or raises")

    def drop(self, file: RemoteFile) -> None:
        """Throw away what there is of a file."""
        self._progress(-min(self.num_have(file), file.num_bytes))
        for path in (self._path(file), self._state_path(file)):
            path.unlink(missing_ok=True)

    def forget(self, file: RemoteFile) -> None:
        """Remove what was noted of a file that has its name by now."""
        self._state_path(file).unlink(missing_ok=True)

    def num_have(self, file: RemoteFile) -> int:
        """Count the bytes that are there already."""
        with suppress(OSError):
            return self._path(file).stat().st_size
        return 0

    def open_parts(self, file: RemoteFile) -> int:
        """Count the bytes that an earlier run left; what it left of another version of the file is thrown away."""
        have = self.num_have(file)
        state = self._read_state(file)
        if have and (state.num_bytes, state.modified) == (file.num_bytes, file.modified) and have <= file.num_bytes:
            return have
        for path in (self._path(file), self._state_path(file)):
            path.unlink(missing_ok=True)
        return 0

    def _whole(self, file: RemoteFile) -> Path:
        url, num_faults, num_expired, fresh_bytes = "", 0, 0, 0
        while (have := self.num_have(file)) < file.num_bytes:
            if not url:
                url = self._url_of(file.name)
            reason = "the answer ended early"
            try:
                with self._web.body(url, have) as body:
                    self._append(file, body, have)
            except FaultError as fault:
                reason = str(fault)
            except AnswerError as error:
                if error.status == 416:
                    self.drop(file)
                    reason = "the server does not know the rest of it (HTTP 416)"
                elif error.status not in (400, 401, 403, 404, 410) or num_expired == MAX_EXPIRED:
                    raise DataError(f"{file.name}: its temporary address is refused: {error}") from None
                else:
                    # Temporary addresses live for minutes; an expired one is answered by any of these.
                    url, num_expired = "", num_expired + 1
                    continue
            fresh_bytes += self.num_have(file) - have
            if fresh_bytes >= MIN_PROGRESS_BYTES:
                num_faults, num_expired, fresh_bytes = 0, 0, 0
            if self.num_have(file) < file.num_bytes:
                num_faults += 1
                self._web.pause(num_faults, url, f"{file.name}: {reason}")
        return self._path(file)

    def _append(self, file: RemoteFile, body: Body, have: int) -> None:
        """Write what comes behind what is there, once it is clear that both are of one file."""
        etag, total, start = body.headers.get("ETag", ""), body.headers.get("Content-Length"), 0
        state = self._read_state(file)
        if body.status == 206:
            match = CONTENT_RANGE.fullmatch(body.headers.get("Content-Range", ""))
            if match is None or int(match.group(1)) != have or etag != state.etag:
                self.drop(file)
                raise FaultError("the server has another version of it by now")
            total, start = match.group(3), have
        if total is not None and total != str(file.num_bytes):
            self.drop(file)
            raise DataError(
                f"{file.name}: the server sends {total:.20} bytes, its list says {file.num_bytes}; the file was "
                "replaced meanwhile: start again"
            )
        if not start:
            self.drop(file)
            self._write_state(file, etag, _md5_of(body.headers))
        with self._path(file).open("ab") as part:
            for piece in body.pieces:
                if start + len(piece) > file.num_bytes:
                    raise DataError(f"{file.name}: more than the listed {file.num_bytes} bytes came; start again")
                part.write(piece)
                # What a killed run leaves ends where the counter of the bar did, give or take one piece.
                part.flush()
                start += len(piece)
                self._progress(len(piece))
            os.fsync(part.fileno())

    def _path(self, file: RemoteFile) -> Path:
        return self._parts / f"{file.name}{PARTIAL_SUFFIX}"

    def _state_path(self, file: RemoteFile) -> Path:
        return self._parts / f"{file.name}.state{PARTIAL_SUFFIX}"

    def _write_state(self, file: RemoteFile, etag: str, md5: str) -> None:
        values = {"num_bytes": file.num_bytes, "modified": file.modified, "etag": etag[:1000], "md5": md5}
        self._state_path(file).write_text(json.dumps(values), encoding="ascii")

    def _read_state(self, file: RemoteFile) -> _State:
        values: Any = {}
        with suppress(OSError, ValueError, RecursionError):
            values = json.loads(self._state_path(file).read_text(encoding="ascii"))
        known = values if isinstance(values, dict) else {}
        texts = {
            name: value if isinstance(value := known.get(name), str) else "" for name in ("modified", "etag", "md5")
        }
        num_bytes = known.get("num_bytes")
        return _State(num_bytes=num_bytes if type(num_bytes) is int else -1, **{**NO_TEXTS, **texts})


def publish(path: Path, name: str, storage: Storage) -> None:
    """Give a checked file its name; into a store it is copied.

    Raises:
        DataError: It could not be written there.
    """
    folder = storage.folder
    try:
        if folder is not None and path.stat().st_dev == folder.stat().st_dev:
            path.replace(folder / name)
            make_durable(folder)
        else:
            with path.open("rb") as file, storage.writer(name) as target:
                while piece := file.read(COPY_BYTES):
                    target.write(piece)
            path.unlink()
    except OSError as error:
        raise DataError(f"{storage.url}/{name}: could not write: {error.strerror or error}") from error


def check_file(path: Path, name: str, md5: str) -> None:
    """Check that a file is what its name says, and its MD5 digest where one is known ("" where not).

    Raises:
        DataError: Naming what was found and expected.
    """
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
        ending = name.rpartition(".")[2].lower()
        if ending in ("h5", "hdf5") and not head.startswith(HDF5_MAGIC):
            raise _wrong(name, "an HDF5 file", head)
        if ending == "tar":
            try:
                tarfile.TarInfo.frombuf(head, "ascii", "replace")
            except tarfile.HeaderError:
                raise _wrong(name, "a tar", head) from None
        if ending == "zip" and not (head.startswith(ZIP_MAGIC) and ZIP_END_MAGIC in _tail(file, ZIP_END_BYTES)):
            raise _wrong(name, "a zip with a directory at its end", head)
        if md5:
            file.seek(0)
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if found != md5:
                raise DataError(
                    f"{name}: MD5 is {found}, the server says {md5}; it was damaged on the way: start again"
                )


def _wrong(name: str, expected: str, head: bytes) -> DataError:
    return DataError(
        f"{name}: begins with {head[:8]!r}; expected {expected}: the server sent something else, start again"
    )


def _tail(file: BinaryIO, num_bytes: int) -> bytes:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - num_bytes))
    return file.read()


def _md5_of(headers: Mapping[str, str]) -> str:
    """Find the MD5 of a whole body: Content-MD5 (RFC 1864), or S3's ETag where that is one; "" where none is given.

    An ETag of 32 digits is the object's MD5 unless it was uploaded in parts (then it holds a dash) or encrypted with a
    key of KMS (Amazon S3 API Reference, Object).
    """
    with suppress(binascii.Error, ValueError):
        digest = base64.b64decode(headers.get("Content-MD5", ""), validate=True)
        if len(digest) == 16:
            return digest.hex()
    match = MD5.fullmatch(headers.get("ETag", ""))
    stores_md5 = headers.get("Server", "").startswith("AmazonS3") or "x-amz-request-id" in headers
    encrypted = "kms" in headers.get("x-amz-server-side-encryption", "")
    return match.group(1) if match is not None and stores_md5 and not encrypted else ""
