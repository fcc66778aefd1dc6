"""Read whatever xarray opens with coordinates as CF has them, as counts of 0.01 mm/h (extra `formats`).

NetCDF, GRIB, GeoTIFF and RADOLAN are files of one frame or several; Zarr is a folder or a prefix of an object store, of
which nothing is read but its metadata and the frames that are asked for.
"""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from ...counts import QUANTUM_MMH, Rounding, requantise
from ...errors import ConfigError, DataError
from ...frames import Crop, iso_time
from ...json_checks import JsonRecord
from ...units import ZR
from ..files import Place, RadarFile, digest_of, files_of
from ..hdf5 import ChoiceError
from ..places.buckets import Bucket
from ..source import Found, FrameRef, Header, Reading, Surveyed, in_time_order, without_copies
from .frames import Layer, Wanted, layer_of
from .name_times import NEEDED, NameTimes
from .opening import ENGINES, ZARR_MARKS, engine_for, explaining, is_known, is_zarr, opened
from .zarr_frames import ZarrFrames, open_zarr

GZIP_ENDING: Final = ".gz"
MAX_OBJECT_BYTES: Final = 2**30
"""Longest object that is held, and written to a temporary file, at once."""
NOT_STATED: Final = "not stated"
MINUTE_S: Final = 60
MAX_PERIOD_MIN: Final = 1440
KNOWN: Final = "expected NetCDF, Zarr, GRIB, GeoTIFF or RADOLAN"


@dataclass(frozen=True, kw_only=True)
class GriddedRef:
    """A frame of a file or a Zarr store.

    Attributes:
        place: The file, the object of a bucket, or the opened store of Zarr.
        index: Position of the frame there.
        end_time_s: Its end time, epoch seconds UTC.
        is_only: Whether it is the only one there.
    """

    place: Path | RadarFile | ZarrFrames
    index: int
    end_time_s: int
    is_only: bool

    def __str__(self) -> str:
        """Name the frame as messages do."""
        return str(self.place) if self.is_only else f"{self.place}, time {iso_time(self.end_time_s)}"


