"""Coasts, borders and graticule on a grid: Natural Earth (public domain), reduced by tests/bench/natural_earth.py."""

import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
from pyproj import Transformer

from ...data.errors import DataError
from ...data.frames import Grid
from ..pictures.maps import Label, Line, MapLines
from .grid import WGS84, parse_projection

FILE_NAME: Final = "natural_earth.npz"
STEPS_PER_DEGREE: Final = 250
"""Coordinates in the file are whole numbers of these: 0.004 degrees, less than half a kilometre."""

SPACINGS_DEG: Final = (30.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
MIN_LINES: Final = 3
"""Meridians and parallels that a frame shows at least."""

SAMPLES: Final = 41
LINE_POINTS: Final = 181
MARGIN_DEG: Final = 1.5
"""How far around the frame lines are followed: no step of the file is longer than a degree."""

LONGEST_KM: Final = 1500.0
"""A longer step on the map is none on the Earth: it joins two edges of a projection."""

CORNER: Final = 0.09
"""Share of an edge at its ends that stays without labels."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _World:
    """All lines, in degrees: longitude, latitude and number of line by point, and which lines are borders."""

    longitude: Floats
    latitude: Floats
    line: npt.NDArray[np.int64]
    is_border: npt.NDArray[np.bool_]


@cache
def _world() -> _World:
    with files(__package__).joinpath(FILE_NAME).open("rb") as file, np.load(file, allow_pickle=False) as held:
        first, lengths, is_border = held["first"], held["lengths"], held["is_border"]
        steps = (held["low"].astype(np.uint16) | held["high"].astype(np.uint16) << 8).view(np.int16).astype(np.int64)

    # Steps add up within a line: what the lines before it came to is taken off.
    sums = np.cumsum(steps, axis=1)
    starts = np.cumsum(lengths) - lengths
    points = (sums + np.repeat(first.T - sums[:, starts], lengths, axis=1)) / STEPS_PER_DEGREE
    line = np.repeat(np.arange(len(lengths)), lengths)
    return _World(longitude=points[0], latitude=points[1], line=line, is_border=is_border)


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """A grid's way from degrees to its pixels, and the degrees that it covers.

    Attributes:
        grid: The grid.
        to_metres: From WGS 84.
        centre_deg: Longitude that the others are counted from.
        west_deg, east_deg: Relative to it.
        south_deg, north_deg: Latitudes.
    """

    grid: Grid
    to_metres: Transformer
    centre_deg: float
    west_deg: float
    east_deg: float
    south_deg: float
    north_deg: float

    def pixels(self, longitude: Floats, latitude: Floats) -> Line:
        """Place points on the frame: (columns, rows) of pixels; NaN where the projection has no place for them."""
        x_m, y_m = self.to_metres.transform(longitude, latitude)
        col = (np.asarray(x_m) / 1000 - self.grid.x0_km) / self.grid.pixel_km - 0.5
        row = (self.grid.y0_km - np.asarray(y_m) / 1000) / self.grid.pixel_km - 0.5
        pixels = np.stack([col, row])
        pixels[:, ~np.isfinite(pixels).all(axis=0)] = np.nan
        return pixels

    def degrees(self, col: Floats, row: Floats) -> tuple[Floats, Floats]:
        """Give longitude, relative to the centre's, and latitude of places on the frame."""
        x_m = 1000 * (self.grid.x0_km + (col + 0.5) * self.grid.pixel_km)
        y_m = 1000 * (self.grid.y0_km - (row + 0.5) * self.grid.pixel_km)
        longitude, latitude = self.to_metres.transform(x_m, y_m, direction="INVERSE")
        has_place = np.isfinite(longitude) & np.isfinite(latitude)
        relative = np.where(has_place, longitude, np.nan) - self.centre_deg
        return _turned(relative), np.where(has_place, latitude, np.nan)


def map_lines(grid: Grid) -> MapLines | None:
    """Project coasts, borders and a graticule onto a grid.

    Returns:
        Lines in the grid's pixels; None for a grid some of whose places have no degrees.
    """
    frame = _frame(grid)
    if frame is None:
        return None
    coast, borders = _land(frame)
    graticule, labels = _graticule(frame)

    # North at the arrow: where a small step to the north leads.
    at = np.array([0.06 * grid.cols]), np.array([0.06 * grid.rows])
    longitude, latitude = frame.degrees(*at)
    step = frame.pixels(longitude + frame.centre_deg, np.minimum(latitude + 0.01, 90)) - np.stack(at)
    return MapLines(
        coast=coast,
        borders=borders,
        graticule=graticule,
        labels=labels,
        north_deg=math.degrees(math.atan2(step[0, 0], -step[1, 0])),
    )


def _frame(grid: Grid) -> _Frame | None:
    try:
        to_metres = Transformer.from_crs(WGS84, parse_projection(grid.projection), always_xy=True)
    except DataError:
        return None
    open_frame = _Frame(
        grid=grid, to_metres=to_metres, centre_deg=0, west_deg=-180, east_deg=180, south_deg=-90, north_deg=90
    )
    # Places all over the frame, longitudes from that of its centre.
    middle_deg, _ = open_frame.degrees(np.array([(grid.cols - 1) / 2]), np.array([(grid.rows - 1) / 2]))
    cols, rows = np.meshgrid(np.linspace(-0.5, grid.cols - 0.5, SAMPLES), np.linspace(-0.5, grid.rows - 0.5, SAMPLES))
    longitude, latitude = open_frame.degrees(cols, rows)
    if np.isnan(longitude).any() or np.isnan(middle_deg).any():
        return None
    relative = _turned(longitude - middle_deg[0])

    # Around a pole all longitudes meet.
    poles = open_frame.pixels(np.zeros(2), np.array([-90.0, 90.0]))
    limits = np.array([grid.cols, grid.rows]) - 0.5
    has_south, has_north = (bool(((pole > -0.5) & (pole < limits)).all()) for pole in poles.T)
    is_round = has_south or has_north
    return _Frame(
        grid=grid,
        to_metres=to_metres,
        centre_deg=float(middle_deg[0]),
        west_deg=-180.0 if is_round else float(relative.min()),
        east_deg=180.0 if is_round else float(relative.max()),
        south_deg=-90.0 if has_south else float(latitude.min()),
        north_deg=90.0 if has_north else float(latitude.max()),
    )


def _land(frame: _Frame) -> tuple[Line, Line]:
    """Give coasts and borders in and around the frame."""
    world = _world()
    relative = _turned(world.longitude - frame.centre_deg)
    margin_deg = MARGIN_DEG / max(math.cos(math.radians(max(abs(frame.south_deg), abs(frame.north_deg)))), 0.02)
    near = (relative > frame.west_deg - margin_deg) & (relative < frame.east_deg + margin_deg)
    near &= (world.latitude > frame.south_deg - MARGIN_DEG) & (world.latitude < frame.north_deg + MARGIN_DEG)

    kinds = []
    for is_border in (False, True):
        at = np.flatnonzero(near & (world.is_border[world.line] == is_border))
        # A line ends where the next point is none of its own.
        ends = (np.diff(at) != 1) | (np.diff(world.line[at]) != 0)
        kinds.append(_broken(frame.pixels(world.longitude[at], world.latitude[at]), ends, frame.grid.pixel_km))
    return kinds[0], kinds[1]


def _graticule(frame: _Frame) -> tuple[Line, tuple[Label, ...]]:
    """Give meridians and parallels at round degrees, and labels where they meet the upper and the right edge."""
    rows, cols = frame.grid.rows, frame.grid.cols
    gap = np.full(1, np.nan)
    lon_step = _spacing(frame.east_deg - frame.west_deg)
    lat_step = _spacing(frame.north_deg - frame.south_deg)
    west, east = frame.centre_deg + frame.west_deg, frame.centre_deg + frame.east_deg
    along_lat = np.append(np.linspace(frame.south_deg, frame.north_deg, LINE_POINTS), gap)
    along_lon = np.append(np.linspace(west, east, LINE_POINTS), gap)

    longitudes = [np.full_like(along_lat, value) for value in _multiples(west, east, lon_step)]
    latitudes = [along_lat] * len(longitudes)
    for value in _multiples(frame.south_deg, frame.north_deg, lat_step):
        longitudes.append(along_lon)
        latitudes.append(np.full_like(along_lon, value))
    lines = _broken(frame.pixels(np.concatenate(longitudes), np.concatenate(latitudes)), False, frame.grid.pixel_km)

    # Degrees along two edges: a label where they pass a multiple.
    across, down = np.linspace(-0.5, cols - 0.5, LINE_POINTS), np.linspace(-0.5, rows - 0.5, LINE_POINTS)
    top_deg = frame.degrees(across, np.full_like(across, -0.5))[0] + frame.centre_deg
    right_deg = frame.degrees(np.full_like(down, cols - 0.5), down)[1]
    labels = [
        Label(
            col=float(np.interp(at, np.arange(LINE_POINTS), across)), row=-0.5, text=_text(value, "E", "W"), on_top=True
        )
        for value, at in _crossings(top_deg, lon_step)
    ]
    labels += [
        Label(
            col=cols - 0.5,
            row=float(np.interp(at, np.arange(LINE_POINTS), down)),
            text=_text(value, "N", "S"),
            on_top=False,
        )
        for value, at in _crossings(right_deg, lat_step)
    ]
    return lines, tuple(labels)


def _broken(pixels: Line, ends: npt.NDArray[np.bool_] | bool, pixel_km: float) -> Line:
    """Break a line behind its ends, and where the next point lies too far to be the next one on the map."""
    step_km = np.hypot(*np.diff(pixels, axis=1)) * pixel_km
    return np.insert(pixels, np.flatnonzero(ends | (step_km > LONGEST_KM)) + 1, np.nan, axis=1)


def _crossings(degrees: Floats, step: float) -> list[tuple[float, float]]:
    """Find where degrees along an edge, but at its ends, pass multiples of a step: (multiple, index of the point)."""
    crossings = []
    for at, (before, after) in enumerate(pairwise(degrees.tolist())):
        low, high = sorted((before, after))
        value = math.floor(high / step) * step
        point = at + (value - before) / (after - before) if after != before else at
        inside = CORNER * len(degrees) < point < (1 - CORNER) * len(degrees)
        # A jump is the back of the Earth.
        if low < value <= high and high - low < 90 and inside:
            crossings.append((value, point))
    return crossings


def _spacing(span_deg: float) -> float:
    """Choose the widest spacing that gives enough lines."""
    return next((step for step in SPACINGS_DEG if span_deg / step >= MIN_LINES), SPACINGS_DEG[-1])


def _multiples(low: float, high: float, step: float) -> Floats:
    numbers = np.arange(math.ceil(low / step), math.floor(high / step) + 1, dtype=np.float64)
    return step * numbers


def _turned(degrees: Floats) -> Floats:
    """Bring differences of longitudes into -180 to 180."""
    return np.asarray((degrees + 180) % 360 - 180, dtype=np.float64)


def _text(degrees: float, positive: str, negative: str) -> str:
    value = float(_turned(np.array(degrees))) if positive == "E" else degrees
    word = "" if abs(value) in (0, 180) else positive if value > 0 else negative
    return f"{abs(value):g}°{word}"
