"""One shard: a plain tar of sequences, each a KEY.json and a KEY.frames of Blosc2 buffers; same input, same bytes."""

import hashlib
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, BinaryIO, Final

import blosc2
import numpy as np
import numpy.typing as npt

from ..counts import NO_ROUNDING, Rounding
from ..frames import iso_time
from ..json_checks import canonical
from ..sequences import rain_fraction
from ..store.storage import Storage
from ..units import MISSING_COUNT
from .index import NO_FRAME_AFTER, SCHEMA_VERSION, SequenceEntry, ShardEntry
from .summary import RainTotals, sum_totals

# Level 5: on 288 x 288 KNMI frames 15.3 kB in 2.2 ms; level 7 saves 5% for four times the time, decoding is equal.
ZSTD_LEVEL: Final = 5
# One block a frame compresses best; the cap keeps a continent's frame inside a core's cache. Never left to Blosc2,
# whose own choice depends on the machine, and with it the bytes.
MAX_BLOCK_BYTES: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class PackedFrame:
    """One frame as it is stored, and what the index says about it."""

    buffer: bytes
    rain_fraction: float
    missing: int
    totals: RainTotals
    rounding: Rounding = NO_ROUNDING


@dataclass(frozen=True, kw_only=True)
class PlannedSequence:
    """One sequence before its frames are read.

    Attributes:
        key: Name of its members.
        origin: Position of its origin in the archive.
        start_s: End time of its first frame.
        first: Position of that frame among the source's.
        num_frames: Number of frames.
        num_starts: Windows that begin at frames 0 to num_starts - 1, and fit, are this sequence's.
    """

    key: str
    origin: int
    start_s: int
    first: int
    num_frames: int
    num_starts: int


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """What was written.

    Attributes:
        shard: The shard.
        sequences: Its sequences.
        totals: The rain of the frames that they own, by source.
        rounding: What requantising changed in these frames, by source.
        left_out: Keys of sequences that were planned and hold no measurement.
    """

    shard: ShardEntry
    sequences: tuple[SequenceEntry, ...]
    totals: dict[str, RainTotals]
    rounding: dict[str, Rounding] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


class _CountedFile:
    """A file that counts and digests what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def pack_frame(counts_hw: npt.NDArray[np.uint16], scale_mmh: float, rounding: Rounding = NO_ROUNDING) -> PackedFrame:
    """Compress one frame, uint16 (rows, cols), 65535 missing, into one Blosc2 buffer."""
    counts_hw = np.ascontiguousarray(counts_hw, dtype="<u2")
    buffer = blosc2.compress2(
        counts_hw,
        codec=blosc2.Codec.ZSTD,
        clevel=ZSTD_LEVEL,
        typesize=2,
        filters=[blosc2.Filter.SHUFFLE],
        blocksize=min(counts_hw.nbytes, MAX_BLOCK_BYTES),
        nthreads=1,
    )
    return PackedFrame(
        buffer=bytes(buffer),
        rain_fraction=rain_fraction(counts_hw),
        missing=int(np.count_nonzero(counts_hw == MISSING_COUNT)),
        totals=RainTotals.of_frame(counts_hw, scale_mmh),
        rounding=rounding,
    )


def write_shard(
    storage: Storage,
    name: str,
    number: int,
    sequences: Sequence[PlannedSequence],
    descriptions: Sequence[dict[str, Any]],
    frames_of: Callable[[PlannedSequence], Iterable[PackedFrame]],
) -> WrittenShard:
    """Write one tar, which appears under its name when it is whole and on the disk.

    Args:
        storage: Where.
        name: The tar's name.
        number: Its position in the index.
        sequences: What goes into it, in order.
        descriptions: What every KEY.json of an origin says beside its own sequence (`data.shards.describe_archive`).
        frames_of: Reads and compresses a sequence's frames, in order; none for a sequence that is to be left out.
    """
    totals: dict[str, RainTotals] = {}
    rounding: dict[str, Rounding] = {}
    entries, left_out = [], []
    with storage.writer(name) as file:
        tar = _CountedFile(file)
        for planned in sequences:
            frames = list(frames_of(planned))
            if not frames:
                left_out.append(planned.key)
                continue
            description = descriptions[planned.origin]
            entries.append(_write_sequence(tar, number, planned, frames, description))
            own, source = frames[: planned.num_starts], description["source"]
            totals = sum_totals([totals, {source: reduce(RainTotals.plus, (frame.totals for frame in own))}])
            changed = reduce(Rounding.plus, (frame.rounding for frame in own))
            rounding[source] = rounding.get(source, NO_ROUNDING).plus(changed)
        tar.write(b"\0" * (2 * tarfile.BLOCKSIZE))
    shard = ShardEntry(name=name, num_bytes=tar.num_bytes, sha256=tar.sha256)
    return WrittenShard(
        shard=shard, sequences=tuple(entries), totals=totals, rounding=rounding, left_out=tuple(left_out)
    )


def _write_sequence(
    tar: _CountedFile,
    shard: int,
    planned: PlannedSequence,
    frames: Sequence[PackedFrame],
    description: dict[str, Any],
) -> SequenceEntry:
    """Write both members of a sequence and say where they lie."""
    data = b"".join(frame.buffer for frame in frames)
    entry = SequenceEntry(
        key=planned.key,
        origin=planned.origin,
        shard=shard,
        start_s=planned.start_s,
        num_frames=planned.num_frames,
        num_starts=planned.num_starts,
        offset=tar.num_bytes,
        num_bytes=0,
        sha256="",
        json_offset=tar.num_bytes + tarfile.BLOCKSIZE,
        json_bytes=0,
        frames_offset=0,
        frames_bytes=len(data),
        frame_ends=tuple(int(end) for end in np.cumsum([len(frame.buffer) for frame in frames])),
        rain_fraction=tuple(frame.rain_fraction for frame in frames),
        missing=tuple(frame.missing for frame in frames),
        rain_after=NO_FRAME_AFTER,
    )
    text = _describe(entry, description)
    json_member = _member(f"{planned.key}.json", text)
    members = json_member + _member(f"{planned.key}.frames", data)
    tar.write(members)
    return replace(
        entry,
        num_bytes=len(members),
        sha256=hashlib.sha256(members).hexdigest(),
        json_bytes=len(text),
        frames_offset=entry.offset + len(json_member) + tarfile.BLOCKSIZE,
    )


def _describe(entry: SequenceEntry, description: dict[str, Any]) -> bytes:
    """Write KEY.json: everything that a reader without the index needs."""
    own = {
        "schema_version": SCHEMA_VERSION,
        "key": entry.key,
        "start_s": entry.start_s,
        "start_time": iso_time(entry.start_s),
        "num_frames": entry.num_frames,
        "starts": entry.num_starts,
        "frame_ends": entry.frame_ends,
        "rain_fraction": entry.rain_fraction,
        "missing": entry.missing,
        "codec": "one Blosc2 buffer a frame, frame i from byte frame_ends[i-1] (0 first) to frame_ends[i], "
        "uint16 (rows, cols)",
    }
    return canonical(own | description)


def _member(name: str, data: bytes) -> bytes:
    """Make a tar member that says nothing about who packed it, where, or when."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    header = info.tobuf(format=tarfile.GNU_FORMAT)
    assert len(header) == tarfile.BLOCKSIZE, "a key is too long for one tar header"
    return header + data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)
