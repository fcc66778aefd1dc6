"""Where the pixels of a grid lie: in metres of its map projection, in degrees, in the words of the CF conventions."""

import math
import re
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

from ...data.errors import DataError
from ...data.frames import Grid
from ...data.sources.odim import PROJECTION_TERM

NUMBER: Final = re.compile(r"[+-]?\d+\.?\d*(?:[eE][+-]?\d+)?", re.ASCII)
LENGTHS: Final = ("a", "b", "R", "x_0", "y_0")
KILOMETRES_BELOW: Final = 1e5
"""An axis of the Earth below this is stated in kilometres, with all other lengths (KNMI: +a=6378.137)."""

PART_OF_PIXEL: Final = 0.01
"""KNMI writes the axis as 6378.137 and as 6378.14 km: on its grid that is 2 m, a five-hundredth of a pixel."""

REPETITIONS: Final = ("inverse_flattening", "prime_meridian_name")
"""Attributes of a grid mapping that say in another way what its axes and its meridian say."""


def in_metres(projection: str) -> str:
    """Write a source's PROJ string in metres; a "+" that is left out, as in some of KNMI's files, does not matter.

    Raises:
        DataError: A term is none of those that describe a projection, such as the name of a file to read.
    """
    terms = [f"+{term.removeprefix('+')}" for term in projection.split()]
    unknown = [term for term in terms if not PROJECTION_TERM.fullmatch(term)]
    if unknown:
        raise DataError(f"projection {projection!r:.200}: the term {unknown[0]!r:.50} is not known; remove it")

    # The last of equal terms counts, and lengths are in metres whatever the unit of the coordinates is.
    values = dict(term[1:].partition("=")[::2] for term in terms) | {"units": "m", "no_defs": ""}
    axis = values.get("a", values.get("R", ""))
    in_kilometres = NUMBER.fullmatch(axis) is not None and float(axis) < KILOMETRES_BELOW
    for key, value in values.items():
        if NUMBER.fullmatch(value):
            # 15 digits take off what the factor adds in rounding: 6378.137 km are 6378137 m.
            values[key] = f"{float(value) * (1000 if in_kilometres and key in LENGTHS else 1):.15g}"
    return " ".join(f"+{key}={value}" if value else f"+{key}" for key, value in values.items())


def parse_projection(projection: str) -> CRS:
    """Read a source's PROJ string as a map projection in metres.

    Raises:
        DataError: PROJ does not know it, or it gives degrees.
    """
    try:
        crs = CRS.from_proj4(in_metres(projection))
    except CRSError as error:
        raise DataError(f"projection {projection!r:.200} cannot be used: {error}") from error
    if not crs.is_projected:
        raise DataError(f"projection {projection!r:.200} gives degrees; expected a map projection in metres")
    return crs


def to_degrees(
    projection: str, x_m: npt.NDArray[np.float64], y_m: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Give (longitude, latitude) in degrees of points in metres, on the ellipsoid of the projection.

    Args:
        projection: PROJ string, as a source states it.
        x_m: Eastings, any shape.
        y_m: Northings, of a shape that broadcasts with it.
    """
    crs = parse_projection(projection)
    transformer = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    every_x_m, every_y_m = np.broadcast_arrays(x_m, y_m)
    return transformer.transform(every_x_m, every_y_m)


def cf_attributes(projection: str) -> dict[str, Any]:
    """Give the attributes of a grid mapping variable: CF conventions, appendix F; and the PROJ string as `proj4`."""
    crs = parse_projection(projection)
    attributes = {name: value for name, value in crs.to_cf().items() if value != "unknown" and name not in REPETITIONS}
    if attributes.get("grid_mapping_name") == "polar_stereographic":
        # PROJ leaves out which pole it is where it states the standard parallel.
        attributes.setdefault("latitude_of_projection_origin", math.copysign(90.0, attributes["standard_parallel"]))
    return {**attributes, "proj4": in_metres(projection)}


def same_projection(grid: Grid, projection: str) -> bool:
    """Check that another projection puts the corners of a grid at the same place, to a small part of a pixel."""
    if grid.projection == projection:
        return True
    # The four outermost pixels, through degrees into the other projection.
    x_m, y_m = (corner_m.ravel() for corner_m in np.meshgrid(*(axis_m[[0, -1]] for axis_m in pixel_centres_m(grid))))
    transformer = Transformer.from_crs(parse_projection(grid.projection), parse_projection(projection), always_xy=True)
    moved_m = np.hypot(*np.subtract(transformer.transform(x_m, y_m), (x_m, y_m)))
    return bool((moved_m < PART_OF_PIXEL * 1000 * grid.pixel_km).all())


def pixel_centres_m(grid: Grid) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Give the eastings (cols,) and northings (rows,) of a grid's pixel centres, in metres; row 0 lies in the north."""
    x_m = 1000 * (grid.x0_km + (np.arange(grid.cols, dtype=np.float64) + 0.5) * grid.pixel_km)
    y_m = 1000 * (grid.y0_km - (np.arange(grid.rows, dtype=np.float64) + 0.5) * grid.pixel_km)
    return x_m, y_m
