"""The index of a packed archive: its schema, checks and fingerprint. It lies beside the shards as index.json."""

import hashlib
import re
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, Final

from ..errors import DamagedError, DataError
from ..frames import Crop, Grid
from ..json_checks import as_float, canonical, demand, demand_distinct, parse_json, shown, typed
from ..store.storage import Storage
from ..units import MISSING_COUNT
from .origins import Origin, check_origins, common, sources_of

INDEX_NAME: Final = "index.json"
SCHEMA_VERSION: Final = 2
DIGEST: Final = re.compile(r"[0-9a-f]{64}")
# WebDataset takes what follows a name's first dot for the member's kind, so a key holds no dot.
KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
NO_FRAME_AFTER: Final = -1.0
"""`SequenceEntry.rain_after` where the origin holds no later frame."""
SHARD_NAME: Final = re.compile(r"[A-Za-z0-9_-]+\.tar")
MAX_PIXELS: Final = 2**27
MAX_CADENCE_S: Final = 86400
FIRST_TIME_S: Final = -2_208_988_800
STOP_TIME_S: Final = 7_258_118_400
"""The years 1900 to 2199: no radar is older, and every time in them can be written and added up."""


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One tar file: its name, length and SHA-256."""

    name: str
    num_bytes: int
    sha256: str


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
    """

    key: str
    origin: int
    shard: int
    start_s: int
    num_frames: int
    num_starts: int
    offset: int
    num_bytes: int
    sha256: str
    json_offset: int
    json_bytes: int
    frames_offset: int
    frames_bytes: int
    frame_ends: tuple[int, ...]
    rain_fraction: tuple[float, ...]
    missing: tuple[int, ...]
    rain_after: float


