"""KNMI's composites of precipitation one by one, read by the source as packing reads them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rainspark.data.frames import Crop, Grid
from rainspark.data.sources.files import RadarFile
from rainspark.data.sources.knmi import KnmiSource
from rainspark.data.sources.source import FileRef


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One composite: counts, uint16 (rows, cols), and what its header says."""

    counts: npt.NDArray[np.uint16]
    end_time_s: int
    scale_mmh: float
    grid: Grid
    source: str
    licence: str


def scan(paths: Iterable[Path]) -> tuple[FileRef, ...]:
    """Find the composites among files, folders, tars and zips."""
    return KnmiSource().scan(list(paths)).refs  # type: ignore[return-value]


def read(where: Path | RadarFile, crop: Crop | None = None) -> Frame:
    """Read one composite, or a part of it."""
    file = RadarFile(path=where) if isinstance(where, Path) else where
    # The source takes the time from the content.
    ref = FileRef(file=file, end_time_s=0)
    header = KnmiSource().survey(ref).header
    grid = header.grid
    chosen = crop or Crop(row0=0, row1=grid.rows, col0=0, col1=grid.cols)
    return Frame(
        counts=KnmiSource().read(ref, chosen).counts,
        end_time_s=header.end_time_s,
        scale_mmh=header.scale_mmh,
        grid=grid.cropped(chosen),
        source=header.source,
        licence=header.licence,
    )
