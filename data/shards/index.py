"""The index of a packed archive: its schema, checks and fingerprint. It lies beside the shards as index.json."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Final, Literal

from ..errors import DamagedError, DataError
from ..frames import Crop, Grid
from ..json_checks import (
    Count,
    Digest,
    JsonRecord,
    Limits,
    Listed,
    Share,
    canonical,
    demand,
    demand_distinct,
    read_json,
    shown,
)
from ..store.storage import Storage
from ..units import MISSING_COUNT
from .origins import Origin, check_origins, common, sources_of
from .totals import RainTotals

INDEX_NAME: Final = "index.json"
SCHEMA_VERSION: Final = 3
"""What is written; schema 2 is read too, and lacks what is None below."""
VARIABLES: Final = ("rainfall_rate",)
"""CF standard names of what a frame holds: one variable today."""
DIGEST_DIGITS: Final = 16
"""Hexadecimal digits of a frame's digest: 64 bits tell a damaged frame from a sound one."""
NO_FRAME_AFTER: Final = -1.0
"""`SequenceEntry.rain_after` where the origin holds no later frame."""
MAX_PIXELS: Final = 2**27
MAX_CADENCE_S: Final = 86400
FIRST_TIME_S: Final = -2_208_988_800
STOP_TIME_S: Final = 7_258_118_400
"""The years 1900 to 2199: no radar is older, and every time in them can be written and added up."""


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One tar file: its name, length and SHA-256."""

    name: Annotated[str, Limits(pattern=r"^[A-Za-z0-9_-]+\.tar$")]
    num_bytes: int
    sha256: Digest


@dataclass(frozen=True, kw_only=True)
class SequenceEntry:
    """One sequence of frames and where it lies.

    Attributes:
        key: Name of its members, KEY.json and KEY.frames.
        origin: Position of where it comes from in `Index.origins`.
        shard: Position of its shard in `Index.shards`.
        start_s: End time of the first frame, epoch seconds UTC.
        num_frames: Number of frames.
        num_starts: Windows that begin at frames 0 to num_starts - 1, and fit, are this sequence's.
        offset: Where its bytes begin in the shard: both members with their headers and padding.
        num_bytes: How many they are.
        sha256: Digest of these bytes.
        json_offset: Where the data of KEY.json begins in the shard.
        json_bytes: Its length.
        frames_offset: Where the data of KEY.frames begins in the shard.
        frames_bytes: Its length.
        frame_ends: Where each frame's Blosc2 buffer ends inside KEY.frames; the first begins at 0.
        rain_fraction: Share of valid pixels above zero, per frame; 0 where no pixel is valid.
        missing: Number of missing pixels, per frame.
        rain_after: Share of pixels above zero, of all pixels, in the next frame that the origin holds after the last
            one of the sequence, whatever lies between; NO_FRAME_AFTER where there is none. It is known when all is
            packed, so KEY.json does not know it.
        frame_digests: The first 16 hexadecimal digits of the SHA-256 of each frame's buffer, one after the other; None
            in schema 2.
        wetness_1mmh: Mean of 1 - exp(-R / 1 mm/h) over the valid pixels, per frame, to 1e-6; 0 where none is valid;
            None in schema 2. Importance sampling draws by it (Ravuri et al. 2021, doi:10.1038/s41586-021-03854-z).
        wetness_5mmh: The same with 5 mm/h.
    """

    # WebDataset takes what follows a name's first dot for the member's kind, so a key holds no dot.
    key: Annotated[str, Limits(pattern="^[A-Za-z0-9_-]+$")]
    origin: Count
    shard: Count
    start_s: int
    num_frames: int
    num_starts: int
    offset: Count
    num_bytes: int
    sha256: Digest
    json_offset: int
    json_bytes: int
    frames_offset: int
    frames_bytes: int
    frame_ends: Listed[int]
    rain_fraction: Listed[Share]
    missing: Listed[Count]
    rain_after: Annotated[float, Limits(ge=NO_FRAME_AFTER, le=1)]
    frame_digests: Annotated[str, Limits(pattern="^[0-9a-f]*$")] | None = None
    wetness_1mmh: Listed[Share] | None = None
    wetness_5mmh: Listed[Share] | None = None

    def frame_digest(self, frame: int) -> str | None:
        """Cut out the digest of one frame's buffer; None in schema 2."""
        if self.frame_digests is None:
            return None
        return self.frame_digests[frame * DIGEST_DIGITS : (frame + 1) * DIGEST_DIGITS]

    def frames_of(self, data: bytes) -> memoryview:
        """Cut the data of KEY.frames out of the sequence's bytes."""
        begin = self.frames_offset - self.offset
        return memoryview(data)[begin : begin + self.frames_bytes]


