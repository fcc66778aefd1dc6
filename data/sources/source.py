"""What every source of frames gives to packing: references in time order, what a frame says of itself, its counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from ..frames import Crop, DataError, Grid
from ..sequences import Run
from ..units import MISSING_COUNT
from .files import Place

QUANTUM_MMH: Final = 0.01
"""mm/h a count of sources that are requantised (DESIGN.md, Units)."""

MAX_COUNT: Final = MISSING_COUNT - 1
"""Largest count of a measurement, 655.34 mm/h at that scale: no gauge on Earth holds a higher rate for minutes."""


class FrameRef(Protocol):
    """Where one frame lies; its text names it in messages."""

    @property
    def end_time_s(self) -> int:
        """End time of the frame, epoch seconds UTC."""


@dataclass(frozen=True, kw_only=True)
class FileRef:
    """A file that holds one frame, and the frame's end time, epoch seconds UTC."""

    place: Place
    end_time_s: int

    @property
    def path(self) -> Path:
        """The file on the disk: the frame's own, or the archive that holds it."""
        return self.place.path

    def __str__(self) -> str:
        """Name the file as messages do."""
        return str(self.place)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a source says about a frame, without its pixels.

    Attributes:
        end_time_s: End of the accumulation, epoch seconds UTC.
        scale_mmh: mm/h a count.
        missing_codes: Counts that are no measurement, sorted.
        grid: Where the pixels lie.
        source: The product's name.
        licence: Licence of the data.
    """

    end_time_s: int
    scale_mmh: float
    missing_codes: tuple[int, ...]
    grid: Grid
    source: str
    licence: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """The frames of a source.

    Attributes:
        refs: In time order; with `windows`, window by window.
        windows: Ready windows, each of them packed as it is; None where sequences are cut at gaps in time.
        notes: What the user should know about what was left out.
    """

    refs: tuple[FrameRef, ...]
    windows: tuple[Run, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """What is known of a frame before packing: its header, the length of its input, and that input's SHA-256."""

    header: Header
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """What requantising to counts changed; nothing in sources of counts.

    Attributes:
        max_error_mmh: Largest change of a pixel that lies within the counts' range.
        clamped: Pixels above the range, set to its largest count.
    """

    max_error_mmh: float = 0.0
    clamped: int = 0

    def plus(self, other: "Rounding") -> "Rounding":
        """Put two together."""
        return Rounding(
            max_error_mmh=max(self.max_error_mmh, other.max_error_mmh), clamped=self.clamped + other.clamped
        )


NO_ROUNDING: Final = Rounding()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A frame's pixels.

    Attributes:
        counts: uint16 (rows, cols); 65535 is missing.
        sha256: Digest of the input bytes that they were read from.
        rounding: What requantising changed.
    """

    counts: npt.NDArray[np.uint16]
    sha256: str
    rounding: Rounding = NO_ROUNDING


class Source(Protocol):
    """A kind of input; `read` may be called from several threads at once.

    Every failure is a DataError that names the frame.
    """

    @property
    def settings(self) -> str:
        """Everything beside the input bytes that decides what is packed."""

    def scan(self, paths: Sequence[Path]) -> Found:
        """Find the frames among files, folders and archives."""

    def survey(self, ref: FrameRef) -> Surveyed:
        """Read what a frame says about itself, and digest its input."""

    def read(self, ref: FrameRef, crop: Crop) -> Reading:
        """Read a part of a frame's pixels."""


def requantise(
    rain_mmh: npt.NDArray[np.floating[Any]], pixel_of: Callable[[int], tuple[int, ...]]
) -> tuple[npt.NDArray[np.uint16], Rounding]:
    """Turn rain rates into counts of 0.01 mm/h; a rate that is no number becomes missing.

    Rates above 655.34 mm/h become that rate, and are counted.

    Args:
        rain_mmh: mm/h, (values,).
        pixel_of: Says which pixel a value is.

    Raises:
        DataError: A rate that is negative beyond half a count, or infinite.
    """
    missing = np.isnan(rain_mmh)
    wrong = (rain_mmh < -QUANTUM_MMH / 2) | np.isinf(rain_mmh)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(
            f"pixel {pixel_of(first)} is {rain_mmh[first]:g} mm/h (one of {int(wrong.sum())}); expected finite rates "
            "of 0 and more: remove the file, or tell its producer"
        )
    exact = np.where(missing, 0.0, rain_mmh) / QUANTUM_MMH
    rounded = np.clip(np.rint(exact), 0, MAX_COUNT)
    above = exact > MAX_COUNT + 0.5
    error = float(np.max(np.abs(rounded - exact), initial=0.0, where=~above)) * QUANTUM_MMH
    counts = rounded.astype(np.uint16)
    counts[missing] = MISSING_COUNT
    return counts, Rounding(max_error_mmh=error, clamped=int(np.count_nonzero(above)))


def in_time_order(refs: Sequence[FileRef]) -> tuple[FileRef, ...]:
    """Sort files by their frames' times; raises DataError for two of one time, both named."""
    ordered = sorted(refs, key=lambda ref: (ref.end_time_s, str(ref)))
    for before, after in pairwise(ordered):
        if str(before) == str(after):
            raise DataError(f"{before} is there twice; expected one: make the archive anew with one of them")
        if before.end_time_s == after.end_time_s:
            raise DataError(f"two files of one time: {before} and {after}; expected one, remove the other")
    return tuple(ordered)
