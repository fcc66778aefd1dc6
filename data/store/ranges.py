"""Read one range of an object, by as many requests as it takes: each goes on where the one before was cut."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import obstore
from obstore.exceptions import BaseError, PreconditionError

from .errors import judged, status_of
from .names import Traffic, beyond_end
from .retries import Retries, TransientError

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta


_PIECE_BYTES: Final = 1 << 20
"""What is kept of a body that was cut, from the second try on: whole pieces of this size.

The first try takes the body in one piece: copying pieces together halves the rate of a fast store (8 MiB on one core).
"""


@dataclass(frozen=True)
class Version:
    """A version of an object: its length and its ETag, None where the server gives none that identifies the bytes."""

    num_bytes: int
    e_tag: str | None


class ReplacedError(Exception):
    """The object was replaced while it was read."""


class RangeReader:
    """Reads ranges of a store's objects; safe for threads.

    Args:
        client: Sends every request once.
        url: The store's address, for messages.
        retries: Sends them again.
        traffic: Counts the bytes.
    """

    def __init__(self, client: Any, url: str, retries: Retries, traffic: Traffic) -> None:
        self._client = client
        self._url = url
        self._retries = retries
        self._traffic = traffic

    def read_range(
        self, name: str, start: int, stop: int, *, version: Version | None, clip: bool
    ) -> tuple[bytes, Version]:
        """Read one range of one version.

        Args:
            name: The object.
            start: First byte.
            stop: Byte behind the last one.
            version: The version that is being read; None for whichever there is.
            clip: Whether the object may end before `stop`.

        Raises:
            ReplacedError: Another version has come.
            DataError: The object ends earlier, is missing, closed, or could not be read before the deadline.
        """
        where = f"{self._url}/{name}"
        wanted = _Range(start, stop, version)

        def attempt(failures: int) -> None:
            # Counted also where the request breaks off: what came is kept.
            before = wanted.received
            try:
                self._receive(name, where, wanted, clip=clip, is_first_try=failures == 0)
            finally:
                self._traffic.add(bytes_read=wanted.received - before)

        self._retries.run(where, "read", judged(where, "read", attempt))
        assert wanted.version is not None
        return wanted.pieces[0] if len(wanted.pieces) == 1 else b"".join(wanted.pieces), wanted.version

    def _receive(self, name: str, where: str, wanted: "_Range", *, clip: bool, is_first_try: bool) -> None:
        """Send one request for the bytes of a range that are missing."""
        begin = wanted.start + wanted.received
        options: GetOptions = {"range": (begin, wanted.stop)}
        if wanted.version is not None and wanted.version.e_tag is not None:
            options["if_match"] = wanted.version.e_tag

        try:
            reply = obstore.get(self._client, name, options=options)
        except PreconditionError:
            raise ReplacedError from None
        except BaseError as error:
            # An empty object, or one that ends before the range begins, has no such bytes: how many has it?
            if status_of(error) != 416:
                raise
            self._traffic.add(requests=1)
            version = version_of(obstore.head(self._client, name))
            if begin > version.num_bytes or not clip:
                raise beyond_end(where, begin, wanted.stop, version.num_bytes) from None
            wanted.version = version
            return

        # The answer: of the version that was begun with, and of the bytes that were asked for.
        version = version_of(reply.meta)
        if wanted.version not in (None, version):
            raise ReplacedError
        wanted.version = version
        if wanted.stop > version.num_bytes:
            if not clip:
                raise beyond_end(where, wanted.start, wanted.stop, version.num_bytes)
            wanted.stop = version.num_bytes
        if tuple(reply.range) != (begin, wanted.stop):
            raise TransientError(f"bytes {reply.range} came instead of {(begin, wanted.stop)}")

        for piece in reply.stream(min_chunk_size=wanted.stop - begin if is_first_try else _PIECE_BYTES):
            wanted.add(bytes(piece))
        if wanted.start + wanted.received < wanted.stop:
            raise TransientError(f"{wanted.stop - wanted.start - wanted.received} bytes too few came")


class _Range:
    """A range of an object, and what came of it so far."""

    def __init__(self, start: int, stop: int, version: Version | None) -> None:
        self.start = start
        self.stop = stop
        self.version = version
        self.pieces: list[bytes] = []
        self.received = 0

    def add(self, piece: bytes) -> None:
        """Take the next bytes; those of a body that is too long are not kept."""
        if self.start + self.received + len(piece) > self.stop:
            raise TransientError(f"more than the {self.stop - self.start} bytes asked for came")
        self.pieces.append(piece)
        self.received += len(piece)


def version_of(meta: "ObjectMeta") -> Version:
    """Take an object's version from a reply; a weak ETag stands for bytes that may differ."""
    e_tag = meta["e_tag"]
    return Version(int(meta["size"]), None if e_tag is None or e_tag.startswith("W/") else e_tag)