@dataclass(frozen=True, kw_only=True)
class Index(JsonRecord):
    """What a packed archive holds.

    Attributes:
        schema_version: Version of this layout.
        cadence_s: Seconds from frame to frame.
        rows: Rows of a packed frame (every origin's crop's).
        cols: Columns of a packed frame.
        missing_count: The count that means missing.
        window: Longest window whose starts the sequences own.
        max_frames: Longest sequence that packing allowed.
        origins: Where sequences come from: products, and parts of their grids.
        shards: The tar files.
        sequences: In time order.
        statistics: Pixels and rain of the distinct frames, by source.
        fingerprint: SHA-256 of everything else in the index.
        packed_from: SHA-256 of what was packed and how: the options and every input file's bytes; "" if unknown.
        variables: CF standard names of what a frame holds; None in schema 2, where it is the rain rate.
    """

    schema_version: Literal[2, 3]
    cadence_s: Annotated[int, Limits(ge=1, le=MAX_CADENCE_S)]
    rows: int
    cols: int
    missing_count: Literal[65535]
    window: int
    max_frames: int
    origins: Listed[Origin]
    shards: Listed[ShardEntry]
    sequences: Listed[SequenceEntry]
    statistics: dict[str, RainTotals]
    fingerprint: str = ""
    packed_from: Annotated[str, Limits(pattern="^([0-9a-f]{64})?$")] = ""
    variables: Listed[str] | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The products' names, in the order of `origins`."""
        return sources_of(self.origins)

    @property
    def source(self) -> str:
        """The products' names in one text."""
        return ", ".join(self.sources)

    @property
    def licence(self) -> str:
        """The licences in one text."""
        return ", ".join(dict.fromkeys(origin.licence for origin in self.origins))

    @property
    def scale_mmh(self) -> float:
        """Rain of one count, mm/h; raises DataError where origins differ in it."""
        return common(self.origins, "scale_mmh")

    @property
    def grid(self) -> Grid:
        """The whole grid; raises DataError where origins differ in it."""
        return common(self.origins, "grid")

    @property
    def crop(self) -> Crop:
        """The part of the grid that was packed; raises DataError where origins differ in it."""
        return common(self.origins, "crop")


def draft_index(
    origins: Sequence[Origin],
    *,
    cadence_s: int,
    window: int,
    max_frames: int,
    statistics: dict[str, RainTotals] | None = None,
    packed_from: str = "",
) -> Index:
    """Draft the index of an archive that is to be written, without shards and sequences."""
    crop = origins[0].crop
    return Index(
        schema_version=SCHEMA_VERSION,
        cadence_s=cadence_s,
        rows=crop.rows,
        cols=crop.cols,
        missing_count=MISSING_COUNT,
        window=window,
        max_frames=max_frames,
        origins=tuple(origins),
        shards=(),
        sequences=(),
        statistics=statistics or {},
        packed_from=packed_from,
        variables=VARIABLES,
    )


def fingerprint_of(index: Index) -> str:
    """Digest everything in an index but the fingerprint itself: SHA-256 of its canonical JSON."""
    values = {name: value for name, value in vars(index).items() if name != "fingerprint" and value is not None}
    return hashlib.sha256(canonical(values)).hexdigest()


def signed(index: Index) -> Index:
    """Fill in the fingerprint of an index."""
    return replace(index, fingerprint=fingerprint_of(index))