@dataclass(frozen=True, kw_only=True)
class XarraySource(JsonRecord):
    """A variable of what xarray opens, for packing (`data.sources.source.Source`).

    Attributes:
        variable: Its name.
        engine: xarray's engine; None for the usual one of each file's format.
        units: Its units, where the files state none or wrong ones.
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
        """Find the frames in files, folders and Zarr stores, in time order.

        Raises:
            ConfigError: About the options, before any file is looked at.
            DataError: About the files.
        """
        self._check_options()
        refs: list[GriddedRef] = []
        others: list[Path | RadarFile] = []
        for path in paths:
            for place in _places(path):
                try:
                    refs += self._frames_in(place)
                # A folder may hold files of other kinds; one that was named may not be another.
                except ChoiceError:
                    if place == path or isinstance(place, Bucket):
                        raise
                    others.append(place)

        if not refs:
            found = f"{len(others)} other files, {self._such_as(others)}" if others else KNOWN
            raise DataError(f"nothing of {self.variable} in {', '.join(map(str, paths)) or 'no files'}; {found}")
        kept, notes = without_copies(refs, _identity)
        if others:
            notes.append(f"{len(others)} files are not read, {self._such_as(others)}")
        return Found(refs=in_time_order(kept), notes=tuple(notes))

    def survey(self, ref: FrameRef) -> Surveyed:
        """Read what a frame says about itself, and digest what it is stored in.

        The pixels of files are looked at too; those of stores, which may hold terabytes, when they are packed.
        """
        assert isinstance(ref, GriddedRef)
        if isinstance(ref.place, ZarrFrames):
            with explaining(str(ref), "zarr"):
                header = self._header(ref.place.layer, ref)
            return Surveyed(header=header, num_bytes=ref.place.num_bytes(), sha256=ref.place.listed_digest(ref.index))

        with _on_disk(ref.place) as path:
            with self._layer(path) as layer:
                header = self._header(layer, ref)
                _counts(layer, ref, Crop(row0=0, row1=header.grid.rows, col0=0, col1=header.grid.cols))
                frames = layer.num_frames
            return Surveyed(header=header, num_bytes=path.stat().st_size // frames, sha256=_digest_of_state(path))

    def read(self, ref: FrameRef, crop: Crop) -> Reading:
        """Read a frame, and give a part of it as counts."""
        assert isinstance(ref, GriddedRef)
        # Digested after it was read: whoever wrote to it before that is found out.
        if isinstance(ref.place, ZarrFrames):
            with explaining(str(ref), "zarr"):
                counts_hw, rounding = _cropped(ref.place.layer, ref, crop)
            return Reading(counts=counts_hw, sha256=ref.place.digest(ref.index), rounding=rounding)

        with _on_disk(ref.place) as path:
            with self._layer(path) as layer:
                counts_hw, rounding = _cropped(layer, ref, crop)
            return Reading(counts=counts_hw, sha256=_digest_of_state(path), rounding=rounding)

    @property
    def _wanted(self) -> Wanted:
        period_s = None if self.period_min is None else round(self.period_min * MINUTE_S)
        return Wanted(variable=self.variable, units=self.units, period_s=period_s, zr=self.zr)

    def _check_options(self) -> None:
        if self.engine is not None and self.engine not in ENGINES:
            raise ConfigError(f"--engine {self.engine}: expected one of {', '.join(ENGINES)}")
        if self.period_min is not None and not (0 <= self.period_min <= MAX_PERIOD_MIN):
            raise ConfigError(f"--period-min {self.period_min:g}: expected 0 (of one moment) to {MAX_PERIOD_MIN}")
        if self.time_patterns:
            NameTimes(patterns=self.time_patterns).check()

    def _frames_in(self, place: Place | RadarFile) -> list[GriddedRef]:
        """List the frames of a file or store.

        Raises:
            ChoiceError: It holds no frames that were asked for.
            DataError: It cannot be read.
        """
        if isinstance(place, Bucket) or (isinstance(place, Path) and place.is_dir()):
            frames = open_zarr(place, self._wanted)
            with explaining(str(frames), "zarr"):
                times_s = frames.layer.times_s()
            return _refs(frames, times_s)

        if self.time_patterns:
            time_s = NameTimes(patterns=self.time_patterns).time_of(place.name)
            if time_s is None:
                patterns = " or ".join(map(repr, self.time_patterns))
                raise ChoiceError(f"{place}: its name does not fit --time-pattern {patterns}; {NEEDED}")
            return _refs(place, np.array([time_s], np.int64))
        with _on_disk(place) as path, self._layer(path) as layer:
            return _refs(place, layer.times_s())

    def _such_as(self, others: Sequence[Path | RadarFile]) -> str:
        """Say why a file is not read, one of a known format before one of another."""
        files = (path for path in others if isinstance(path, Path))
        example = next((path for path in files if path.is_dir() or is_known(path)), others[0])
        try:
            self._frames_in(example)
        except ChoiceError as error:
            return f"such as {example}: {str(error).removeprefix(f'{example}: ')}"
        return f"such as {example}"

    @contextmanager
    def _layer(self, path: Path) -> Iterator[Layer]:
        """Open a file that holds frames."""
        with opened(path, self.engine) as dataset:
            yield layer_of(dataset, self._wanted, path, engine_for(path, self.engine))

    def _header(self, layer: Layer, ref: GriddedRef) -> Header:
        return Header(
            end_time_s=ref.end_time_s,
            scale_mmh=QUANTUM_MMH,
            missing_codes=(),
            grid=layer.placed.grid,
            source=self.name or layer.product,
            licence=self.licence or layer.licence or NOT_STATED,
            period_s=layer.period_s,
        )


def _places(path: Place) -> Iterator[Place | RadarFile]:
    """List a file, a Zarr store, or the files and stores of a folder; of a bucket one store, or objects."""
    if isinstance(path, Bucket):
        # Zarr is many objects below one prefix; a pattern names objects that are files.
        is_pattern = any(character in path.pattern for character in "*?%")
        if not path.pattern or (is_pattern and ".zarr" in path.pattern):
            raise ConfigError(
                f"{path}: of a bucket Zarr is read one store at a time; expected the prefix that it lies below, or a "
                "pattern of files such as **.tif"
            )
        if is_pattern:
            yield from (RadarFile(path=Path(stored.name), stored=stored) for stored in path.objects())
        else:
            yield path
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
            yield file


@contextmanager
def _on_disk(place: Path | RadarFile) -> Iterator[Path]:
    """Give a file; an object, or what is compressed, as a temporary one, whose name no message shows."""
    with ExitStack() as stack:
        path = place if isinstance(place, Path) else stack.enter_context(place.on_disk(MAX_OBJECT_BYTES))
        try:
            if path.suffix.lower() == GZIP_ENDING and not is_known(path):
                path = stack.enter_context(_unpacked(path))
            yield path
        except DataError as error:
            raise type(error)(str(error).replace(str(path), str(place))) from error


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """Give what gzip packed, as MRMS publishes its GRIB, as a temporary file."""
    with TemporaryDirectory(prefix="rainspark-") as folder:
        unpacked = Path(folder) / path.stem
        try:
            with gzip.open(path) as packed:
                data = packed.read(MAX_OBJECT_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} cannot be decompressed ({error}): fetch it again or remove it") from error
        if len(data) > MAX_OBJECT_BYTES:
            raise DataError(f"{path} holds more than {MAX_OBJECT_BYTES:,} bytes; expected files of frames: remove it")
        unpacked.write_bytes(data)
        yield unpacked


def _identity(ref: GriddedRef) -> str:
    """Tell frames apart by their files' bytes and their places there; those of stores of Zarr are never copies."""
    if isinstance(ref.place, ZarrFrames):
        return f"{ref.place} {ref.index}"
    with _on_disk(ref.place) as path:
        return f"{_digest_of_state(path)} {ref.index}"


