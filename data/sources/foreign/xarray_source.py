"""Read whatever xarray opens with coordinates as CF has them, as counts of 0.01 mm/h (extra `formats`).

NetCDF, GRIB, GeoTIFF and RADOLAN are files of one frame or several; Zarr is a folder or a prefix of an object store, of
which nothing is read but its metadata and the frames that are asked for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from ...counts import QUANTUM_MMH
from ...errors import ConfigError, DataError
from ...frames import Crop, iso_time
from ...json_checks import JsonRecord
from ...units import ZR
from ..files import Place, RadarFile, files_of
from ..hdf5 import ChoiceError
from ..places.buckets import Bucket
from ..source import UNSTATED, Found, FrameRef, Header, Reading, Surveyed, in_time_order, without_copies
from .at_hand import AtHand, at_hand
from .frames import Layer, Wanted, layer_of
from .name_times import NEEDED, NameTimes
from .opening import ENGINES, ZARR_MARKS, engine_for, explaining, is_known, is_zarr, opened
from .zarr_frames import ZarrFrames, is_zarr_below, open_zarr

MINUTE_S: Final = 60
MAX_PERIOD_MIN: Final = 1440
ZONES_S: Final = 26 * 3600
"""Furthest that two zones' times lie apart; a time that lies further away is a placeholder."""
USUAL_NAMES: Final = ("*%Y%m%d%H%M*", "*%Y%m%d?%H%M*", "*%Y%m%d%H%M%S*", "*%Y%m%d?%H%M%S*")
"""How names mostly hold their times."""
KNOWN: Final = "expected NetCDF, Zarr, GRIB, GeoTIFF or RADOLAN"


@dataclass(frozen=True, kw_only=True)
class GriddedRef:
    """A frame of a file or a Zarr store.

    Attributes:
        holder: The file or object, or the opened store.
        index: Position of the frame there.
        end_time_s: Its end time, epoch seconds UTC.
        is_only: Whether it is the only one there.
    """

    holder: RadarFile | ZarrFrames
    index: int
    end_time_s: int
    is_only: bool

    def __str__(self) -> str:
        """Name the frame as messages do."""
        return str(self.holder) if self.is_only else f"{self.holder}, time {iso_time(self.end_time_s)}"


