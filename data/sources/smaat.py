"""SmaAt-UNet's collected HDF5: KNMI composites of years in one file, as frames or as ready windows, put back to counts.

Groups train and test, each with `images` and `timestamps`: Trebing, Stanczyk and Mehrkanoon (2021), SmaAt-UNet:
precipitation nowcasting using a small attention-UNet architecture, doi:10.1016/j.patrec.2021.01.036. The values are mm
in 5 minutes divided by 47.83, so that a value of 1 is 4783 counts of 0.01 mm.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from ..counts import Rounding
from ..errors import DataError
from ..frames import Crop, Grid, iso_time
from ..sequences import Run
from ..units import KNMI_MMH_PER_COUNT, MISSING_COUNT, NL50_MAX_MM_5MIN
from . import hdf5
from .blocks import BlockReader
from .files import files_of
from .knmi import ALWAYS_MISSING, LICENCE, PRODUCT_TIME, parse_product_time
from .source import Found, FrameRef, Header, Reading, Surveyed

GROUPS: Final = ("train", "test")
FILE_ENDINGS: Final = (".h5", ".hdf5", ".hdf")
KIND: Final = "SmaAt-UNet's collected HDF5"
COUNTS_OF_ONE: Final = NL50_MAX_MM_5MIN * 100
"""Counts of 0.01 mm that a value of 1 stands for."""

TOLERANCE: Final = 0.02
"""Furthest that a value may lie from a whole count: float32 and one division move the largest one by 0.004."""

PROJECTION: Final = "not published: SmaAt-UNet's crop of KNMI's stereographic 1 km grid"
DIGITS: Final = re.compile(r"\d{12}(?:\d{2})?", re.ASCII)
MAX_TIME_TEXT: Final = 64
TIMES_AT_ONCE: Final = 2**16
MAX_TIMES: Final = 2**25


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectedRef:
    """A frame of a collected file: its group, its window and place there, or, with inner -1, its place among frames."""

    path: Path
    group: str
    first: int
    inner: int
    end_time_s: int

    def __str__(self) -> str:
        """Name the frame as messages do."""
        place = f"window {self.first}, frame {self.inner}" if self.inner >= 0 else f"frame {self.first}"
        return f"{self.path}, /{self.group}/images, {place}"


@dataclass(kw_only=True)
class SmaatSource:
    """SmaAt-UNet's collected HDF5 for packing (`data.sources.source.Source`).

    Attributes:
        group: Which group to take: train, test or both.
        cadence_s: Seconds from frame to frame inside a ready window.
        skip_gaps: Leave out ready windows across gaps instead of refusing the file.
    """

    group: str = "both"
    cadence_s: int = 300
    skip_gaps: bool = False
    _readers: dict[tuple[Path, str], BlockReader] = field(default_factory=dict, repr=False)

    @property
    def settings(self) -> str:
        """Give all of these."""
        return f"smaat {self.group} {self.cadence_s} {self.skip_gaps}"

    def scan(self, paths: Sequence[Path]) -> Found:
        """Find the frames, in time order; or the ready windows, in the order of their first frames."""
        files = [file for path in paths for file in files_of(path, FILE_ENDINGS)]
        if not files:
            raise DataError(f"no HDF5 files in {', '.join(map(str, paths)) or 'nothing'}; expected {KIND}")
        frames: list[CollectedRef] = []
        windows: list[tuple[CollectedRef, ...]] = []
        for path in files:
            for group in GROUPS if self.group == "both" else (self.group,):
                with hdf5.opened(path, str(path), KIND) as file:
                    hdf5.check_layout(file, "smaat")
                reader = BlockReader(path, f"{group}/images", KIND)
                self._readers[path, group] = reader
                times_s = _times_of(path, group, reader.shape[: len(reader.shape) - 2])
                windows_s = times_s if times_s.ndim == 2 else times_s[:, None]
                refs = [
                    tuple(
                        CollectedRef(path=path, group=group, first=i, inner=j, end_time_s=int(time_s))
                        for j, time_s in enumerate(row, start=0 if times_s.ndim == 2 else -1)
                    )
                    for i, row in enumerate(windows_s)
                ]
                if times_s.ndim == 2:
                    windows += refs
                else:
                    frames += [ref for (ref,) in refs]
        if frames and windows:
            raise DataError(
                f"{frames[0].path} holds frames, {windows[0][0].path} ready windows; expected one kind: pack them apart"
            )
        return self._ready(windows) if windows else Found(refs=_in_time_order(frames))

    def survey(self, ref: FrameRef) -> Surveyed:
        """Say what the collection is, and digest the stored bytes that hold a frame."""
        assert isinstance(ref, CollectedRef)
        reader = self._readers[ref.path, ref.group]
        num_stored, sha256 = reader.digest(ref.first)
        rows, cols = reader.shape[-2:]
        header = Header(
            end_time_s=ref.end_time_s,
            scale_mmh=KNMI_MMH_PER_COUNT,
            missing_codes=ALWAYS_MISSING,
            grid=Grid(rows=rows, cols=cols, pixel_km=1.0, projection=PROJECTION, x0_km=0.0, y0_km=0.0),
            source="KNMI collected by SmaAt-UNet",
            licence=LICENCE,
        )
        items = reader.items * (reader.shape[1] if len(reader.shape) == 4 else 1)
        return Surveyed(header=header, num_bytes=-(-num_stored // items), sha256=sha256)

    def read(self, ref: FrameRef, crop: Crop) -> Reading:
        """Read a part of a frame as counts."""
        assert isinstance(ref, CollectedRef)
        block = self._readers[ref.path, ref.group].block(ref.first)
        values_hw = block.values[ref.first - block.first]
        if ref.inner >= 0:
            values_hw = values_hw[ref.inner]
        crop.check_inside(*values_hw.shape)
        part_hw = values_hw[crop.row0 : crop.row1, crop.col0 : crop.col1]
        return Reading(counts=_counts(part_hw, ref, crop), sha256=block.sha256, rounding=Rounding())

    def _ready(self, windows: Sequence[tuple[CollectedRef, ...]]) -> Found:
        """Keep the windows at the exact cadence, in time order."""
        lengths = sorted({len(window) for window in windows})
        if len(lengths) > 1:
            raise DataError(f"ready windows of {lengths} frames; expected one length: pack the groups or files apart")
        whole = [
            window
            for window in windows
            if all(b.end_time_s - a.end_time_s == self.cadence_s for a, b in pairwise(window))
        ]
        torn = len(windows) - len(whole)
        if torn and not self.skip_gaps:
            kept = set(whole)
            first = next(window for window in windows if window not in kept)
            raise DataError(
                f"{torn} of {len(windows)} ready windows are not {self.cadence_s / 60:g} min from frame to frame, such "
                f"as that of {first[0]}, {iso_time(first[0].end_time_s)} to {iso_time(first[-1].end_time_s)}; "
                "leave them out with --skip-gaps, or state the cadence (--cadence-min)"
            )
        if not whole:
            raise DataError(f"none of {len(windows)} ready windows is at the cadence; nothing to pack")
        whole.sort(key=lambda window: (window[0].end_time_s, str(window[0])))
        for before, after in pairwise(whole):
            if before[0].end_time_s == after[0].end_time_s:
                raise DataError(f"two windows of one time: {before[0]} and {after[0]}; expected one, pack them apart")
        length = lengths[0]
        notes = (f"{torn} of {len(windows)} ready windows lie across a gap and are left out",) if torn else ()
        return Found(
            refs=tuple(ref for window in whole for ref in window),
            windows=tuple(Run(first=i * length, num_frames=length) for i in range(len(whole))),
            notes=notes,
        )


def parse_time(text: str) -> int:
    """Read a timestamp, epoch seconds UTC: KNMI's, YYYYMMDDHHMM, or ISO 8601 (UTC where it says nothing).

    Raises:
        ValueError: It is none of them.
    """
    text = text.strip("\0 ")
    if PRODUCT_TIME.fullmatch(text.upper()):
        return parse_product_time(text)
    if DIGITS.fullmatch(text):
        time = datetime.strptime(text.ljust(14, "0"), "%Y%m%d%H%M%S")
    else:
        time = datetime.fromisoformat(text)
    if time.microsecond:
        raise ValueError("parts of a second")
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp())


def _times_of(path: Path, group: str, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Read a group's timestamps: (frames,) or (windows, frames), epoch seconds UTC."""
    name = f"/{group}/timestamps"
    with hdf5.opened(path, str(path), KIND) as file:
        stamps = hdf5.member(file, name[1:])
        if not isinstance(stamps, h5py.Dataset) or stamps.shape not in (shape, (*shape, 1)):
            found = f"of shape {stamps.shape}" if isinstance(stamps, h5py.Dataset) else "a group"
            raise DataError(f"{name} is {found}; expected {shape} or {(*shape, 1)}, one a frame of images")
        text = h5py.check_string_dtype(stamps.dtype)
        if text is None or (text.length or 0) > MAX_TIME_TEXT or stamps.size > MAX_TIMES:
            raise DataError(
                f"{name} is {stamps.dtype} {stamps.shape}; expected text of at most {MAX_TIME_TEXT} characters"
            )
        _check_text(stamps, name)
        times_s = np.empty(shape, np.int64)
        rows = max(1, TIMES_AT_ONCE // max(1, int(np.prod(shape[1:]))))
        for row in range(0, shape[0], rows):
            values = np.asarray(stamps[row : row + rows]).reshape(-1)
            times_s[row : row + rows].reshape(-1)[:] = [_stamp(value, name) for value in values]
    return times_s


def _check_text(stamps: Any, name: str) -> None:
    """Bound what HDF5 itself will decode: its gzip filter lets a chunk grow for as long as the stream goes on."""
    hdf5.check_storage(stamps, name)
    if stamps.chunks is None:
        return
    chunks: list[tuple[tuple[int, ...], int]] = []
    stamps.id.chunk_iter(lambda info: chunks.append((info.chunk_offset, info.size)))
    for offset, num_stored in chunks:
        hdf5.unfiltered(stamps, hdf5.stored_chunk(stamps, offset, num_stored), offset)


def _stamp(value: Any, name: str) -> int:
    text = value.decode("ascii", errors="replace") if isinstance(value, bytes) else str(value)
    try:
        if len(text) > MAX_TIME_TEXT:
            raise ValueError("too long")
        return parse_time(text)
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"{name} holds {text!r:.70}; expected times such as '26-AUG-2010;00:00:00.000', 201008260000 or "
            "2010-08-26T00:00:00"
        ) from error


