"""List objects of a store by a prefix or pattern and a span of days, and read them whole where they lie.

A pattern is a key with wildcards (* and ? inside a folder, ** across folders) and strftime's codes of the day (%Y, %y,
%m, %d, %j) and of the time (%H, %M, %S). What of it is fixed for a day limits what is listed, day by day.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, Final, Protocol

from ...errors import ConfigError
from ...sequences import TimeSpan

DAY_CODES: Final = ("%Y", "%y", "%m", "%d", "%j")
TIME_CODES: Final = ("%H", "%M", "%S")
WILDCARDS: Final = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
TOKEN: Final = re.compile(r"\*\*|%.|.", re.DOTALL)
HEADER_BYTES: Final = 2**14
"""What is read of a tar at a time while its members are listed: a header, and the short files after it."""
MAX_DAYS: Final = 36_525
"""Longest span of days that is listed one by one: a century."""


class ObjectStore(Protocol):
    """What is asked of a store (`data.store.object_store.ObjectStorage`)."""

    @property
    def url(self) -> str:
        """Its address, for messages."""

    def objects(self, prefix: str = "") -> list[tuple[str, int]]:
        """List names and lengths of the objects that begin with a prefix, sorted."""

    def read_object(self, name: str, limit_bytes: int) -> bytes:
        """Read all of an object; nothing is held of one that is longer than the limit."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read bytes start to stop - 1 of an object, or to the end."""


@dataclass(frozen=True)
class StoredObject:
    """An object of a store: which store, its name there, and the length that was listed."""

    store: ObjectStore = field(compare=False)
    name: str
    num_bytes: int

    def __str__(self) -> str:
        """Give its address."""
        return f"{self.store.url}/{self.name}"

    def read(self, limit_bytes: int) -> bytes:
        """Read all of it; raises DataError for one that is longer than the limit, before it is held."""
        return self.store.read_object(self.name, limit_bytes)

    def open(self) -> BinaryIO:
        """Open it to read here and there, as the headers of a tar are read."""
        return io.BufferedReader(_ObjectFile(self), HEADER_BYTES)


class _ObjectFile(io.RawIOBase):
    """An object as a file, of which every read is a request."""

    def __init__(self, stored: StoredObject) -> None:
        self._stored = stored
        self._at = 0

    def readable(self) -> bool:
        """Say that it is."""
        return True

    def seekable(self) -> bool:
        """Say that it is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._stored.num_bytes}
        self._at = starts[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read as much as there is room for."""
        stop = min(self._at + len(buffer), self._stored.num_bytes)
        if stop <= self._at:
            return 0
        data = self._stored.store.read(self._stored.name, self._at, stop)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Objects of a store that a prefix or pattern names.

    Attributes:
        address: The store's address up to the bucket, such as s3://BUCKET.
        pattern: A prefix (a folder of the bucket), or the pattern of the keys.
        span: Times that are wanted, whose days are listed; None for all.
        open: Opens the store.
    """

    address: str
    pattern: str
    span: TimeSpan | None = None
    open: Callable[[str], ObjectStore] = field(compare=False)

    def __str__(self) -> str:
        """Give the address as the user did."""
        return f"{self.address}/{self.pattern}"

    def objects(self) -> list[StoredObject]:
        """List the objects; raises ConfigError for a pattern that needs days which are not given.

        Where nothing is called so, an address without wildcards stands for all names that begin with it.
        """
        store = self.open(self.address)
        has_wildcards = any(token in WILDCARDS for token in TOKEN.findall(self.pattern))
        matching: dict[str, StoredObject] = {}
        beginning: dict[str, StoredObject] = {}
        for day in self._days():
            prefix, beginning_so, called_so = _of_day(self.pattern, day)
            for name, num_bytes in store.objects(prefix):
                if called_so.fullmatch(name):
                    matching[name] = StoredObject(store, name, num_bytes)
                elif not has_wildcards and beginning_so.match(name):
                    beginning[name] = StoredObject(store, name, num_bytes)
        listed = matching or beginning
        return [listed[name] for name in sorted(listed)]

    def _days(self) -> Sequence[datetime | None]:
        """List the days whose objects are wanted; one None where the pattern knows no days."""
        codes = [token for token in TOKEN.findall(self.pattern) if len(token) == 2 and token.startswith("%")]
        unknown = [code for code in codes if code not in (*DAY_CODES, *TIME_CODES, "%%")]
        if unknown:
            raise ConfigError(
                f"{self}: {unknown[0]} cannot be looked for; expected {', '.join(DAY_CODES + TIME_CODES)}, the "
                "wildcards *, ? and **, or %% for the character"
            )
        if not any(code in DAY_CODES for code in codes):
            return [None]

        if self.span is None or self.span.stop_s - self.span.start_s > MAX_DAYS * 86_400:
            raise ConfigError(f"{self}: its days have to be known; give --from DAY and --to DAY")
        first = datetime.fromtimestamp(self.span.start_s, UTC).replace(hour=0, minute=0, second=0)
        last = datetime.fromtimestamp(self.span.stop_s - 1, UTC)
        return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def _of_day(pattern: str, day: datetime | None) -> tuple[str, re.Pattern[str], re.Pattern[str]]:
    """Give what is fixed of a pattern on a day, and the expressions that its keys begin with and match."""
    fixed = ""
    is_fixed = True
    pieces = []
    for token in TOKEN.findall(pattern):
        if token in WILDCARDS or token in TIME_CODES:
            is_fixed = False
            pieces.append(WILDCARDS.get(token, r"\d\d"))
            continue
        text = token
        if len(token) == 2 and day is not None and token in DAY_CODES:
            text = day.strftime(token).zfill(4 if token == "%Y" else 2)
        elif token == "%%":
            text = "%"
        pieces.append(re.escape(text))
        fixed += text if is_fixed else ""

    # A prefix stands for all that lies below it, and for an object of that name.
    begin = "".join(pieces)
    below = ".*" if not pattern or pattern.endswith("/") else "(?:/.*)?"
    return fixed, re.compile(begin, re.DOTALL), re.compile(begin + below, re.DOTALL)