def check_source(index: Index, source: str) -> None:
    """Raise DataError for a source that the archive does not have, with those that it has."""
    if source not in index.sources:
        raise DataError(
            f"the source {source!r} is not in the archive; its sources: {'; '.join(map(shown, index.sources))}"
        )


def of_source(index: Index, source: str) -> Index:
    """Take the part of an index that comes from one source; fingerprint and shards stay those of the whole archive.

    Raises:
        DataError: There is no such source, with those that there are.
    """
    check_source(index, source)
    # The origins that stay move up, and their sequences follow.
    kept = [number for number, origin in enumerate(index.origins) if origin.source == source]
    position = {number: at for at, number in enumerate(kept)}
    return replace(
        index,
        origins=tuple(index.origins[number] for number in kept),
        sequences=tuple(
            replace(entry, origin=position[entry.origin]) for entry in index.sequences if entry.origin in position
        ),
        statistics={name: value for name, value in index.statistics.items() if name == source},
    )


def dump_index(index: Index) -> bytes:
    """Write an index as the bytes of index.json."""
    return canonical(index) + b"\n"


def load_index(storage: Storage) -> Index:
    """Read and check index.json.

    Raises:
        DataError: It is missing, no JSON, of another schema, holds a key, type or range that is wrong (named), or does
            not match its fingerprint.
    """
    where = f"{storage.url}/{INDEX_NAME}"
    data = _read_index(storage)
    if data is None:
        raise DataError(
            f"{where} is missing: no packed archive lies there, or packing it was not finished; "
            "pack it (rainspark pack), the same command goes on where it stopped"
        )

    try:
        index = read_json(Index, data)
        _check_index(index)
    except DataError as error:
        advice = "it was cut or changed, or is another version's: copy it again, or pack the archive again"
        raise DataError(f"{where}: {error}; {advice}") from error
    return index


def _read_index(storage: Storage) -> bytes | None:
    """Read index.json; None where there is none."""
    if storage.folder is not None:
        return storage.read(INDEX_NAME) if storage.exists(INDEX_NAME) else None
    try:
        # A store says why there is nothing to read, such as no such bucket; asked whether there is, it says only no.
        return storage.read(INDEX_NAME)
    except DamagedError:
        if storage.exists(INDEX_NAME):
            raise
        return None


def verify_sequence_bytes(index: Index, entry: SequenceEntry, payload: bytes) -> None:
    """Check the bytes offset to offset + num_bytes of a sequence's shard against the index.

    Raises:
        DamagedError: Naming shard and key, expected and found.
    """
    where = f"shard {index.shards[entry.shard].name}, key {entry.key}"
    if len(payload) != entry.num_bytes:
        raise DamagedError(f"{where}: {len(payload)} bytes, expected {entry.num_bytes}; copy or pack the shard again")
    digest = hashlib.sha256(payload).hexdigest()
    if digest != entry.sha256:
        raise DamagedError(
            f"{where}: SHA-256 of its bytes is {digest}, expected {entry.sha256}; "
            "the shard was damaged or does not belong to this index: copy or pack it again"
        )


def check_shard_sizes(storage: Storage, index: Index) -> None:
    """Compare the shards that lie beside an index with it, by name and length.

    Raises:
        DataError: A shard is missing, cut or longer.
    """
    for shard in index.shards:
        if not storage.exists(shard.name):
            raise DataError(f"{storage.url}/{shard.name} is missing, but the index lists it; copy or pack it again")
        num_bytes = storage.size(shard.name)
        if num_bytes != shard.num_bytes:
            raise DataError(
                f"{storage.url}/{shard.name} has {num_bytes} bytes, expected {shard.num_bytes}; it was cut or changed: "
                "copy or pack it again"
            )