@dataclass(frozen=True, kw_only=True)
class Index:
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
        statistics: Plain JSON: pixels and rain of the distinct frames by source (data.summary.RainTotals).
        fingerprint: SHA-256 of everything else in the index.
        packed_from: SHA-256 of what was packed and how: the options and every input file's bytes; "" if unknown.
    """

    schema_version: int
    cadence_s: int
    rows: int
    cols: int
    missing_count: int
    window: int
    max_frames: int
    origins: tuple[Origin, ...]
    shards: tuple[ShardEntry, ...]
    sequences: tuple[SequenceEntry, ...]
    statistics: dict[str, Any]
    fingerprint: str = ""
    packed_from: str = ""

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
        return common(self.origins, "scale_mmh", lambda origin: origin.scale_mmh)

    @property
    def grid(self) -> Grid:
        """The whole grid; raises DataError where origins differ in it."""
        return common(self.origins, "grid", lambda origin: origin.grid)

    @property
    def crop(self) -> Crop:
        """The part of the grid that was packed; raises DataError where origins differ in it."""
        return common(self.origins, "crop", lambda origin: origin.crop)


def fingerprint_of(index: Index) -> str:
    """Digest everything in an index but the fingerprint itself: SHA-256 of its canonical JSON."""
    values = _plain(replace(index, fingerprint=""))
    del values["fingerprint"]
    return hashlib.sha256(canonical(values)).hexdigest()


def signed(index: Index) -> Index:
    """Give the index with its fingerprint filled in."""
    return replace(index, fingerprint=fingerprint_of(index))


def describe_archive(index: Index, origin: Origin) -> dict[str, Any]:
    """Give what every KEY.json of an origin says about it and the archive, as plain JSON values."""
    names = ("cadence_s", "rows", "cols", "missing_count", "window")
    return {**origin.to_json(), **{name: getattr(index, name) for name in names}}


def of_source(index: Index, source: str) -> Index:
    """Give the part of an index that comes from one source; fingerprint and shards stay those of the whole archive.

    Raises:
        DataError: There is no such source, with those that there are.
    """
    if source not in index.sources:
        raise DataError(
            f"the source {source!r} is not in the archive; its sources: {'; '.join(map(shown, index.sources))}"
        )
    kept = [number for number, origin in enumerate(index.origins) if origin.source == source]
    place = {number: at for at, number in enumerate(kept)}
    return replace(
        index,
        origins=tuple(index.origins[number] for number in kept),
        sequences=tuple(
            replace(entry, origin=place[entry.origin]) for entry in index.sequences if entry.origin in place
        ),
        statistics={name: value for name, value in index.statistics.items() if name == source},
    )


def dump_index(index: Index) -> bytes:
    """Write an index as the bytes of index.json."""
    return canonical(_plain(index)) + b"\n"


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
        values = parse_json(data)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON ({error}); it was cut or changed: copy or pack it again") from error
    try:
        return parse_index(values)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    # Whole numbers beyond what a float holds, and objects nested deeper than they can be digested.
    except (ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{where}: holds a value that cannot be ({error}); copy or pack it again") from error


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


def parse_index(values: Any) -> Index:
    """Check the JSON values of an index and build it.

    Raises:
        DataError: Naming the key.
    """
    if isinstance(values, dict) and values.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"schema_version is {values.get('schema_version')!r}, this program reads {SCHEMA_VERSION}; "
            "pack the archive again with this version"
        )
    checked = typed(Index, values, "index")
    checked["origins"] = tuple(Origin.from_json(origin, f"origins[{i}]") for i, origin in enumerate(checked["origins"]))
    checked["shards"] = tuple(parse_shard_entry(entry, f"shards[{i}]") for i, entry in enumerate(checked["shards"]))
    checked["sequences"] = tuple(
        parse_sequence_entry(entry, f"sequences[{i}]") for i, entry in enumerate(checked["sequences"])
    )
    index = Index(**checked)
    found = fingerprint_of(index)
    if found != index.fingerprint:
        raise DataError(
            f"fingerprint is {index.fingerprint!r}, but the content's is {found!r}; the index was changed after "
            "packing: copy or pack it again"
        )
    _check_index(index)
    return index


def verify_sequence_bytes(index: Index, entry: SequenceEntry, payload: bytes) -> None:
    """Check the bytes offset to offset + num_bytes of a sequence's shard against the index.

    Raises:
        DataError: Naming shard and key, expected and found.
    """
    where = f"shard {index.shards[entry.shard].name}, key {entry.key}"
    if len(payload) != entry.num_bytes:
        raise DataError(f"{where}: {len(payload)} bytes, expected {entry.num_bytes}; copy or pack the shard again")
    found = hashlib.sha256(payload).hexdigest()
    if found != entry.sha256:
        raise DataError(
            f"{where}: SHA-256 of its bytes is {found}, expected {entry.sha256}; "
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
        found = storage.size(shard.name)
        if found != shard.num_bytes:
            raise DataError(
                f"{storage.url}/{shard.name} has {found} bytes, expected {shard.num_bytes}; it was cut or changed: "
                "copy or pack it again"
            )


def parse_shard_entry(values: Any, where: str) -> ShardEntry:
    """Check the JSON values of one shard; raises DataError naming `where` and the key."""
    return ShardEntry(**typed(ShardEntry, values, where))


def parse_sequence_entry(values: Any, where: str) -> SequenceEntry:
    """Check the JSON values of one sequence; raises DataError naming `where` and the key."""
    checked = typed(SequenceEntry, values, where)
    for name, kind in (("frame_ends", int), ("rain_fraction", float), ("missing", int)):
        found = set(map(type, checked[name]))
        if not found <= ({int, float} if kind is float else {int}):
            raise DataError(f"{where}: key {name!r} holds other values than {kind.__name__}; copy or pack it again")
        if kind is float:
            checked[name] = [as_float(value, f"{where}: key {name!r}") for value in checked[name]]
        checked[name] = tuple(checked[name])
    return SequenceEntry(**checked)


def _check_index(index: Index) -> None:
    """Check the ranges of every value, beyond its type."""
    demand(index.missing_count == MISSING_COUNT, "missing_count", index.missing_count, f"{MISSING_COUNT}")
    demand(0 < index.cadence_s <= MAX_CADENCE_S, "cadence_s", index.cadence_s, f"1 to {MAX_CADENCE_S} s")
    demand(1 <= index.window <= index.max_frames, "window", index.window, f"1 to max_frames, {index.max_frames}")
    check_origins(index.origins, index.rows, index.cols)
    demand(
        index.rows * index.cols <= MAX_PIXELS, "rows, cols", (index.rows, index.cols), f"at most {MAX_PIXELS} pixels"
    )
    for i, shard in enumerate(index.shards):
        where = f"shards[{i}]."
        demand(SHARD_NAME.fullmatch(shard.name) is not None, where + "name", shard.name, "a plain name ending in .tar")
        demand(DIGEST.fullmatch(shard.sha256) is not None, where + "sha256", shard.sha256, "64 hexadecimal digits")
    demand_distinct("shards[].name", (shard.name for shard in index.shards))
    demand(len(index.sequences) > 0, "sequences", "empty", "at least one")
    for i, entry in enumerate(index.sequences):
        _check_sequence(index, entry, f"sequences[{i}] ({shown(entry.key)}).")
    demand_distinct("sequences[].key", (entry.key for entry in index.sequences))
    good = index.packed_from == "" or DIGEST.fullmatch(index.packed_from) is not None
    demand(good, "packed_from", index.packed_from, "64 hexadecimal digits, or nothing")


def _check_sequence(index: Index, entry: SequenceEntry, where: str) -> None:
    demand(KEY.fullmatch(entry.key) is not None, where + "key", entry.key, "letters, digits, - and _")
    demand(DIGEST.fullmatch(entry.sha256) is not None, where + "sha256", entry.sha256, "64 hexadecimal digits")
    demand(0 <= entry.origin < len(index.origins), where + "origin", entry.origin, f"0 to {len(index.origins) - 1}")
    demand(0 <= entry.shard < len(index.shards), where + "shard", entry.shard, f"0 to {len(index.shards) - 1}")
    demand(
        1 <= entry.num_frames <= index.max_frames, where + "num_frames", entry.num_frames, f"1 to {index.max_frames}"
    )
    demand(
        1 <= entry.num_starts <= entry.num_frames, where + "num_starts", entry.num_starts, f"1 to {entry.num_frames}"
    )
    for name in ("frame_ends", "rain_fraction", "missing"):
        found = len(getattr(entry, name))
        demand(found == entry.num_frames, where + name, f"{found} values", f"{entry.num_frames}, one a frame")
    last_s = entry.start_s + (entry.num_frames - 1) * index.cadence_s
    demand(FIRST_TIME_S <= entry.start_s <= last_s < STOP_TIME_S, where + "start_s",
            f"{entry.start_s}, the last frame's {last_s}", "times of the years 1900 to 2199")  # fmt: skip
    stop = entry.offset + entry.num_bytes
    shard_bytes = index.shards[entry.shard].num_bytes
    inside = 0 <= entry.offset < stop <= shard_bytes
    demand(inside, where + "offset", f"bytes {entry.offset} to {stop}", f"a range inside the shard's {shard_bytes}")
    for name in ("json", "frames"):
        first, count = getattr(entry, f"{name}_offset"), getattr(entry, f"{name}_bytes")
        good = entry.offset <= first and count > 0 and first + count <= stop
        demand(good, where + f"{name}_offset", f"bytes {first} to {first + count}", f"inside {entry.offset} to {stop}")
    ends = (0, *entry.frame_ends)
    rising = all(before < after for before, after in pairwise(ends))
    demand(rising and ends[-1] == entry.frames_bytes, where + "frame_ends", f"up to {ends[-1]}",
            f"rising values up to frames_bytes, {entry.frames_bytes}")  # fmt: skip
    demand(all(0 <= share <= 1 for share in entry.rain_fraction), where + "rain_fraction", "a value outside", "0 to 1")
    pixels = index.rows * index.cols
    demand(all(0 <= count <= pixels for count in entry.missing), where + "missing", "a value outside", f"0 to {pixels}")
    good = entry.rain_after == NO_FRAME_AFTER or 0 <= entry.rain_after <= 1
    demand(good, where + "rain_after", entry.rain_after, "0 to 1, or -1 for none")


def _plain(index: Index) -> dict[str, Any]:
    # asdict copies every frame's numbers one by one; a shallow walk is ten times as fast on a long archive.
    values = {field.name: getattr(index, field.name) for field in fields(index)}
    values["origins"] = [origin.to_json() for origin in index.origins]
    values["shards"] = [asdict(shard) for shard in index.shards]
    values["sequences"] = [dict(vars(entry)) for entry in index.sequences]
    return values
