"""Files in an object store (S3, Google, Azure) or on a web server: ranged reads, whole writes, nothing lost on the way.

One request is one try: obstore's own retries hide what happens, give up a busy store after seconds and are not refilled
by progress, so they are off, and data/store/retries.py decides. What came before a connection broke is kept and the
rest is asked for, of the same version of the object (ETag), so that no byte is missing, doubled or of another version.
"""

import itertools
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import md5, sha256
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from ..errors import DataError
from ..whole_file import PARTIAL_SUFFIX
from .access import Access, TimeLimits, open_access
from .errors import RAISED_BY_OBSTORE, judge, judged, status_of
from .names import Traffic, already_there, beyond_end, check_name, check_range, just_before
from .ranges import RangeReader, ReplacedError, Version, version_of
from .retries import Retries, RetryPolicy, TransientError

_Result = TypeVar("_Result")
PART_BYTES: Final = 8 << 20
"""Longest range of one request, and the part of a large upload."""
_MAX_PARTS: Final = 9_000
"""S3 takes 10,000 parts an upload."""
_UPLOAD_BYTES_PER_S: Final = 1e6
"""What a large upload is allowed to take beyond the deadline: a slow line is not a dead one."""
_UPLOADS_AT_ONCE: Final = 4
_MD5: Final = re.compile(r"[0-9a-f]{32}")
_LISTINGS: Final = 4
"""Most listings that are asked for again where a store is written to meanwhile."""
_DAMAGED_READS: Final = 3
"""Equal bytes refused so often are what the store holds, not what the way made of them."""


def open_store(
    url: str,
    *,
    deadline_s: float,
    connections: int = 16,
    read_timeout_s: float | None = None,
    may_be_public: bool = False,
) -> "ObjectStorage":
    """Open an object store or files on a web server.

    Args:
        url: s3://BUCKET/PREFIX, gs://, az://, https:// or http://.
        deadline_s: Seconds after which an operation that still fails is given up.
        connections: Requests that may be under way at once.
        read_timeout_s: Seconds without a byte after which a request counts as failed; None: 30, or less with a short
            deadline.
        may_be_public: Ask without a signature where the environment holds no credentials.

    Raises:
        DataError: See data/store/access.py.
    """
    if not 0 < deadline_s < math.inf:
        raise DataError(f"{url}: a deadline of {deadline_s} s; expected one above 0")
    try_s = min(60.0, deadline_s / 4)
    read_s = min(30.0, try_s / 2) if read_timeout_s is None else min(read_timeout_s, try_s)
    limits = TimeLimits(connect_s=min(10.0, try_s / 2), read_s=read_s, request_s=try_s)
    access = open_access(url, limits, may_be_public=may_be_public)
    return ObjectStorage(access, RetryPolicy(deadline_s=deadline_s, try_s=try_s), connections)


