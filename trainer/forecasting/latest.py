"""The latest radar frames as a model's input: the last ones, on the run's pixels, at its cadence, without a gap."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from ...data.errors import DataError
from ...data.frames import Crop, Grid, iso_time
from ...data.sources.files import Place
from ...data.sources.hdf5 import ChoiceError
from ...data.sources.source import FrameRef, Header
from ...data.units import MISSING_COUNT
from .bridging import bridge
from .grid import same_projection
from .readers import Radar

PIXEL_TOLERANCE: Final = 1e-3
"""Offsets are float32 in files: a thousandth of a pixel is rounding, more is another grid."""

MAX_NAMED_TIMES: Final = 6
LEAST_FRAMES: Final = 2
"""Frames that a gap is bridged from."""

Area = Crop | str
"""Which pixels are forecast: "whole" for all that the files hold, "run" for those that the run learned on, a crop."""


@dataclass(frozen=True, kw_only=True)
class Latest:
    """The radar frames that a forecast starts from.

    Attributes:
        rain_mmh_thw: Rain in mm/h, float32 (frames, rows, cols), 0 where missing.
        valid_thw: True where there is a measurement.
        end_times_s: End of each frame's accumulation, epoch seconds UTC.
        bridged_s: Those of them that were missing or damaged, and were bridged.
        problems: Why frames that were there could not be used.
        grid: Where the pixels lie.
        source: The product's name.
        licence: Licence of the data.
        frames: The frames that were read, as messages name them, in time order.
    """

    rain_mmh_thw: npt.NDArray[np.float32]
    valid_thw: npt.NDArray[np.bool_]
    end_times_s: tuple[int, ...]
    bridged_s: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()
    grid: Grid
    source: str
    licence: str
    frames: tuple[str, ...]


def read_latest(
    paths: Iterable[Place],
    *,
    radar: Radar,
    cadence_s: int,
    frames_in: int,
    area: Area = "whole",
    allow_missing: int = 0,
    before_s: int | None = None,
) -> Latest:
    """Read the last frames among files, folders and archives.

    Counts become mm/h by each frame's own scale, so that files of another scale than the run's archive serve as well.

    Args:
        paths: What the radar's source reads.
        radar: The radar: how its files are read, and the run's pixels.
        cadence_s: The run's seconds between frames.
        frames_in: Frames that the model takes.
        area: Which of the files' pixels are read.
        allow_missing: Frames that may be missing, damaged or without a measurement; they are bridged
            (`trainer.forecasting.bridging`).
        before_s: Only frames before this time are there, epoch seconds UTC; None for all.

    Raises:
        DataError: Too few frames, a gap, another cadence, another grid, a frame without any measurement, frames of
            two products, or what the source refuses: two frames of one time, a damaged file.
    """
    scanned = radar.source.scan(tuple(paths))
    if scanned.windows is not None:
        raise DataError("the files hold ready windows, which do not follow each other; give files of single frames")
    known = [ref for ref in scanned.refs if before_s is None or ref.end_time_s < before_s]
    refs = _last(known, cadence_s, frames_in, allow_missing)

    # The newest frame that can be read sets what the others must agree with.
    frames: dict[int, _Frame] = {}
    problems: list[str] = []
    for ref in reversed(refs):
        newest = next(iter(frames.values()), None)
        try:
            frames[ref.end_time_s] = _read(ref, radar, area, newest)
        except ChoiceError:
            # Another option is needed, for this frame and for all others.
            raise
        except DataError as error:
            problems.append(str(error))
            if len(problems) > allow_missing:
                raise DataError(f"{error} (--allow-missing {len(problems)} bridges the frame)") from error
    if not frames:
        raise DataError(f"none of the last {frames_in} frames can be used: {problems[0]}")

    times_s = [refs[-1].end_time_s + (number + 1 - frames_in) * cadence_s for number in range(frames_in)]
    _check_missing([time_s for time_s in times_s if time_s not in frames], frames_in, allow_missing, problems)
    fields = bridge([frames[time_s].field if time_s in frames else None for time_s in times_s])
    newest = next(iter(frames.values()))
    return Latest(
        rain_mmh_thw=np.stack([rain_mmh_hw for rain_mmh_hw, _ in fields]),
        valid_thw=np.stack([valid_hw for _, valid_hw in fields]),
        end_times_s=tuple(times_s),
        bridged_s=tuple(time_s for time_s in times_s if time_s not in frames),
        problems=tuple(problems),
        grid=newest.grid,
        source=newest.header.source,
        licence=newest.header.licence,
        frames=tuple(frames[time_s].name for time_s in times_s if time_s in frames),
    )


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """One frame that was read: its name, header, area and field."""

    name: str
    header: Header
    grid: Grid
    field: tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]


def _read(ref: FrameRef, radar: Radar, area: Area, newest: _Frame | None) -> _Frame:
    """Read one frame's area, and check that it is of the run's pixels and of the newest frame's product."""
    surveyed = radar.source.survey(ref)
    header = surveyed.header
    if newest is not None and (header.source, header.grid) != (newest.header.source, newest.header.grid):
        raise DataError(
            f"files of two products: {ref} is {header.source!r} on {header.grid}, {newest.name} is "
            f"{newest.header.source!r} on {newest.header.grid}; give files of one"
        )
    try:
        crop = find_area(area, radar, header.grid)
    except DataError as error:
        raise ChoiceError(f"{ref}: {error}") from error

    reading = radar.source.read(ref, crop)
    if reading.sha256 != surveyed.sha256:
        raise DataError(f"{ref} changed while it was read; expected a file that stays as it is: start again")
    valid_hw = reading.counts != MISSING_COUNT
    if not valid_hw.any():
        raise DataError(
            f"{ref}: no pixel of the area holds a measurement at {iso_time(ref.end_time_s)}; expected radar data in "
            "every frame: wait for a complete hour, or give other files"
        )
    # In float32, as while training, so that a frame is the same number there and here.
    counts_hw = np.where(valid_hw, reading.counts, 0).astype(np.float32)
    field = counts_hw * np.float32(header.scale_mmh), valid_hw
    return _Frame(name=str(ref), header=header, grid=header.grid.cropped(crop), field=field)


