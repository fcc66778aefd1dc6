"""Radar frames as they arrive: which files hold which time, which are whole, and which cannot be used."""

import glob
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ...data.errors import DataError
from ...data.frames import Crop
from ...data.sources.files import Place
from ...data.sources.places.buckets import Bucket
from ...data.sources.source import FrameRef, Header, Source

MOST_FILES: Final = 2000
"""Newest files that are looked into; a forecast takes the last dozen."""
UNFINISHED: Final = (".part", ".partial", ".tmp", ".temp", ".crdownload", "~")
"""Endings under which programs write what they rename in the end."""
ZARR_MARKS: Final = ("zarr.json", ".zgroup", ".zmetadata")

Signature = tuple[str, int, int]
"""A file as it is: its name, bytes and time of change."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A frame that lies in a file.

    Attributes:
        ref: Where it lies, as its source names it.
        place: The file, as the source searches it.
        signature: The file as it was seen.
        changed_ns: When the file was changed.
        is_settled: Whether it has been the same for a while: nobody writes to it.
    """

    ref: FrameRef
    place: Place
    signature: Signature
    changed_ns: int
    is_settled: bool

    @property
    def time_s(self) -> int:
        """End of the frame, epoch seconds UTC."""
        return self.ref.end_time_s

    @property
    def key(self) -> tuple[Signature, int]:
        """Tell the frames of a file apart."""
        return self.signature, self.time_s