class ObjectStorage:
    """A store, opened; see data/store/storage.py for what its methods promise.

    Args:
        access: Clients of the store.
        policy: Waits and deadline.
        connections: Requests that may be under way at once.
    """

    def __init__(self, access: Access, policy: RetryPolicy, connections: int) -> None:
        self._access = access
        self._client: Any = access.client
        self._writer: Any = access.writer
        self._traffic = Traffic()
        self._retries = Retries(policy, self._traffic, connections, endpoint=access.endpoint)
        self._reader = RangeReader(self._client, self.url, self._retries, self._traffic)
        self._e_tags_are_md5 = True
        # Threads start when a read is first split.
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="ranges")

    @property
    def url(self) -> str:
        """The store's address."""
        return self._access.url

    @property
    def is_plain(self) -> bool:
        """Whether nothing shows a byte of a listing that was damaged on the way: it comes without encryption."""
        return self._access.endpoint.startswith("http://")

    @property
    def folder(self) -> Path | None:
        """None: the files are not local."""
        return None

    def stats(self) -> dict[str, float]:
        """Count what was sent, repeated, moved and waited since it was opened.

        Parts of large uploads count once each, however often they were sent.
        """
        return self._traffic.stats()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def names(self, prefix: str = "") -> list[str]:
        """List the objects that begin with a prefix, sorted; unfinished ones are left out."""
        return [name for name, _ in self._list(prefix)]

    def objects(self, prefix: str = "") -> list[tuple[str, int]]:
        """List names and lengths of the objects that begin with a prefix, sorted; unfinished ones are left out.

        Without encryption nothing shows a byte that was damaged on the way: the listing is asked for until it comes
        twice.
        """
        listed = self._list(prefix)
        for _ in range(_LISTINGS if self.is_plain else 0):
            again = self._list(prefix)
            if again == listed:
                break
            listed = again
        return listed

    def _list(self, prefix: str) -> list[tuple[str, int]]:
        listed: set[tuple[str, int]] = set()
        self.visit(prefix, lambda name, version: listed.add((name, version.num_bytes)))
        return sorted(listed)

    def visit(self, prefix: str, take: Callable[[str, Version], object]) -> None:
        """List the objects that begin with a prefix, with their versions; unfinished ones are left out.

        Args:
            prefix: How their names begin.
            take: Called with each, in the store's order, and again after a failure in a store that keeps none.
        """
        if self._access.read_only:
            raise DataError(f"{self.url}: a web server cannot be listed; expected an index that names its files")
        folder = prefix.rpartition("/")[0]
        if folder:
            check_name(self.url, folder)
        last = ""
        in_order = True

        def attempt(_: int) -> None:
            # After a failure the listing goes on behind the last name that came; a store without order starts again.
            nonlocal last, in_order
            behind = last if last and in_order else just_before(prefix)
            pages = obstore.list(self._client, folder or None, offset=behind, chunk_size=1000)
            for number, page in enumerate(pages):
                for entry in page:
                    path = entry["path"]
                    in_order = in_order and path > last
                    last = path
                    # Consoles of stores mark a folder, this one too, by an empty object of its name.
                    if path and path.startswith(prefix) and not path.endswith(PARTIAL_SUFFIX):
                        take(path, version_of(entry))
                self._traffic.add(requests=1 if number else 0)
                # In a store with order, none comes behind the last that begins so.
                if in_order and last > prefix and not last.startswith(prefix):
                    break

        self._run(f"{self.url}/{prefix}", "list", attempt)

    def children(self, folder: str) -> list[str]:
        """List the objects and folders that lie directly in a folder ("" for the root), without what is in them."""
        if folder:
            check_name(self.url, folder)

        def attempt(_: int) -> list[str]:
            level = obstore.list_with_delimiter(self._client, folder or None)
            paths = [*level["common_prefixes"], *(entry["path"] for entry in level["objects"])]
            return sorted({path.rstrip("/").rpartition("/")[2] for path in paths})

        return self._run(f"{self.url}/{folder}", "list", attempt)

    def exists(self, name: str) -> bool:
        """Check whether there is such an object."""

        def attempt(_: int) -> bool:
            try:
                obstore.head(self._client, name)
            except FileNotFoundError:
                return False
            return True

        return self._run(self._address(name), "look for it", attempt)

    def size(self, name: str) -> int:
        """Give an object's length in bytes."""
        return self._run(self._address(name), "read", lambda _: int(obstore.head(self._client, name)["size"]))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read bytes start to stop - 1, or to the end, all of one version of the object."""
        where = self._address(name)
        check_range(where, start, stop)
        if start == stop:
            # No request can ask for no bytes.
            num_bytes = self.size(name)
            if start > num_bytes:
                raise beyond_end(where, start, start, num_bytes)
            return b""

        def attempt(_: int) -> bytes:
            try:
                return self._read_version(name, start, stop)[0]
            except ReplacedError:
                raise TransientError("the object was replaced while it was read") from None

        # Its parts repeat what fails; what is repeated here is a read that met two versions.
        return self._retries.repeat(where, "read", attempt)

    def read_object(self, name: str, limit_bytes: int) -> bytes:
        """Read all of an object, of one version; nothing is held of one that is longer than the limit.

        An ETag that has the form of an MD5 digest is one, but for objects that are encrypted or were uploaded in parts:
        bytes that do not fit it are read again, and are the object's own if they come back the same.
        """
        return self.read_whole(name, limit_bytes)[0]

    def read_whole(self, name: str, limit_bytes: int) -> tuple[bytes, Version]:
        """Read all of an object as `read_object` does, and say which version of it that was."""
        where = self._address(name)
        read: dict[str, int] = {}

        def attempt(_: int) -> tuple[bytes, Version]:
            try:
                data, version = self._read_version(name, 0, None, limit_bytes=limit_bytes)
            except ReplacedError:
                raise TransientError("the object was replaced while it was read") from None
            digest = (version.e_tag or "").strip('"').lower()
            if not self._e_tags_are_md5 or not _MD5.fullmatch(digest):
                return data, version
            computed = md5(data, usedforsecurity=False).hexdigest()
            if computed != digest:
                read[computed] = read.get(computed, 0) + 1
                if read[computed] < _DAMAGED_READS:
                    raise TransientError("the bytes were damaged on the way: they do not fit the object's ETag")
                self._e_tags_are_md5 = False
            return data, version

        return self._retries.repeat(where, "read", attempt)

    def version(self, name: str) -> Version:
        """Say which version of an object there is."""
        return self._run(self._address(name), "read", lambda _: version_of(obstore.head(self._client, name)))

    def read_checked(self, name: str, start: int, stop: int, check: Callable[[bytes], None]) -> bytes:
        """Read bytes start to stop - 1 and judge them; what is refused is read again, unless it comes back the same."""
        refused: dict[bytes, int] = {}

        def attempt(_: int) -> bytes:
            data = self.read(name, start, stop)
            try:
                check(data)
            except DataError as error:
                # The same bytes again are what the store holds; others were damaged on the way.
                digest = sha256(data).digest()
                refused[digest] = refused.get(digest, 0) + 1
                if refused[digest] >= _DAMAGED_READS:
                    raise
                raise TransientError(f"the bytes were damaged on the way: {error}") from None
            return data

        return self._retries.repeat(self._address(name), "read", attempt)

    def write(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write a whole object; with `if_absent`, one that is already there is an error and stays."""
        where = self._writable(name)
        if not if_absent:
            self._upload(name, data, len(data))
            return

        def attempt(failures: int) -> None:
            try:
                with self._retries.request(where):
                    obstore.put(self._writer, name, data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError) as error:
                self._judge_conflict(name, data, error, is_first_try=failures == 0)
            except RAISED_BY_OBSTORE as error:
                raise judge(where, "write", error) from None

        self._retries.repeat(where, "write", attempt, more_s=len(data) / _UPLOAD_BYTES_PER_S)
        self._traffic.add(bytes_written=len(data))

    @contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """Open a local temporary file; it is uploaded under its name when the block ends without an error."""
        where = self._writable(name)
        try:
            file = tempfile.TemporaryFile(prefix="rainspark-")  # noqa: SIM115
        except OSError as error:
            raise DataError(
                f"{where}: no temporary file for the upload: {error}; set TMPDIR to another folder"
            ) from error
        with file:
            try:
                yield file
                file.flush()
            except OSError as error:
                raise DataError(
                    f"{where}: the temporary file for the upload could not be written: {error.strerror or error}; free "
                    f"space in {tempfile.gettempdir()} or set TMPDIR to another folder; nothing was uploaded"
                ) from error
            self._upload(name, file, file.seek(0, 2))

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""
        where = self._writable(name)

        def attempt(_: int) -> None:
            try:
                obstore.delete(self._client, name)
            except FileNotFoundError:
                return

        self._run(where, "delete", attempt)

    def delete_partial(self) -> None:
        """Do nothing: what was not finished never had a name here."""

    def _address(self, name: str) -> str:
        """Give the address of a name; raises DataError for one that is not allowed."""
        check_name(self.url, name)
        return f"{self.url}/{name}"

    def _writable(self, name: str) -> str:
        """Check a name to be written or removed; returns its address."""
        where = self._address(name)
        if self._access.read_only:
            raise DataError(f"{where}: a web server is only read; expected a folder, s3://, gs:// or az://")
        if name.endswith(PARTIAL_SUFFIX):
            raise DataError(f"{where}: names that end in {PARTIAL_SUFFIX} are hidden; choose another")
        return where

    def _run(self, where: str, action: str, attempt: Callable[[int], _Result], *, more_s: float = 0.0) -> _Result:
        """Send a request until it succeeds, with obstore's errors judged."""
        return self._retries.run(where, action, judged(where, action, attempt), more_s=more_s)

    def _read_version(
        self, name: str, start: int, stop: int | None, *, limit_bytes: int | None = None
    ) -> tuple[bytes, Version]:
        """Read a range of one version, in parts of which the later ones come at the same time."""
        # The first part shows the version, and with it the length.
        first_stop = start + PART_BYTES if stop is None else min(stop, start + PART_BYTES)
        first, version = self._reader.read_range(name, start, first_stop, version=None, clip=stop is None)
        if limit_bytes is not None and version.num_bytes > limit_bytes:
            raise DataError(
                f"{self._address(name)} has {version.num_bytes:,} bytes; expected at most {limit_bytes:,}: choose the "
                "files by another pattern"
            )
        end = version.num_bytes if stop is None else stop
        if end > version.num_bytes:
            raise beyond_end(self._address(name), start, end, version.num_bytes)
        if start + len(first) == end:
            return first, version

        # The other parts come at the same time, and have to be of that version.
        bounds = [*range(start + len(first), end, PART_BYTES), end]
        futures = [
            self._threads.submit(self._reader.read_range, name, begin, until, version=version, clip=False)
            for begin, until in itertools.pairwise(bounds)
        ]
        try:
            return b"".join([first, *(future.result()[0] for future in futures)]), version
        finally:
            for future in futures:
                future.cancel()

    def _upload(self, name: str, source: bytes | BinaryIO, num_bytes: int) -> None:
        """Send a whole object, and check that it has arrived in its length."""
        where = self._address(name)
        in_parts = num_bytes > PART_BYTES
        part_bytes = max(PART_BYTES, math.ceil(num_bytes / _MAX_PARTS))
        more_s = num_bytes / _UPLOAD_BYTES_PER_S
        client: Any = self._access.uploader if in_parts else self._writer

        def send(_: int) -> None:
            # An earlier try may have read a part of the file.
            if not isinstance(source, bytes):
                source.seek(0)
            obstore.put(
                client, name, source, use_multipart=in_parts, chunk_size=part_bytes, max_concurrency=_UPLOADS_AT_ONCE
            )
            # Sent are a request that opens the upload, the parts, and one that closes it: one is counted already.
            self._traffic.add(requests=math.ceil(num_bytes / part_bytes) + 1 if in_parts else 0)

        def attempt(_: int) -> None:
            self._run(where, "write", send, more_s=more_s)
            if (num_there := self.size(name)) != num_bytes:
                raise TransientError(f"{num_bytes} bytes were sent and {num_there} are there")

        self._retries.repeat(where, "write", attempt, more_s=more_s)
        self._traffic.add(bytes_written=num_bytes)

    def _judge_conflict(self, name: str, data: bytes, error: Exception, *, is_first_try: bool) -> None:
        """Decide whose object is in the way of one that was to be new.

        An earlier try of ours whose answer was lost may have written it: then it holds our bytes.
        """
        where = self._address(name)
        if is_first_try and status_of(error) != 409:
            raise already_there(where)
        try:
            present = self.read(name)
        except DataError:
            # 409 also says that somebody is writing there at this moment.
            if self.exists(name):
                raise
            raise TransientError("somebody else was writing there") from None
        if is_first_try or present != data:
            raise already_there(where)