@dataclass(frozen=True, kw_only=True)
class XarraySource(JsonRecord):
    """A variable of what xarray opens, for packing (`data.sources.source.Source`).

    Attributes:
        variable: Its name.
        engine: xarray's engine; None for the usual one of each file's format.
        units: Its units, where the files state none or wrong ones.
        scale: Gain and offset of its numbers, where the files do not say.
        missing: Numbers that are no measurement, where the files do not say.
        period_min: Minutes over which its values are sums or means, where the files do not say.
        zr: From reflectivity to rain; needed for dBZ.
        name: The product's name; None for the producer's and the variable's.
        licence: Licence of the data; None for what the files state.
        time_patterns: Names of files that hold no time (data.sources.foreign.name_times).
    """

    kind: ClassVar[str] = "xarray"
    variable: str
    engine: str | None = None
    units: str | None = None
    scale: tuple[float, float] | None = None
    missing: tuple[float, ...] = ()
    period_min: float | None = None
    zr: ZR | None = None
    name: str | None = None
    licence: str | None = None
    time_patterns: tuple[str, ...] = ()

    @property
    def settings(self) -> str:
        """Give all of these."""
        return f"xarray {self!r}"

    def scan(self, paths: Sequence[Place]) -> Found:
        """Find the frames in files, folders, objects of stores, and Zarr stores, in time order.

        Raises:
            ConfigError: About the options, before any file is looked at.
            DataError: About the files.
        """
        self._check_options()
        refs: list[GriddedRef] = []
        others: list[RadarFile] = []
        for path in paths:
            for holder in _holders(path):
                try:
                    refs += self._frames_in(holder)
                # A folder may hold files of other kinds; one that was named may not be another.
                except ChoiceError:
                    if not isinstance(holder, RadarFile) or holder.path == path:
                        raise
                    others.append(holder)

        if not refs:
            left = f"{len(others)} other files, {self._such_as(others)}" if others else KNOWN
            raise DataError(f"nothing of {self.variable} in {', '.join(map(str, paths)) or 'no files'}; {left}")
        kept, notes = without_copies(refs, _identity)
        if others:
            notes.append(f"{len(others)} files are not read, {self._such_as(others)}")
        return Found(refs=in_time_order(kept), notes=tuple(notes))

    def survey(self, ref: FrameRef) -> Surveyed:
        """Read what a frame says about itself, and digest what it is stored in.

        The pixels of files are looked at too; those of stores, which may hold terabytes, when they are packed.
        """
        assert isinstance(ref, GriddedRef)
        if isinstance(ref.holder, ZarrFrames):
            with explaining(str(ref), "zarr"):
                header, sha256 = self._header(ref.holder.layer, ref), ref.holder.listed_digest(ref.index)
            notes = ref.holder.layer.notes
            return Surveyed(header=header, num_bytes=ref.holder.num_bytes(), sha256=sha256, notes=notes)

        with at_hand(ref.holder) as file:
            with self._layer(ref.holder, file) as layer:
                self._check_named_time(layer, ref)
                header = self._header(layer, ref)
                layer.counts(ref.index, Crop(row0=0, row1=header.grid.rows, col0=0, col1=header.grid.cols))
                num_bytes, notes = file.num_bytes // layer.num_frames, layer.notes
            return Surveyed(header=header, num_bytes=num_bytes, sha256=file.sha256(), notes=notes)

    def read(self, ref: FrameRef, crop: Crop) -> Reading:
        """Read a frame, and give a part of it as counts."""
        assert isinstance(ref, GriddedRef)
        # Digested after it was read: whoever wrote to it before that is found out.
        if isinstance(ref.holder, ZarrFrames):
            with explaining(str(ref), "zarr"):
                counts_hw, rounding = ref.holder.layer.counts(ref.index, crop)
                return Reading(counts=counts_hw, sha256=ref.holder.digest(ref.index), rounding=rounding)
        with at_hand(ref.holder) as file:
            with self._layer(ref.holder, file) as layer:
                counts_hw, rounding = layer.counts(ref.index, crop)
            return Reading(counts=counts_hw, sha256=file.sha256(), rounding=rounding)

    @property
    def _wanted(self) -> Wanted:
        period_s = None if self.period_min is None else round(self.period_min * MINUTE_S)
        return Wanted(
            variable=self.variable,
            units=self.units,
            scale=self.scale,
            missing=self.missing,
            period_s=period_s,
            zr=self.zr,
        )

    def _check_options(self) -> None:
        if self.engine is not None and self.engine not in ENGINES:
            raise ConfigError(f"--engine {self.engine}: expected one of {', '.join(ENGINES)}")
        if self.period_min is not None and not (0 <= self.period_min <= MAX_PERIOD_MIN):
            raise ConfigError(f"--period-min {self.period_min:g}: expected 0 (of one moment) to {MAX_PERIOD_MIN}")
        if self.time_patterns:
            NameTimes(patterns=self.time_patterns).check()

    def _frames_in(self, holder: RadarFile | Path | Bucket) -> list[GriddedRef]:
        """List the frames of a file, or of a Zarr store.

        Raises:
            ChoiceError: It holds no frames that were asked for.
            DataError: It cannot be read.
        """
        if not isinstance(holder, RadarFile):
            frames = open_zarr(holder, self._wanted)
            with explaining(str(frames), "zarr"):
                times_s = frames.layer.times_s()
            return _refs(frames, times_s)

        if self.time_patterns:
            time_s = NameTimes(patterns=self.time_patterns).time_of(holder.name)
            if time_s is None:
                patterns = " or ".join(map(repr, self.time_patterns))
                raise ChoiceError(f"{holder}: its name does not fit --time-pattern {patterns}; {NEEDED}")
            return _refs(holder, np.array([time_s], np.int64))
        try:
            with at_hand(holder) as file, self._layer(holder, file) as layer:
                return _refs(holder, layer.times_s())
        except ChoiceError:
            raise
        except DataError:
            # Damaged: the survey names it, at the time that its name seems to state.
            time_s = NameTimes(patterns=USUAL_NAMES).time_of(holder.name)
            if time_s is None:
                raise
            return _refs(holder, np.array([time_s], np.int64))

    def _such_as(self, others: Sequence[RadarFile]) -> str:
        """Say why a file is not read, one of a known format before one of another."""
        example = next((file for file in others if is_known(file.path)), others[0])
        try:
            self._frames_in(example)
        except ChoiceError as error:
            return f"such as {example}: {str(error).removeprefix(f'{example}: ')}"
        return f"such as {example}"

    @contextmanager
    def _layer(self, file: RadarFile, copy: AtHand) -> Iterator[Layer]:
        """Open a file that is at hand."""
        with opened(copy.path, self.engine, str(file)) as dataset:
            engine = engine_for(copy.path, self.engine, str(file))
            yield layer_of(dataset, self._wanted, copy.path, engine)

    def _check_named_time(self, layer: Layer, ref: GriddedRef) -> None:
        """Compare a time of a name with the one that the file states, if any; raises DataError where they differ."""
        if not self.time_patterns:
            return
        if layer.num_frames != 1:
            raise DataError(
                f"{ref} holds {layer.num_frames} frames, and --time-pattern states the time of one: leave it away "
                "where the files state their times, or split them"
            )
        times_s = None
        # A file whose time cannot be read is what patterns are for.
        with suppress(DataError):
            times_s = layer.times_s()
        if times_s is not None and MINUTE_S <= abs(int(times_s[0]) - ref.end_time_s) <= ZONES_S:
            raise DataError(
                f"{ref}: its name says {iso_time(ref.end_time_s)}, its content {iso_time(int(times_s[0]))}; expected "
                "the same end time in UTC: write %z for a zone in the name, or leave --time-pattern away"
            )

    def _header(self, layer: Layer, ref: GriddedRef) -> Header:
        return Header(
            end_time_s=ref.end_time_s,
            scale_mmh=QUANTUM_MMH,
            missing_codes=(),
            grid=layer.placed.grid,
            source=self.name or layer.product,
            licence=self.licence or layer.licence or UNSTATED,
            period_s=layer.period_s,
        )