def _check_index(index: Index) -> None:
    """Check the fingerprint and the ranges of every value; types were checked when it was read."""
    # What was changed by accident is found here, before any value is looked at.
    digest = fingerprint_of(index)
    if digest != index.fingerprint:
        raise DataError(f"fingerprint is {shown(index.fingerprint)}, but the content's is {digest}")

    expected = VARIABLES if index.schema_version == SCHEMA_VERSION else None
    demand(index.variables == expected, "variables", index.variables, str(expected))
    # How the archive was cut, and the size of its frames.
    demand(1 <= index.window <= index.max_frames, "window", index.window, f"1 to max_frames, {index.max_frames}")
    check_origins(index.origins, index.rows, index.cols)
    shape = (index.rows, index.cols)
    demand(index.rows * index.cols <= MAX_PIXELS, "rows, cols", shape, f"at most {MAX_PIXELS} pixels")
    # Every shard and sequence has a name of its own.
    for name, values in (("shards", index.shards), ("sequences", index.sequences)):
        demand(len(values) > 0, name, "empty", "at least one")
    demand_distinct("shards[].name", (shard.name for shard in index.shards))
    demand_distinct("sequences[].key", (entry.key for entry in index.sequences))
    for i, entry in enumerate(index.sequences):
        _check_sequence(index, entry, f"sequences[{i}] ({entry.key}).")


def _check_sequence(index: Index, entry: SequenceEntry, where: str) -> None:
    # Whose it is, and how many frames it has.
    _demand_in(where + "origin", entry.origin, 0, len(index.origins) - 1)
    _demand_in(where + "shard", entry.shard, 0, len(index.shards) - 1)
    _demand_in(where + "num_frames", entry.num_frames, 1, index.max_frames)
    _demand_in(where + "num_starts", entry.num_starts, 1, entry.num_frames)
    for name in ("frame_ends", "rain_fraction", "missing"):
        count = len(getattr(entry, name))
        demand(count == entry.num_frames, where + name, f"{count} values", f"{entry.num_frames}, one a frame")
    _demand_in(where + "missing", max(entry.missing), 0, index.rows * index.cols)
    if index.schema_version == SCHEMA_VERSION:
        digits = len(entry.frame_digests or "")
        demand(
            digits == entry.num_frames * DIGEST_DIGITS,
            where + "frame_digests",
            f"{digits} digits",
            f"{DIGEST_DIGITS} a frame",
        )
        for name in ("wetness_1mmh", "wetness_5mmh"):
            count = len(getattr(entry, name) or ())
            demand(count == entry.num_frames, where + name, f"{count} values", f"{entry.num_frames}, one a frame")
    known = entry.rain_after >= 0 or entry.rain_after == NO_FRAME_AFTER
    demand(known, where + "rain_after", entry.rain_after, "0 to 1, or -1 for none")

    # When it is.
    last_s = entry.start_s + (entry.num_frames - 1) * index.cadence_s
    in_time = FIRST_TIME_S <= entry.start_s <= last_s < STOP_TIME_S
    times = f"{entry.start_s}, the last frame's {last_s}"
    demand(in_time, where + "start_s", times, "times of the years 1900 to 2199")

    # Where it lies: the sequence in its shard, the members in the sequence, the frames in their member.
    stop = entry.offset + entry.num_bytes
    shard_bytes = index.shards[entry.shard].num_bytes
    inside = entry.offset < stop <= shard_bytes
    demand(inside, where + "offset", f"bytes {entry.offset} to {stop}", f"a range inside the shard's {shard_bytes}")
    for name in ("json", "frames"):
        first = getattr(entry, f"{name}_offset")
        count = getattr(entry, f"{name}_bytes")
        inside = entry.offset <= first and count > 0 and first + count <= stop
        key = where + f"{name}_offset"
        demand(inside, key, f"bytes {first} to {first + count}", f"inside {entry.offset} to {stop}")
    ends = (0, *entry.frame_ends)
    whole = ends[-1] == entry.frames_bytes and all(before < after for before, after in pairwise(ends))
    expected = f"rising values up to frames_bytes, {entry.frames_bytes}"
    demand(whole, where + "frame_ends", f"up to {ends[-1]}", expected)


def _demand_in(key: str, value: int, lowest: int, highest: int) -> None:
    demand(lowest <= value <= highest, key, value, f"{lowest} to {highest}")