def _in_time_order(frames: Sequence[CollectedRef]) -> tuple[CollectedRef, ...]:
    ordered = sorted(frames, key=lambda ref: ref.end_time_s)
    for before, after in pairwise(ordered):
        if before.end_time_s == after.end_time_s:
            raise DataError(
                f"two frames of one time, {iso_time(before.end_time_s)}: {before} and {after}; expected one: remove "
                "the other, or choose a --group"
            )
    return tuple(ordered)


def _counts(values_hw: npt.NDArray[Any], ref: CollectedRef, crop: Crop) -> npt.NDArray[np.uint16]:
    """Put values back to counts of 0.01 mm; NaN and KNMI's missing codes become 65535."""
    exact_hw = values_hw.astype(np.float64) * COUNTS_OF_ONE
    missing_hw = np.isnan(exact_hw)
    exact_hw[missing_hw] = 0
    whole_hw = np.rint(exact_hw)
    with np.errstate(invalid="ignore"):
        wrong_hw = ~((np.abs(exact_hw - whole_hw) <= TOLERANCE) & (whole_hw >= 0) & (whole_hw <= MISSING_COUNT))
    if wrong_hw.any():
        row, col = (int(place) for place in np.argwhere(wrong_hw)[0])
        raise DataError(
            f"{ref}, pixel ({row + crop.row0}, {col + crop.col0}) is {values_hw[row, col]:g}, {exact_hw[row, col]:g} "
            f"counts of 0.01 mm (one of {int(wrong_hw.sum())}); expected whole counts within {TOLERANCE}, as values "
            f"divided by {NL50_MAX_MM_5MIN} are"
        )
    counts_hw = whole_hw.astype(np.uint16)
    for code in ALWAYS_MISSING:
        missing_hw |= counts_hw == code
    counts_hw[missing_hw] = MISSING_COUNT
    return counts_hw
