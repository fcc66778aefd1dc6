"""One shard: a plain tar of sequences, each a KEY.json and a KEY.frames of Blosc2 buffers; same input, same bytes."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Final

import numpy as np
import numpy.typing as npt

from ..counts import NO_ROUNDING, Rounding
from ..json_checks import JsonRecord, Listed, canonical
from ..sequences import rain_fraction, wetness
from ..store.storage import Storage
from ..units import MISSING_COUNT
from .blosc import blosc2
from .description import Description
from .index import DIGEST_DIGITS, NO_FRAME_AFTER, Index, SequenceEntry, ShardEntry
from .totals import RainTotals, sum_totals

# Level 5: on 288 x 288 KNMI frames 15.3 kB in 2.2 ms; level 7 saves 5% for four times the time, decoding is equal.
ZSTD_LEVEL: Final = 5
# One block a frame compresses best; the cap keeps a continent's frame inside a core's cache. Never left to Blosc2,
# whose own choice depends on the machine, and with it the bytes.
MAX_BLOCK_BYTES: Final = 2**20
END_BYTES: Final = 2 * tarfile.BLOCKSIZE
"""A tar ends with two blocks of zeros (POSIX.1-2017, pax, ustar interchange format)."""


@dataclass(frozen=True, kw_only=True)
class PackedFrame:
    """One frame as it is stored, and what the index says about it.

    `wetness` holds the means of 1 - exp(-R / s) for s of 1 and 5 mm/h.
    """

    buffer: bytes
    rain_fraction: float
    missing: int
    totals: RainTotals
    wetness: tuple[float, float]

    @property
    def digest(self) -> str:
        """Digest the buffer as the index does."""
        return hashlib.sha256(self.buffer).hexdigest()[:DIGEST_DIGITS]


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
class WrittenShard(JsonRecord):
    """What was written.

    Attributes:
        shard: The shard.
        sequences: Its sequences.
        totals: The rain of the frames that they own, by source.
        left_out: Keys of sequences that were planned and hold no measurement.
    """

    shard: ShardEntry
    sequences: Listed[SequenceEntry]
    totals: dict[str, RainTotals]
    left_out: Listed[str] = ()


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
        totals=RainTotals.of_frame(counts_hw, scale_mmh, rounding),
        wetness=wetness(counts_hw, scale_mmh),
    )


def write_shard(
    storage: Storage,
    name: str,
    number: int,
    sequences: Sequence[PlannedSequence],
    draft: Index,
    frames_of: Callable[[PlannedSequence], Iterable[PackedFrame]],
) -> WrittenShard:
    """Write one tar, which appears under its name when it is whole and on the disk.

    Args:
        storage: Where.
        name: The tar's name.
        number: Its position in the index.
        sequences: What goes into it, in order.
        draft: The archive's index as far as it is known before the sequences are.
        frames_of: Reads and compresses a sequence's frames, in order; none for a sequence that is to be left out.
    """
    totals: dict[str, RainTotals] = {}
    entries: list[SequenceEntry] = []
    left_out: list[str] = []
    digest = hashlib.sha256()
    num_bytes = 0

    with storage.writer(name) as file:
        for planned in sequences:
            frames = list(frames_of(planned))
            if not frames:
                left_out.append(planned.key)
                continue
            entry, members = _lay_out(planned, frames, number, num_bytes, draft)
            file.write(members)
            digest.update(members)
            num_bytes += len(members)
            entries.append(entry)
            # Frames beyond the owned ones are the next sequence's, and count there.
            owned = reduce(RainTotals.plus, (frame.totals for frame in frames[: planned.num_starts]))
            totals = sum_totals([totals, {draft.origins[planned.origin].source: owned}])

        # Always two blocks: TarWriter's own end, filled up to 10 kB, would change the bytes of every archive.
        file.write(bytes(END_BYTES))
        digest.update(bytes(END_BYTES))

    shard = ShardEntry(name=name, num_bytes=num_bytes + END_BYTES, sha256=digest.hexdigest())
    return WrittenShard(shard=shard, sequences=tuple(entries), totals=totals, left_out=tuple(left_out))


def _lay_out(
    planned: PlannedSequence, frames: Sequence[PackedFrame], shard: int, offset: int, draft: Index
) -> tuple[SequenceEntry, bytes]:
    """Put both members of a sequence together; gives its entry and its bytes in the shard."""
    # One header block each: a longer name would take several.
    assert len(f"{planned.key}.frames") <= tarfile.LENGTH_NAME, "a key is too long"
    data = b"".join(frame.buffer for frame in frames)
    known = {name: value for name, value in vars(planned).items() if name != "first"}
    entry = SequenceEntry(
        **known,
        shard=shard,
        offset=offset,
        num_bytes=0,
        sha256="",
        json_offset=offset + tarfile.BLOCKSIZE,
        json_bytes=0,
        frames_offset=0,
        frames_bytes=len(data),
        frame_ends=tuple(int(end) for end in np.cumsum([len(frame.buffer) for frame in frames])),
        rain_fraction=tuple(frame.rain_fraction for frame in frames),
        missing=tuple(frame.missing for frame in frames),
        rain_after=NO_FRAME_AFTER,
        frame_digests="".join(frame.digest for frame in frames),
        wetness_1mmh=tuple(frame.wetness[0] for frame in frames),
        wetness_5mmh=tuple(frame.wetness[1] for frame in frames),
    )

    # KEY.json comes first: it says where the frames end.
    description = canonical(Description.of(draft, entry))
    json_member = tar_member(planned.key, "json", description)
    members = json_member + tar_member(planned.key, "frames", data)
    entry = replace(
        entry,
        num_bytes=len(members),
        sha256=hashlib.sha256(members).hexdigest(),
        json_bytes=len(description),
        frames_offset=offset + len(json_member) + tarfile.BLOCKSIZE,
    )
    return entry, members


def tar_member(key: str, kind: str, data: bytes) -> bytes:
    """Make a tar member that says nothing about who packed it, where, or when."""
    # Imported where shards are written: it brings torch along, which no other step of packing needs.
    from webdataset.writer import TarWriter

    file = io.BytesIO()
    tar = TarWriter(file, encoder=False, user="", group="", mode=0o644, mtime=0)
    # The writer's own option for the format has no effect in webdataset 1.0.
    tar.tarstream.format = tarfile.GNU_FORMAT
    tar.write({"__key__": key, kind: data})
    num_bytes = tar.tarstream.offset
    tar.close()
    return file.getvalue()[:num_bytes]
