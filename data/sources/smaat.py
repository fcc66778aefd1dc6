"""Read SmaAt-UNet's collected HDF5: KNMI composites of years in one file, frames or ready windows, back to counts.

Groups train and test, each with `images` and `timestamps`: Trebing, Stanczyk and Mehrkanoon (2021), SmaAt-UNet:
precipitation nowcasting using a small attention-UNet architecture, doi:10.1016/j.patrec.2021.01.036. The values are mm
in 5 minutes divided by 47.83, so that a value of 1 is 4783 counts of 0.01 mm.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Final

import h5py
import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..frames import Crop, Grid, iso_time
from ..json_checks import JsonRecord
from ..sequences import Run
from ..units import KNMI_MMH_PER_COUNT, MISSING_COUNT, NL50_MAX_MM_5MIN
from . import hdf5
from .blocks import BlockReader
from .files import Place, files_of
from .knmi import ALWAYS_MISSING, FILE_ENDINGS, LICENCE, PRODUCT_TIME, parse_product_time
from .source import Found, FrameRef, Header, Reading, Surveyed, in_time_order

GROUPS: Final = ("train", "test")
KIND: Final = hdf5.KINDS["smaat"]
COUNTS_OF_ONE: Final = NL50_MAX_MM_5MIN * 100
"""Counts of 0.01 mm that a value of 1 stands for."""

TOLERANCE: Final = 0.02
"""Furthest that a value may lie from a whole count: float32 and one division move the largest one by 0.004."""

PROJECTION: Final = "not published: SmaAt-UNet's crop of KNMI's stereographic 1 km grid"
DIGITS: Final = re.compile(r"\d{12}(?:\d{2})?", re.ASCII)
MAX_TIME_TEXT: Final = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectedRef:
    """A frame of a collected file.

    Attributes:
        path: The file.
        group: The group that holds it.
        first: Number of its window there; of the frame where there are no windows.
        inner: Its number in the window; -1 where there are none.
        end_time_s: Its end time, epoch seconds UTC.
    """

    path: Path
    group: str
    first: int
    inner: int
    end_time_s: int

    def __str__(self) -> str:
        """Name the frame as messages do."""
        number = f"window {self.first}, frame {self.inner}" if self.inner >= 0 else f"frame {self.first}"
        return f"{self.path}, /{self.group}/images, {number}"


@dataclass(kw_only=True)
class SmaatSource(JsonRecord):
    """SmaAt-UNet's collected HDF5 for packing (`data.sources.source.Source`).

    Attributes:
        group: Which group to take: train, test or both.
        cadence_s: Seconds from frame to frame inside a ready window.
        skip_gaps: Leave out ready windows across gaps instead of refusing the file.
    """

    kind: ClassVar[str] = "smaat"
    group: str = "both"
    cadence_s: int = 300
    skip_gaps: bool = False

    def __post_init__(self) -> None:
        """Keep what is open: no option, so no field."""
        self._readers: dict[tuple[Path, str], BlockReader] = {}

    @property
    def settings(self) -> str:
        """Give all of these."""
        return f"smaat {self.group} {self.cadence_s} {self.skip_gaps}"

    def scan(self, paths: Sequence[Place]) -> Found:
        """Find the frames, in time order; or the ready windows, in the order of their first frames."""
        files = dict.fromkeys(file for path in paths for file in files_of(path, FILE_ENDINGS))
        if not files:
            raise DataError(f"no HDF5 files in {', '.join(map(str, paths)) or 'nothing'}; expected {KIND}")
        groups = GROUPS if self.group == "both" else (self.group,)
        runs = [run for path in files for group in groups for run in self._runs_of(path, group)]

        # A group holds single frames or windows; an archive holds one kind.
        frames = [run[0] for run in runs if run[0].inner < 0]
        windows = [run for run in runs if run[0].inner >= 0]
        if frames and windows:
            raise DataError(
                f"{frames[0].path} holds frames, {windows[0][0].path} ready windows; expected one kind: pack them apart"
            )
        return self._ready(windows) if windows else Found(refs=in_time_order(frames))

    def survey(self, ref: FrameRef) -> Surveyed:
        """Describe the collection, and digest the stored bytes that hold a frame."""
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
            # mm in 5 minutes, as the values' scale says.
            period_s=300,
        )
        # A block's bytes, shared by its frames.
        items = reader.items * (reader.shape[1] if len(reader.shape) == 4 else 1)
        return Surveyed(header=header, num_bytes=-(-num_stored // items), sha256=sha256)

    def read(self, ref: FrameRef, crop: Crop) -> Reading:
        """Read a part of a frame as counts."""
        assert isinstance(ref, CollectedRef)
        block = self._readers[ref.path, ref.group].block(ref.first)
        item = block.values[ref.first - block.first]
        values_hw = item if ref.inner < 0 else item[ref.inner]
        crop.check_inside(*values_hw.shape)
        part_hw = values_hw[crop.row0 : crop.row1, crop.col0 : crop.col1]
        return Reading(counts=_counts(part_hw, ref, crop), sha256=block.sha256)

    def _runs_of(self, path: Path, group: str) -> list[tuple[CollectedRef, ...]]:
        """List the windows of a group; frames that are in none stand alone."""
        with hdf5.opened(path, str(path), KIND) as file:
            hdf5.check_layout(file, "smaat")
        reader = BlockReader(path, f"{group}/images", KIND)
        self._readers[path, group] = reader

        # One time a frame: of images (frames, ...) or (windows, frames, ...).
        times_s = _times_of(path, group, reader.shape[:-2])
        first_inner = 0 if times_s.ndim == 2 else -1
        return [
            tuple(
                CollectedRef(path=path, group=group, first=first, inner=inner, end_time_s=time_s)
                for inner, time_s in enumerate(row, start=first_inner)
            )
            for first, row in enumerate(times_s.reshape(len(times_s), -1).tolist())
        ]

    def _ready(self, windows: Sequence[tuple[CollectedRef, ...]]) -> Found:
        """Keep the windows at the exact cadence, in time order."""
        # One archive has windows of one length.
        lengths = sorted({len(window) for window in windows})
        if len(lengths) > 1:
            raise DataError(f"ready windows of {lengths} frames; expected one length: pack the groups or files apart")

        torn = [window for window in windows if self._has_gap(window)]
        if torn and not self.skip_gaps:
            first = torn[0]
            raise DataError(
                f"{len(torn)} of {len(windows)} ready windows are not {self.cadence_s / 60:g} min from frame to frame, "
                f"such as that of {first[0]}, {iso_time(first[0].end_time_s)} to {iso_time(first[-1].end_time_s)}; "
                "leave them out with --skip-gaps, or state the cadence (--cadence-min)"
            )
        whole = {window[0]: window for window in windows if not self._has_gap(window)}
        if not whole:
            raise DataError(f"none of {len(windows)} ready windows is at the cadence; nothing to pack")

        # Windows overlap, so only their first frames' times have to differ.
        firsts = in_time_order(list(whole))
        length = lengths[0]
        note = f"{len(torn)} of {len(windows)} ready windows lie across a gap and are left out"
        return Found(
            refs=tuple(ref for first in firsts for ref in whole[first]),
            windows=tuple(Run(first=i * length, num_frames=length) for i in range(len(firsts))),
            notes=(note,) if torn else (),
        )

    def _has_gap(self, window: Sequence[CollectedRef]) -> bool:
        return any(after.end_time_s - before.end_time_s != self.cadence_s for before, after in pairwise(window))


def parse_time(text: str) -> int:
    """Read a timestamp, epoch seconds UTC: KNMI's, YYYYMMDDHHMM, or ISO 8601 (UTC where it says nothing).

    Raises:
        ValueError: It is none of them.
    """
    text = text.strip("\0 ")
    if PRODUCT_TIME.fullmatch(text.upper()):
        return parse_product_time(text)
    if DIGITS.fullmatch(text):
        # Seconds may be missing.
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
            held = f"of shape {stamps.shape}" if isinstance(stamps, h5py.Dataset) else "a group"
            raise DataError(f"{name} is {held}; expected {shape} or {(*shape, 1)}, one a frame of images")
        text = h5py.check_string_dtype(stamps.dtype)
        if text is None or (text.length or 0) > MAX_TIME_TEXT:
            raise DataError(
                f"{name} is {stamps.dtype} {stamps.shape}; expected text of at most {MAX_TIME_TEXT} characters"
            )

        hdf5.check_inside(stamps)
        times_s = [_stamp(value, name) for value in np.asarray(stamps[...]).reshape(-1)]
    return np.array(times_s, np.int64).reshape(shape)


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


def _counts(values_hw: npt.NDArray[Any], ref: CollectedRef, crop: Crop) -> npt.NDArray[np.uint16]:
    """Put values back to counts of 0.01 mm; NaN and KNMI's missing codes become 65535."""
    # In float64, so that only the file's own float32 and the division by 47.83 are felt.
    exact_hw = values_hw.astype(np.float64) * COUNTS_OF_ONE
    missing_hw = np.isnan(exact_hw)
    exact_hw[missing_hw] = 0

    whole_hw = np.rint(exact_hw)
    with np.errstate(invalid="ignore"):
        wrong_hw = ~((np.abs(exact_hw - whole_hw) <= TOLERANCE) & (whole_hw >= 0) & (whole_hw <= MISSING_COUNT))
    if wrong_hw.any():
        row, col = np.argwhere(wrong_hw)[0].tolist()
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
