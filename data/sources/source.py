"""State what every source gives to packing: references in time order, a frame's header, and its counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..counts import NO_ROUNDING, Rounding
from ..errors import DataError
from ..frames import Crop, Grid
from ..sequences import Run
from .files import Place, RadarFile

SYNTHETIC: Final = "synthetic storms"
"""The source that data.sources.knmi gives to made-up rain: its times and its grid are made up too."""

UNSTATED: Final = "not stated"
"""What a licence is where nobody says it."""


class FrameRef(Protocol):
    """Where one frame lies; its text names it in messages."""

    @property
    def end_time_s(self) -> int:
        """End time of the frame, epoch seconds UTC."""


Ref = TypeVar("Ref", bound=FrameRef)


@dataclass(frozen=True, kw_only=True)
class FileRef:
    """A file that holds one frame, and the frame's end time, epoch seconds UTC."""

    file: RadarFile
    end_time_s: int

    @property
    def path(self) -> Path:
        """The file on the disk: the frame's own, or the archive that holds it."""
        return self.file.path

    def __str__(self) -> str:
        """Name the file as messages do."""
        return str(self.file)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How frames were read: the kind of source and its options as plain JSON values.

    Archives and checkpoints carry it, so that a forecast reads the newest files in the same way
    (`data.sources.choice.source_of_recipe`).
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)


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
        period_s: Seconds over which a value is a mean or a sum; 0: instantaneous; None: the source does not say.
    """

    end_time_s: int
    scale_mmh: float
    missing_codes: tuple[int, ...]
    grid: Grid
    source: str
    licence: str
    period_s: int | None = None


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
    """What is known of a frame before packing.

    Attributes:
        header: What it says about itself.
        num_bytes: Length of its input.
        sha256: Digest of that input.
        notes: What was read into it that it does not state; frames alike give the same text.
    """

    header: Header
    num_bytes: int
    sha256: str
    notes: tuple[str, ...] = ()


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
    def kind(self) -> str:
        """Name of the sub-command of `rainspark pack` that makes this source; its options are its public fields."""

    @property
    def settings(self) -> str:
        """Everything beside the input bytes that decides what is packed."""

    def scan(self, paths: Sequence[Place]) -> Found:
        """Find the frames among files, folders and archives."""

    def survey(self, ref: FrameRef) -> Surveyed:
        """Read what a frame says about itself, and digest its input."""

    def read(self, ref: FrameRef, crop: Crop) -> Reading:
        """Read a part of a frame's pixels."""


def in_time_order(refs: Sequence[Ref]) -> tuple[Ref, ...]:
    """Sort frames by their times; raises DataError for two of one time, both named."""
    # By name where times are equal: the same two are named in whatever order the files came.
    ordered = sorted(refs, key=lambda ref: (ref.end_time_s, str(ref)))
    for before, after in pairwise(ordered):
        if before.end_time_s == after.end_time_s:
            raise DataError(f"two frames of one time: {before} and {after}; expected one, remove the other")
    return tuple(ordered)


def without_copies(refs: Sequence[Ref], digest_of: Callable[[Ref], str]) -> tuple[list[Ref], list[str]]:
    """Leave out files that hold the same bytes as another one of their time.

    Returns:
        The files that stay, and a note where some were left out.
    """
    of_time: dict[int, list[Ref]] = {}
    for ref in sorted(refs, key=str):
        of_time.setdefault(ref.end_time_s, []).append(ref)

    kept: list[Ref] = []
    copies: list[Ref] = []
    for same in of_time.values():
        digests: set[str] = set()
        for ref in same:
            # Files are read only where two claim one time.
            digest = digest_of(ref) if len(same) > 1 else ""
            (copies if digest in digests else kept).append(ref)
            digests.add(digest)
    if not copies:
        return kept, []
    if len(copies) == 1:
        return kept, [f"1 file is a copy of another, byte for byte, and is not read: {copies[0]}"]
    return kept, [f"{len(copies)} files are copies of others, byte for byte, and are not read, such as {copies[0]}"]
