"""The survey before packing: what all input says about itself, checked, and the archive that will come of it."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, NoReturn

from tqdm import tqdm

from ..errors import DataError
from ..frames import Crop
from ..sequences import TimeSpan, find_runs
from ..shards.index import SCHEMA_VERSION, draft_index
from ..shards.origins import Origin, check_origins
from ..shards.writer import PlannedSequence
from ..sources.choice import recipe_of
from ..sources.files import Place
from ..sources.hdf5 import ChoiceError
from ..sources.knmi import KnmiSource
from ..sources.source import Found, FrameRef, Header, Source
from .scanning import inside, surveyed_ahead
from .tiling import Unit, around, beyond_tiles, cut_sequences, cut_tiles, spread_tiles
from .writing import ArchivePlan

MIN_SHARDS: Final = 16
MEGABYTE: Final = 1_000_000
SIDES: Final = 32
"""Frames' sides are multiples of this wherever models train: patches, and five halvings."""
PROBED: Final = 5
"""Files that are looked into behind a damaged one, to see whether leaving it out would help."""
MAX_BAD_HINT: Final = "--max-bad N leaves out up to N damaged files and lists them"
WINDOW: Final = 24
"""Longest window by default: an hour in, an hour out, at 5 minutes."""


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How to pack.

    Attributes:
        crop: Supply of the grid to keep; None for all of it.
        tile: Side of the square tiles to cut it into, pixels; None for none.
        stride: Pixels from tile to tile; None for the tile's side.
        window: Longest window that shall be read, in frames; None for 24, or what ready windows have.
        max_frames: Frames of a sequence at most.
        cadence_s: Seconds from frame to frame.
        shard_bytes: Size that shards shall not pass by much.
        max_bad: Input files that may be damaged; they are listed and leave gaps.
        allow_period: Also pack values that are sums or means over another span than the cadence.
        span: End times of the frames that are packed; None for all.
    """

    crop: Crop | None = None
    tile: int | None = None
    stride: int | None = None
    window: int | None = WINDOW
    max_frames: int = 144
    cadence_s: int = 300
    shard_bytes: int = 256 * MEGABYTE
    max_bad: int = 0
    allow_period: bool = False
    span: TimeSpan | None = None


@dataclass(frozen=True, kw_only=True)
class PackInput:
    """One source of an archive: what reads it, where it lies, and which part of its grid is packed."""

    source: Source
    paths: tuple[Place, ...]
    crop: Crop | None = None
    tile: int | None = None
    stride: int | None = None


@dataclass(frozen=True, kw_only=True)
class Supply:
    """What one source gives to the archive, as the survey found it.

    Attributes:
        source: What reads it.
        refs: Its frames.
        sha256s: Digest of each frame's input bytes, in the same order.
        header: What all of them agree on.
        crops: The parts of its grid, one an origin.
        first_origin: Position of the first of them among the archive's origins.
        tiled: Whether parts without any measurement are left out.
        ready: Whether its sequences are ready windows.
    """

    source: Source
    refs: tuple[FrameRef, ...]
    sha256s: tuple[str, ...]
    header: Header
    crops: tuple[Crop, ...]
    first_origin: int
    tiled: bool
    ready: bool

    def origins(self) -> list[Origin]:
        """List the origins that it gives to the archive."""
        shared = {name: getattr(self.header, name) for name in ("source", "licence", "scale_mmh", "grid")}
        return [
            Origin(**shared, crop=crop, period_s=self.header.period_s, recipe=recipe_of(self.source))
            for crop in self.crops
        ]

    def crop_of(self, unit: Sequence[PlannedSequence]) -> Crop:
        """Find the rectangle that holds a unit's tiles."""
        return around([self.crops[planned.origin - self.first_origin] for planned in unit])


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be packed, known before anything is written.

    Attributes:
        supplies: What the sources give.
        units: The sequences, those of the same frames together, in time order.
        plan: The archive; its draft's `packed_from` is the SHA-256 of options and input bytes, so that equal ones give
            equal archives.
        notes: What the user should know about what was left out.
    """

    supplies: tuple[Supply, ...]
    units: tuple[Unit, ...]
    plan: ArchivePlan
    notes: tuple[str, ...] = ()


def survey(
    paths: Sequence[Place], options: PackOptions, source: Source | None = None, more: Sequence[PackInput] = ()
) -> Job:
    """Find out what every frame says about itself, and plan the archive; nothing is written.

    Args:
        paths: Files, folders, archives and objects of stores.
        options: How to pack; crop and tiles are those of `paths`.
        source: What reads `paths`; None for KNMI composites.
        more: Further sources of the archive.

    Raises:
        DataError: Naming the file, whatever of it can be known without decoding pixels.
    """
    first = PackInput(
        source=source or KnmiSource(), paths=tuple(paths), crop=options.crop, tile=options.tile, stride=options.stride
    )
    inputs = (first, *more)
    scanned = [inside(asked.source.scan(asked.paths), options.span) for asked in inputs]
    window = _window(scanned, options)
    settled = replace(options, window=window, max_frames=max(window, options.max_frames))

    # The cheapest check comes first: file names alone tell a wrong cadence.
    for frames in scanned:
        if frames.windows is None:
            find_runs([ref.end_time_s for ref in frames.refs], settled.cadence_s)

    # The digest names the job: options, and every file's bytes and time.
    digest = hashlib.sha256(repr((SCHEMA_VERSION, replace(settled, span=None))).encode())
    notes = [note for frames in scanned for note in frames.notes]
    supplies: list[Supply] = []
    sequences: list[tuple[PlannedSequence, ...]] = []
    expected_bytes = 0.0
    for asked, frames in zip(inputs, scanned, strict=True):
        digest.update(repr((asked.source.settings, asked.crop, asked.tile, asked.stride)).encode())
        num_origins = sum(len(before.crops) for before in supplies)
        supply, num_bytes = _survey_source(asked, frames, settled, num_origins, notes)
        for ref, sha256 in zip(supply.refs, supply.sha256s, strict=True):
            digest.update(ref.end_time_s.to_bytes(8, "little", signed=True) + bytes.fromhex(sha256))

        times_s = [ref.end_time_s for ref in supply.refs]
        planned = cut_sequences(times_s, frames.windows, settled.cadence_s, window, settled.max_frames)
        # Gzip-compressed composites and Blosc2 buffers are about as long a pixel: the files' sizes tell the shards'.
        stored = sum(sequence.num_frames for sequence in planned) / len(times_s)
        pixels = sum(crop.rows * crop.cols for crop in supply.crops)
        expected_bytes += num_bytes * stored * pixels / (supply.header.grid.rows * supply.header.grid.cols)
        supplies.append(supply)
        sequences.append(planned)

    # Enough shards for the expected bytes, and for as many readers as are usual.
    _check_fit(supplies)
    notes += _untrainable(supplies[0], options)
    num_shards = max(-int(-expected_bytes // settled.shard_bytes), MIN_SHARDS)
    units = _units(supplies, sequences, num_shards)
    plan = _plan(supplies, units, min(num_shards, len(units)), window, settled, digest.hexdigest())
    return Job(supplies=tuple(supplies), units=units, plan=plan, notes=tuple(notes))


def _survey_source(
    asked: PackInput, scanned: Found, options: PackOptions, first_origin: int, notes: list[str]
) -> tuple[Supply, int]:
    """Read what every frame of a source says about itself; gives the part, and the bytes of its input.

    With `max_bad`, frames are decoded too, and what is damaged is left out.
    """
    refs: list[FrameRef] = []
    sha256s: list[str] = []
    bad: list[str] = []
    first: Header | None = None
    num_bytes = 0
    ahead = surveyed_ahead(asked.source, scanned.refs)
    for ref, result in tqdm(ahead, total=len(scanned.refs), desc="checking", unit=" frames", mininterval=0.5):
        try:
            surveyed = result()
            if options.max_bad:
                grid = surveyed.header.grid
                asked.source.read(ref, asked.crop or Crop(row0=0, row1=grid.rows, col0=0, col1=grid.cols))
        except DataError as error:
            # No number of damaged files helps where the command asks for what the files do not hold.
            if scanned.windows is not None or (not options.max_bad and isinstance(error, ChoiceError)):
                raise
            bad.append(str(error))
            if len(bad) > options.max_bad:
                is_rest_sound = first is not None or _is_any_sound(asked.source, scanned.refs, len(bad))
                _refuse_damaged(bad, options.max_bad, error, is_rest_sound=is_rest_sound)
            continue

        # The first good frame sets what all others must agree with.
        if first is None:
            first = surveyed.header
            _check_period(ref, first, options)
        if not refs and asked.crop is not None:
            asked.crop.check_inside(first.grid.rows, first.grid.cols)
        _check_agreement(ref, surveyed.header, refs[0] if refs else ref, first)
        refs.append(ref)
        sha256s.append(surveyed.sha256)
        notes += [note for note in surveyed.notes if note not in notes]
        num_bytes += surveyed.num_bytes

    if first is None:
        raise DataError(f"all {len(bad)} frames are damaged; the first: {bad[0]}")
    crops = cut_tiles(first.grid, asked.crop, asked.tile, asked.stride)
    notes += [f"left out: {line}" for line in bad]
    notes += beyond_tiles(first.grid, asked.crop, crops) if asked.tile is not None else ()
    supply = Supply(
        source=asked.source,
        refs=tuple(refs),
        sha256s=tuple(sha256s),
        header=first,
        crops=crops,
        first_origin=first_origin,
        tiled=asked.tile is not None,
        ready=scanned.windows is not None,
    )
    return supply, num_bytes


def _is_any_sound(source: Source, refs: Sequence[FrameRef], num_bad: int) -> bool:
    """Find out whether a frame among those behind the bad ones can be read, or all are wrong in the same way."""
    for ref in refs[num_bad : num_bad + PROBED]:
        with suppress(DataError):
            source.survey(ref)
            return True
    return False


def _refuse_damaged(bad: Sequence[str], max_bad: int, error: DataError, *, is_rest_sound: bool) -> NoReturn:
    """Refuse more damaged files than may be: all that was found wrong up to here, and what helps."""
    if not is_rest_sound:
        # Leaving files out would leave nothing: the source or its options are not theirs.
        more = f"; none of the first {len(bad)} files and those behind can be read" if max_bad else ""
        raise DataError(f"{error}{more}") from error
    if not max_bad:
        raise DataError(f"{error} ({MAX_BAD_HINT})") from error
    listed = "".join(f"\n  {line}" for line in bad)
    raise DataError(
        f"more damaged files than --max-bad {max_bad} lets be left out: fetch them again, or allow more{listed}"
    ) from error


def _untrainable(supply: Supply, options: PackOptions) -> tuple[str, ...]:
    """Note where no model can be trained on whole frames of this size, and which crop would do."""
    crop = supply.crops[0]
    rows, cols = (side // SIDES * SIDES for side in (crop.rows, crop.cols))
    if options.tile is not None or (rows, cols) == (crop.rows, crop.cols):
        return ()

    advice = "a larger --crop is needed"
    if rows and cols:
        nearest = Crop(row0=crop.row0, row1=crop.row0 + rows, col0=crop.col0, col1=crop.col0 + cols)
        advice = f"--crop {nearest} is the nearest that fits"
    return (
        f"note: nothing here can be trained on whole frames of {crop.rows} x {crop.cols} pixels; expected sides that "
        f"are multiples of {SIDES}: {advice}",
    )


def _check_agreement(ref: FrameRef, header: Header, first_ref: FrameRef, first: Header) -> None:
    """Check that a frame is of the same product as the first one."""
    for name in ("grid", "scale_mmh", "period_s", "missing_codes", "licence", "source"):
        value = getattr(header, name)
        expected = getattr(first, name)
        if value != expected:
            advice = "pack them apart"
            if name == "source":
                advice += ", or name them with --name (odim, importer) if they are one product"
            raise DataError(
                f"{ref}: {name} is {value}, but {expected} in {first_ref}; expected one product in one archive: "
                f"{advice}"
            )


def _check_period(ref: FrameRef, header: Header, options: PackOptions) -> None:
    """Check that values are of one moment or of the span from frame to frame, or that others were asked for.

    Values over longer spans hold the same rain several times: motion is blurred, and every score flatters.
    """
    period_s = header.period_s
    if options.allow_period or period_s in (None, 0, options.cadence_s):
        return
    assert period_s is not None
    raise ChoiceError(
        f"{ref}: its values are sums or means over {period_s / 60:g} min, but its frames come every "
        f"{options.cadence_s / 60:g} min; expected rates of the moment or over {options.cadence_s / 60:g} min: choose "
        "another quantity or product, or pack these as they are with --allow-period"
    )


def _check_fit(supplies: Sequence[Supply]) -> None:
    """Check that the sources can stand in one archive."""
    first = supplies[0].crops[0]
    for number, supply in enumerate(supplies):
        # Each source is compared with those before it, and all frames with the first one's.
        for other in supplies[:number]:
            _check_same_source(other, supply)
        crop = supply.crops[0]
        if (crop.rows, crop.cols) != (first.rows, first.cols):
            raise DataError(
                f"frames of {supply.header.source} would have {crop.rows} x {crop.cols} pixels, those of "
                f"{supplies[0].header.source} {first.rows} x {first.cols}; expected one size in one archive: choose it "
                "with --crop or --tile"
            )
    check_origins([origin for supply in supplies for origin in supply.origins()], first.rows, first.cols)


def _check_same_source(first: Supply, second: Supply) -> None:
    """Check that two inputs of one source are parts of one product, and none of them is there twice."""
    source = second.header.source
    if first.header.source != source:
        return
    for name in ("licence", "scale_mmh"):
        value = getattr(second.header, name)
        expected = getattr(first.header, name)
        if value != expected:
            raise DataError(
                f"{name} of {source} is {value} in one input, {expected} in another; expected one: state it alike, or "
                "tell the two apart with --name (odim, importer)"
            )
    shared = next((origin for origin in second.origins() if origin in first.origins()), None)
    if shared is not None:
        raise DataError(
            f"two inputs hold rows and columns {shared.crop} of {source}; expected each part once: name all files of "
            "one source together, without + between them"
        )


def _window(scanned: Sequence[Found], options: PackOptions) -> int:
    """Settle the longest window: that of ready windows, or what was asked for."""
    # Ready windows cannot be cut, so their length is the archive's.
    lengths = {frames.windows[0].num_frames for frames in scanned if frames.windows is not None}
    if not lengths:
        return options.window or WINDOW
    if len(lengths) > 1 or options.window not in (None, *lengths):
        raise DataError(
            f"ready windows have {' and '.join(map(str, sorted(lengths)))} frames, --window is {options.window}; "
            "ready windows are packed as they are: leave --window away, and pack those of several lengths apart"
        )
    return lengths.pop()


def _units(supplies: Sequence[Supply], sequences: Sequence[Sequence[PlannedSequence]], wanted: int) -> tuple[Unit, ...]:
    """Make the units of all sources, in time order, with keys that tell origins apart where there are several."""
    units = [
        unit
        for supply, planned in zip(supplies, sequences, strict=True)
        for unit in spread_tiles(planned, supply.crops, supply.first_origin, -(-wanted // len(supplies)))
    ]
    if sum(len(supply.crops) for supply in supplies) > 1:
        units = [
            tuple(replace(planned, key=f"{planned.key}-{planned.origin:04d}") for planned in unit) for unit in units
        ]
    # Time order, so that shards dealt one by one hold frames of all times.
    return tuple(sorted(units, key=lambda unit: (unit[0].start_s, unit[0].origin)))


def _plan(
    supplies: Sequence[Supply], units: Sequence[Unit], num_shards: int, window: int, options: PackOptions, digest: str
) -> ArchivePlan:
    """Draft the index, and deal the units to the shards one by one."""
    origins = [origin for supply in supplies for origin in supply.origins()]
    draft = draft_index(
        origins, cadence_s=options.cadence_s, window=window, max_frames=options.max_frames, packed_from=digest
    )
    # Dealt one by one, every shard holds frames of all times.
    return ArchivePlan(
        draft=draft,
        sequences=tuple(
            tuple(planned for unit in units[number::num_shards] for planned in unit) for number in range(num_shards)
        ),
        ready=frozenset(planned.key for unit in units for planned in unit if supply_of(supplies, planned).ready),
    )


def supply_of(supplies: Sequence[Supply], planned: PlannedSequence) -> Supply:
    """Find what a sequence comes from."""
    # First origins rise from supply to supply.
    return next(supply for supply in reversed(supplies) if supply.first_origin <= planned.origin)
