"""One file from a web address: resumed where it stopped, checked when it is whole, and only then given its name."""

import hashlib
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import requests
from urllib3 import Retry
from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError

from ..errors import DamagedError, DataError
from ..json_checks import shown
from ..store.storage import Storage
from ..whole_file import PARTIAL_SUFFIX, make_durable
from .knmi_api import RemoteFile
from .web import AnswerError, Web, given_up

PIECE_BYTES: Final = 2**18
MIN_PROGRESS_BYTES: Final = 2**20
"""A connection that brought this much before it broke was worth having: it does not count as a failure."""
MAX_RENEWALS: Final = 3
EXPIRED_STATUSES: Final = frozenset({400, 401, 403, 404, 410})
"""Temporary addresses live for minutes; an expired one is answered by any of these."""
HDF5_MAGIC: Final = b"\x89HDF\r\n\x1a\n"
"""HDF5 File Format Specification, version 3.0, II.A."""


class Downloader:
    """Downloads files into a folder of unfinished ones; several threads may ask for different files.

    Args:
        web: Sends the requests.
        url_of: Asks for a file's temporary address.
        parts: Folder of unfinished files.
        progress: Gets the bytes that came; less than 0 where some were thrown away.
    """

    def __init__(self, web: Web, url_of: Callable[[str], str], parts: Path, progress: Callable[[int], object]) -> None:
        self._web = web
        self._url_of = url_of
        self._parts = parts
        self._progress = progress

    def fetch(self, file: RemoteFile, storage: Storage) -> None:
        """Download a file, or the rest of it, check it, and give it its name.

        Raises:
            DataError: Naming the file: the server gave up, or sends something else than it listed.
            OSError: It could not be written.
        """
        unfinished = self._find_unfinished(file)
        with unfinished.open("ab") as target:
            self._progress(target.tell())
            try:
                self._complete(file, target)
            except DamagedError:
                # It may be what an earlier run left: once more, from the start.
                self._restart(target)
                self._complete(file, target)
            os.fsync(target.fileno())

        # Only a whole, checked file gets its name.
        if storage.folder is not None:
            unfinished.replace(storage.folder / file.name)
            make_durable(storage.folder)
        else:
            with unfinished.open("rb") as source, storage.writer(file.name) as copy:
                shutil.copyfileobj(source, copy)
            unfinished.unlink()

    def _find_unfinished(self, file: RemoteFile) -> Path:
        """Find the place of an unfinished file; another version of it, as listed, has another."""
        version = hashlib.sha256(f"{file.num_bytes} {file.modified}".encode()).hexdigest()[:16]
        return self._parts / f"{version}-{file.name}{PARTIAL_SUFFIX}"

    def _restart(self, target: BinaryIO) -> None:
        """Throw away what there is of a file."""
        self._progress(-target.tell())
        target.truncate(0)
        target.seek(0)

    def _complete(self, file: RemoteFile, target: BinaryIO) -> None:
        """Download until all bytes of a file are there, and check it."""
        url = e_tag = ""
        num_renewals = 0
        retries = self._web.retries
        while (start := target.tell()) < file.num_bytes:
            url = url or self._url_of(file.name)
            try:
                with self._web.get(url, {}, {"Range": f"bytes={start}-"} if start else {}) as response:
                    e_tag = _check_answer(file, response, start, e_tag)
                    if response.status_code == 200:
                        # All of it comes, though only the rest was asked for.
                        self._restart(target)
                    self._append(file, response, target)

            except HTTPError:
                # The connection was lost: the rest is asked for.
                if target.tell() - start >= MIN_PROGRESS_BYTES:
                    num_renewals = 0
                    retries = self._web.retries
                retries = _after_cut(retries, url)

            except AnswerError as error:
                # The address has expired: another one is asked for.
                if error.status not in EXPIRED_STATUSES or num_renewals == MAX_RENEWALS:
                    raise DataError(f"its temporary address is refused: {error}") from None
                url = ""
                num_renewals += 1

        check_file(Path(target.name), file.name)

    def _append(self, file: RemoteFile, response: requests.Response, target: BinaryIO) -> None:
        """Write what comes behind what is there; raises HTTPError where it ends early."""
        for piece in response.raw.stream(PIECE_BYTES, decode_content=False):
            if target.tell() + len(piece) > file.num_bytes:
                raise DamagedError(f"more than the listed {file.num_bytes} bytes came; start again")
            target.write(piece)
            # What a killed run leaves ends where the bar did, give or take a piece.
            target.flush()
            self._progress(len(piece))
        if target.tell() < file.num_bytes:
            raise ProtocolError("the answer ended early")


def _check_answer(file: RemoteFile, response: requests.Response, start: int, e_tag: str) -> str:
    """Check that an answer holds the rest of a file, or all of it, in the same version as before; returns its ETag."""
    headers = response.headers
    if response.status_code == 206:
        sent, expected = headers.get("Content-Range", ""), f"bytes {start}-{file.num_bytes - 1}/{file.num_bytes}"
    else:
        sent, expected = headers.get("Content-Length", str(file.num_bytes)), str(file.num_bytes)

    if sent != expected or headers.get("ETag", "") != (e_tag or headers.get("ETag", "")):
        raise DamagedError(
            f"the server sends another version of it ({shown(sent)}) than its list names ({file.num_bytes} bytes); "
            "it was replaced meanwhile: start again"
        )
    return headers.get("ETag", "")


def _after_cut(retries: Retry, url: str) -> Retry:
    """Count a body that was cut, and wait; returns the retries that are left."""
    try:
        remaining = retries.increment("GET", url, error=ProtocolError())
    except MaxRetryError:
        raise given_up(url, "the connection was lost in the middle") from None
    remaining.sleep()
    return remaining


def check_file(path: Path, name: str) -> None:
    """Check that a file is of the kind that its name says.

    Raises:
        DamagedError: Naming what was found and expected.
    """
    with path.open("rb") as file:
        head = file.read(len(HDF5_MAGIC))
    kinds = {"h5": head == HDF5_MAGIC, "tar": tarfile.is_tarfile(path), "zip": zipfile.is_zipfile(path)}
    kind = name.rpartition(".")[2].lower()
    if not kinds.get(kind, True):
        raise DamagedError(f"begins with {head!r}; expected a whole .{kind} file: the server sent something else")