def _holders(path: Place) -> Iterator[RadarFile | Path | Bucket]:
    """List a file, the files and Zarr stores of a folder, a Zarr store, or the objects of a store."""
    if isinstance(path, Bucket):
        if path.pattern and not any(character in path.pattern for character in "*?%") and is_zarr_below(path):
            yield path
            return
        objects = path.objects()
        store = next((stored for stored in objects if stored.name.rpartition("/")[2] in ZARR_MARKS), None)
        if store is not None:
            raise ConfigError(f"{path} holds Zarr ({store}); expected the prefix of one store, without wildcards")
        yield from (RadarFile(path=Path(stored.name), stored=stored) for stored in objects)
        return

    if path.is_dir() and is_zarr(path):
        yield path
        return
    stores: list[Path] = []
    for file in files_of(path, ("",)):
        if any(file.is_relative_to(store) for store in stores):
            continue
        if file.name in ZARR_MARKS:
            stores.append(file.parent)
            yield file.parent
        else:
            yield RadarFile(path=file)


def _identity(ref: GriddedRef) -> str:
    """Tell frames apart by their files' bytes and their places there; those of stores are never copies."""
    if isinstance(ref.holder, ZarrFrames):
        return str(ref)
    with at_hand(ref.holder) as file:
        return f"{file.sha256()} {ref.index}"


def _refs(holder: RadarFile | ZarrFrames, times_s: npt.NDArray[np.int64] | None) -> list[GriddedRef]:
    if times_s is None:
        raise ChoiceError(
            f"{holder} states no time of its own; expected a coordinate with the standard_name time: give "
            "--time-pattern for the one in the files' names"
        )
    return [
        GriddedRef(holder=holder, index=index, end_time_s=int(time_s), is_only=len(times_s) == 1)
        for index, time_s in enumerate(times_s)
    ]
