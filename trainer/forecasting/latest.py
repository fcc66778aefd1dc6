"""The latest radar files as a model's input: the last frames, on the run's grid, at its cadence, without a gap."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ...data.errors import DataError
from ...data.frames import Crop, Frame, Grid, iso_time
from ...data.sources import knmi
from ...data.sources.knmi import FileRef
from ...data.units import MISSING_COUNT
from .grid import same_projection

PIXEL_TOLERANCE: Final = 1e-3
"""Offsets are float32 in files: a thousandth of a pixel is rounding, more is another grid."""

MAX_NAMED_TIMES: Final = 6


@dataclass(frozen=True, kw_only=True)
class Latest:
    """The radar frames that a forecast starts from.

    Attributes:
        rain_mmh_thw: Rain in mm/h, float32 (frames, rows, cols), 0 where missing.
        valid_thw: True where there is a measurement.
        end_times_s: End of each frame's accumulation, epoch seconds UTC.
        source: The product's name.
        licence: Licence of the data.
        files: The files that were read, in time order.
    """

    rain_mmh_thw: npt.NDArray[np.float32]
    valid_thw: npt.NDArray[np.bool_]
    end_times_s: tuple[int, ...]
    source: str
    licence: str
    files: tuple[Path, ...]


def read_latest(paths: Iterable[Path], *, grid: Grid, cadence_s: int, frames_in: int) -> Latest:
    """Read the last frames among files and folders, cut to a run's grid.

    Counts become mm/h by each file's own scale, so that files of another scale than the run's archive serve as well.

    Args:
        paths: KNMI HDF5 files, and folders of them.
        grid: The run's grid: the files' own, or a part of it.
        cadence_s: The run's seconds between frames.
        frames_in: Frames that the model takes.

    Raises:
        DataError: Too few files, a gap, another cadence, another grid, a frame without any measurement, files of
            two products, or what `data.sources.knmi` refuses: two of one time, a damaged one.
    """
    refs = knmi.scan(paths)[-frames_in:]
    if len(refs) < frames_in:
        raise DataError(
            f"{len(refs)} radar files were given ({_listed(ref.end_time_s for ref in refs)}), but the model needs "
            f"{frames_in}, one every {_minutes(cadence_s)}; give the last {frames_in}"
        )
    _check_times(refs, cadence_s)

    # Each file is parsed once, and only the run's part of its pixels is decoded.
    frames = [knmi.read(ref.file, lambda inside: find_crop(grid, inside=inside)) for ref in refs]
    valid_thw = np.stack([frame.counts != MISSING_COUNT for frame in frames])
    empty = [frame.end_time_s for frame, valid_hw in zip(frames, valid_thw, strict=True) if not valid_hw.any()]
    if empty:
        raise DataError(
            f"no pixel of the run's area holds a measurement at {_listed(empty)} ({len(empty)} of {frames_in} frames); "
            "expected radar data in every frame: wait for a complete hour, or give other files"
        )

    # The newest file's product is the forecast's; its name and licence go into the output.
    last = frames[-1]
    for ref, frame in zip(refs, frames, strict=True):
        if frame.source != last.source:
            raise DataError(
                f"files of two products: {ref.path.name} is {frame.source!r}, {refs[-1].path.name} is "
                f"{last.source!r}; give files of one"
            )

    return Latest(
        rain_mmh_thw=np.stack([_rain_mmh(frame) for frame in frames]),
        valid_thw=valid_thw,
        end_times_s=tuple(frame.end_time_s for frame in frames),
        source=last.source,
        licence=last.licence,
        files=tuple(ref.path for ref in refs),
    )


def find_crop(grid: Grid, *, inside: Grid) -> Crop:
    """Find the rectangle of a larger grid that is the same as a smaller one.

    Raises:
        DataError: Projection or pixel size differ, the pixels of one lie between the other's, or it reaches outside.
    """
    if not same_projection(grid, inside.projection):
        raise DataError(
            f"the projection is {inside.projection!r}; the run's is {grid.projection!r}: give files of that product"
        )
    if abs(grid.pixel_km - inside.pixel_km) > 1e-6 * grid.pixel_km:
        raise DataError(
            f"pixels of {inside.pixel_km:g} km; the run's are {grid.pixel_km:g} km: give files of that product"
        )

    # How far the run's upper left corner lies inside the file's grid, in pixels.
    down = (inside.y0_km - grid.y0_km) / grid.pixel_km
    right = (grid.x0_km - inside.x0_km) / grid.pixel_km
    row0 = round(down)
    col0 = round(right)
    if max(abs(down - row0), abs(right - col0)) > PIXEL_TOLERANCE:
        raise DataError(
            f"the run's grid begins {down:.3f} rows and {right:.3f} columns into the file's; expected whole numbers: "
            "the pixels do not lie on the run's"
        )

    row1 = row0 + grid.rows
    col1 = col0 + grid.cols
    if row0 < 0 or col0 < 0 or row1 > inside.rows or col1 > inside.cols:
        raise DataError(
            f"the run's area is rows {row0} to {row1} and columns {col0} to {col1} of the file's grid, which has "
            f"{inside.rows} rows and {inside.cols} columns: the file does not cover it"
        )
    return Crop(row0=row0, row1=row1, col0=col0, col1=col1)


def _check_times(refs: Sequence[FileRef], cadence_s: int) -> None:
    """Refuse frames that come at another cadence, and frames of which some are missing."""
    steps_s = [after.end_time_s - before.end_time_s for before, after in pairwise(refs)]
    # Where no two frames are one cadence apart, it is not that some are missing: they come at another pace.
    odd = [number for number, step_s in enumerate(steps_s) if step_s % cadence_s]
    if not odd and steps_s and cadence_s not in steps_s:
        odd = [0]
    if odd:
        before, after = refs[odd[0]], refs[odd[0] + 1]
        raise DataError(
            f"{before.path.name} and {after.path.name} are {_minutes(after.end_time_s - before.end_time_s)} apart; the "
            f"run was trained on frames every {_minutes(cadence_s)}: give files of that cadence"
        )

    present = {ref.end_time_s for ref in refs}
    missing = [time_s for time_s in range(refs[0].end_time_s, refs[-1].end_time_s, cadence_s) if time_s not in present]
    if missing:
        raise DataError(
            f"among the last {len(refs)} files the frame of {_listed(missing)} is missing ({len(missing)} in all); "
            f"expected one every {_minutes(cadence_s)}: fetch what is missing, or give files up to the gap"
        )


def _rain_mmh(frame: Frame) -> npt.NDArray[np.float32]:
    counts = np.where(frame.counts == MISSING_COUNT, 0, frame.counts).astype(np.float32)
    # In float32, as while training, so that a frame is the same number there and here.
    return counts * np.float32(frame.scale_mmh)


def _minutes(time_s: int) -> str:
    return f"{time_s / 60:g} min"


def _listed(times_s: Iterable[int]) -> str:
    """Format the first few of some times."""
    texts = [iso_time(time_s) for time_s in times_s]
    return ", ".join([*texts[:MAX_NAMED_TIMES], *(["..."] if len(texts) > MAX_NAMED_TIMES else [])])