def _refs(place: Path | RadarFile | ZarrFrames, times_s: npt.NDArray[np.int64] | None) -> list[GriddedRef]:
    if times_s is None:
        raise ChoiceError(
            f"{place} states no time of its own; expected a coordinate with the standard_name time: give "
            "--time-pattern for the one in the files' names"
        )
    return [
        GriddedRef(place=place, index=index, end_time_s=int(time_s), is_only=len(times_s) == 1)
        for index, time_s in enumerate(times_s)
    ]


def _cropped(layer: Layer, ref: GriddedRef, crop: Crop) -> tuple[npt.NDArray[np.uint16], Rounding]:
    """Read a part of a frame that is checked to lie in it."""
    crop.check_inside(layer.placed.grid.rows, layer.placed.grid.cols)
    return _counts(layer, ref, crop)


def _counts(layer: Layer, ref: GriddedRef, crop: Crop) -> tuple[npt.NDArray[np.uint16], Rounding]:
    """Read a part of a frame as counts."""
    rain_hw = layer.rain_mmh(ref.index)
    part_hw = rain_hw[crop.row0 : crop.row1, crop.col0 : crop.col1]
    counts, rounding = requantise(
        part_hw.ravel(),
        lambda at: (crop.row0 + at // crop.cols, crop.col0 + at % crop.cols),
        frame_pixels=rain_hw.size,
    )
    return counts.reshape(part_hw.shape), rounding


def _digest_of_state(path: Path) -> str:
    """Digest a file's bytes, once while it is not written to: one may hold thousands of frames."""
    status = path.stat()
    return _digest(path, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=4096)
def _digest(path: Path, _state: tuple[int, ...]) -> str:
    return digest_of(path)