def find_area(area: Area, radar: Radar, inside: Grid) -> Crop:
    """Find the pixels that are asked for in a file's grid.

    Raises:
        DataError: The file's pixels are not the run's, or the area reaches outside the file's grid.
    """
    row0, col0 = _offset(radar.pixels, inside)
    if isinstance(area, Crop):
        area.check_inside(inside.rows, inside.cols)
        return area
    if area == "whole":
        return Crop(row0=0, row1=inside.rows, col0=0, col1=inside.cols)

    if radar.part is None:
        raise DataError(
            f"the run learned on tiles of {radar.name}, so that --crop run names no area; leave it out, or give rows "
            "and columns"
        )
    row1, col1 = row0 + radar.part.rows, col0 + radar.part.cols
    if row0 < 0 or col0 < 0 or row1 > inside.rows or col1 > inside.cols:
        raise DataError(
            f"the run's area is rows {row0} to {row1} and columns {col0} to {col1} of the file's grid, which has "
            f"{inside.rows} rows and {inside.cols} columns: the file does not cover it"
        )
    return Crop(row0=row0, row1=row1, col0=col0, col1=col1)


def _offset(grid: Grid, inside: Grid) -> tuple[int, int]:
    """Find the row and column of a file's grid at which the run's begins; may be negative or beyond its end.

    Raises:
        DataError: Projection or pixel size differ, or the pixels of one lie between the other's.
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
    if max(abs(down - round(down)), abs(right - round(right))) > PIXEL_TOLERANCE:
        raise DataError(
            f"the run's grid begins {down:.3f} rows and {right:.3f} columns into the file's; expected whole numbers: "
            "the pixels do not lie on the run's"
        )
    return round(down), round(right)


def _last(refs: Sequence[FrameRef], cadence_s: int, frames_in: int, allow_missing: int) -> Sequence[FrameRef]:
    """Take the frames of the last times that the model asks for, as far as there are any."""
    if not refs:
        raise DataError("no frames up to the time of --at; expected radar files")
    # Without gaps the last frames are those of the last times; with gaps, those are fewer.
    last = list(refs[-frames_in:])
    _check_cadence(last, cadence_s, gaps=allow_missing > 0)
    first_s = last[-1].end_time_s - (frames_in - 1) * cadence_s
    present = [ref for ref in last if ref.end_time_s >= first_s]
    if len(refs) < frames_in and len(present) < frames_in - allow_missing:
        raise DataError(
            f"{len(last)} radar files were given ({_listed(ref.end_time_s for ref in last)}), but the model needs "
            f"{frames_in}, one every {_minutes(cadence_s)}; give the last {frames_in}"
        )
    return present


def _check_cadence(refs: Sequence[FrameRef], cadence_s: int, *, gaps: bool) -> None:
    """Refuse frames that come at another cadence."""
    steps_s = [after.end_time_s - before.end_time_s for before, after in pairwise(refs)]
    # Where no two frames are one cadence apart, it is not that some are missing: they come at another pace.
    odd = [number for number, step_s in enumerate(steps_s) if step_s % cadence_s]
    if not odd and steps_s and cadence_s not in steps_s and not gaps:
        odd = [0]
    if odd:
        before, after = refs[odd[0]], refs[odd[0] + 1]
        raise DataError(
            f"{before} and {after} are {_minutes(after.end_time_s - before.end_time_s)} apart; the "
            f"run was trained on frames every {_minutes(cadence_s)}: give files of that cadence"
        )


def _check_missing(missing_s: Sequence[int], frames_in: int, allow_missing: int, problems: Sequence[str]) -> None:
    """Refuse more frames that are missing than may be bridged."""
    if len(missing_s) > min(allow_missing, frames_in - LEAST_FRAMES):
        why = f"; of those that were there: {'; '.join(problems)}" if problems else ""
        raise DataError(
            f"among the last {frames_in}, the frame of {_listed(missing_s)} is missing ({len(missing_s)} in all){why}; "
            "expected all of them: fetch what is missing, give files up to the gap, or bridge up to "
            f"{frames_in - LEAST_FRAMES} with --allow-missing {len(missing_s)}"
        )


def _minutes(time_s: int) -> str:
    return f"{time_s / 60:g} min"


def _listed(times_s: Iterable[int]) -> str:
    """Format the first few of some times."""
    texts = [iso_time(time_s) for time_s in times_s]
    return ", ".join([*texts[:MAX_NAMED_TIMES], *(["..."] if len(texts) > MAX_NAMED_TIMES else [])])