@dataclass(eq=False)
class Arrivals:
    """What lies at the places of one radar, looked at again and again; nothing that lies there raises an error.

    Args:
        source: What reads the files.
        places: Gives where they lie.
        check: Raises DataError for a frame of another radar.
        settle_s: Seconds for which a file is the same when nobody writes to it.

    Attributes:
        frames: By time, all arrivals, the last changed first.
        problems: By file, why it holds no frame or cannot be looked at.
        damaged: By file and time, why a frame cannot be used.
    """

    source: Source
    places: Callable[[], Sequence[Place]]
    check: Callable[[Header], object]
    settle_s: float
    frames: dict[int, list[Arrival]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    damaged: dict[tuple[Signature, int], str] = field(default_factory=dict)
    _scanned: dict[Signature, tuple[FrameRef, ...]] = field(default_factory=dict)
    _unread: dict[Signature, str] = field(default_factory=dict)
    _sound: set[tuple[Signature, int]] = field(default_factory=set)
    _since_s: dict[Signature, float] = field(default_factory=dict)

    def look(self) -> None:
        """Look at all places again."""
        self.problems = {}
        entries = self._entries()
        present = {signature for _, signature, _ in entries}

        # By its own time of change a file may have been settled before it was first seen.
        now_s = time.monotonic()
        age_s = {signature: time.time() - changed_ns / 1e9 for _, signature, changed_ns in entries}
        self._since_s = {signature: self._since_s.get(signature, now_s) for signature in present}

        # The newest file comes first where several hold the same time.
        frames: dict[int, list[Arrival]] = {}
        for origin, signature, changed_ns in sorted(entries, key=lambda entry: -entry[2]):
            for ref in self._refs(origin, signature):
                arrival = Arrival(
                    ref=ref,
                    place=origin,
                    signature=signature,
                    changed_ns=changed_ns,
                    is_settled=max(now_s - self._since_s[signature], age_s[signature]) >= self.settle_s,
                )
                frames.setdefault(ref.end_time_s, []).append(arrival)
        self.frames = frames

        # What is gone or was changed is forgotten.
        self._scanned = {signature: refs for signature, refs in self._scanned.items() if signature in present}
        self._unread = {signature: text for signature, text in self._unread.items() if signature in present}
        self._sound = {key for key in self._sound if key[0] in present}
        self.damaged = {key: text for key, text in self.damaged.items() if key[0] in present}

    def usable(self, time_s: int) -> Arrival | None:
        """Choose the frame of a time: settled, sound, the last changed of several; None where there is none."""
        for arrival in self.frames.get(time_s, ()):
            if arrival.is_settled and self._is_sound(arrival):
                return arrival
        return None

    def is_waiting(self, time_s: int) -> bool:
        """Find out whether a frame of a time is there that may be written to still."""
        return any(not arrival.is_settled for arrival in self.frames.get(time_s, ()))

    def _is_sound(self, arrival: Arrival) -> bool:
        """Read a frame once, whole: what is damaged is known before a forecast begins."""
        if arrival.key in self._sound:
            return True
        if arrival.key in self.damaged:
            return False
        try:
            header = self.source.survey(arrival.ref).header
            if header.end_time_s != arrival.time_s:
                raise DataError(f"{arrival.ref}: its content is of another time than its name")
            self.check(header)
            self.source.read(arrival.ref, Crop(row0=0, row1=header.grid.rows, col0=0, col1=header.grid.cols))
        except (DataError, OSError) as error:
            self.damaged[arrival.key] = str(error)
            return False
        self._sound.add(arrival.key)
        return True

    def _refs(self, place: Place, signature: Signature) -> tuple[FrameRef, ...]:
        """Scan a file that is new or was changed."""
        if signature not in self._scanned and signature not in self._unread:
            try:
                self._scanned[signature] = self.source.scan([place]).refs
            except (DataError, OSError) as error:
                self._unread[signature] = str(error)
        if signature in self._unread:
            self.problems[str(place)] = self._unread[signature]
            # A store may have failed for a moment; a file on a disk is another one when it has changed.
            if isinstance(place, Bucket):
                del self._unread[signature]
        return self._scanned.get(signature, ())

    def _entries(self) -> list[tuple[Place, Signature, int]]:
        """List the newest files of all places, each as it is now."""
        entries: list[tuple[Place, Signature, int]] = []
        try:
            for origin in self.places():
                entries += self._of_bucket(origin) if isinstance(origin, Bucket) else self._of_path(origin)
        except (DataError, OSError) as error:
            # A folder that is gone for a moment, a store that does not answer.
            self.problems["input"] = str(error)
        return sorted(entries, key=lambda entry: -entry[2])[:MOST_FILES]

    def _of_bucket(self, bucket: Bucket) -> Iterator[tuple[Place, Signature, int]]:
        if self.source.kind == "xarray":
            # A Zarr store: its frames are found by its own list of times.
            yield bucket, (str(bucket), len(bucket.objects()), 0), 0
            return
        for stored in bucket.objects():
            only_this = replace(bucket, pattern=stored.name.replace("%", "%%"))
            yield only_this, (stored.name, stored.num_bytes, 0), 0

    def _of_path(self, place: Path) -> Iterator[tuple[Place, Signature, int]]:
        pattern = str(place)
        is_pattern = glob.has_magic(pattern) and not os.path.lexists(place)
        if not is_pattern and not place.exists():
            self.problems[pattern] = "is not there"
        for name in glob.iglob(pattern, recursive=True) if is_pattern else [pattern]:  # noqa: PTH207
            yield from _walk(Path(name))


def _walk(path: Path) -> Iterator[tuple[Place, Signature, int]]:
    """Give the files of a folder, or a file, as they are; a Zarr store is one file. What goes meanwhile is left out."""
    try:
        status = path.stat()
    except OSError:
        return
    if stat.S_ISREG(status.st_mode):
        if not path.name.startswith(".") and not path.name.lower().endswith(UNFINISHED):
            yield path, (str(path), status.st_size, status.st_mtime_ns), status.st_mtime_ns
    elif stat.S_ISDIR(status.st_mode) and any((path / mark).exists() for mark in ZARR_MARKS):
        newest_ns = max(inner.stat().st_mtime_ns for inner in (path, *path.iterdir()))
        yield path, (str(path), 0, newest_ns), newest_ns
    elif stat.S_ISDIR(status.st_mode) and not path.name.startswith("."):
        for inner in sorted(path.iterdir()):
            yield from _walk(inner)
