"""Read where the pixels of an ODIM_H5 composite lie: its projection, its pixels' size, and the corners that it states.

Files state four corners in degrees, as the manual says, or two of them, or one in the projection's metres (UL_x, UL_y).
All that are stated are compared with each other; pixels have the size that is stated. A projection may name no file.
"""

import math
import re
import warnings
from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations
from typing import Any, Final

import pyproj

from ..errors import DataError
from ..frames import Grid
from . import hdf5

NUMBER: Final = r"[+-]?\d{1,12}(?:\.\d{0,20})?(?:[eE][+-]?\d{1,2})?"
# What a projection may say: numbers and names, no files (+nadgrids but the empty one, +geoidgrids) and no pipelines.
PROJECTION_TERM: Final = re.compile(
    r"\+?(?:(?:proj|lat_0|lon_0|lat_ts|lat_1|lat_2|lon_1|lon_2|x_0|y_0|a|b|R|f|rf|es|k|k_0|ellps|datum|pm|units|h|sweep"
    r"|gamma|alpha|azi|tilt|lonc|lon_wrap|zone|n|W|M|o_proj|o_lon_p|o_lat_p|type)=[A-Za-z0-9_.+-]{1,40}"
    rf"|towgs84={NUMBER}(?:,{NUMBER}){{2}}(?:(?:,{NUMBER}){{4}})?|nadgrids=@null"
    r"|no_defs|no_uoff|no_off|approx|R_A|south|over|wktext)",
    re.ASCII,
)
WKT_FILES: Final = re.compile(r"PARAMETERFILE|PROJ4_GRIDS|grids=(?!@null)", re.IGNORECASE)
"""What names a file in well-known text; "@null" names none (GDAL writes web Mercator so)."""

EPSG: Final = re.compile(r"(?:\+?init=)?epsg:(\d{4,6})(?: \+(?:no_defs|type=crs|wktext))*", re.ASCII | re.IGNORECASE)
REFUSED_PROJECTIONS: Final = frozenset({"pipeline", "longlat", "latlong", "latlon", "lonlat"})
PROJECTION: Final = "expected one projection in metres, of plain +key=value terms"

SIZE_DIFFERENCE: Final = 1e-4
"""Largest relative difference between the pixel size that is stated and that which the corners give."""
METRES_A_DEGREE: Final = 111_200
"""Of a degree of latitude, and at most of longitude."""
CORNERS: Final = {"UL": (0, 0), "LR": (1, 1), "LL": (0, 1), "UR": (1, 0)}
"""Columns and rows, in units of the grid's, from the upper left corner; opposite ones follow each other."""
CENTRES_NOTE: Final = "its corners are those of the corner pixels' centres: the grid reaches half a pixel beyond them"


@dataclass(frozen=True)
class _Corner:
    """A corner that a file states: its name, its position in units of the grid, and its place, metres."""

    name: str
    at: tuple[int, int]
    x_m: float
    y_m: float


def read_grid(shape: tuple[int, int], where: hdf5.Attributes) -> tuple[Grid, tuple[str, ...]]:
    """Read the grid and check that sizes, scales and corners agree; gives notes about what it does not state too.

    Raises:
        DataError: They do not, or nothing says where the grid lies.
    """
    rows, cols = shape
    number = where.number
    if (number("ysize"), number("xsize")) != (rows, cols):
        raise DataError(
            f"the image has {rows} x {cols} pixels; where says {number('ysize'):g} x {number('xsize'):g}: fetch the "
            "file again or remove it"
        )
    pixel_m = number("xscale")
    if not (0 < pixel_m < 1e6 and abs(number("yscale") - pixel_m) <= SIZE_DIFFERENCE * pixel_m):
        raise DataError(f"pixels of {pixel_m:g} by {number('yscale'):g} m; expected square ones")

    projection = plain_projection(where.text("projdef"))
    corners = _corners(projection, where)
    tolerance_m = _tolerance_m(shape, pixel_m, where)
    # Some producers state the corner pixels' centres: the corners then lie one pixel less apart.
    mismatch = _mismatch(corners, (rows, cols), pixel_m, tolerance_m)
    is_centres = mismatch is not None and _mismatch(corners, (rows - 1, cols - 1), pixel_m, tolerance_m) is None
    if mismatch is not None and not is_centres:
        raise DataError(mismatch)

    inset = 1 if is_centres else 0
    first = corners[0]
    left_m = first.x_m - first.at[0] * (cols - inset) * pixel_m - inset * pixel_m / 2
    upper_m = first.y_m + first.at[1] * (rows - inset) * pixel_m + inset * pixel_m / 2
    # To the metre: corners come in degrees, with fewer digits in some files.
    grid = Grid(
        rows=rows,
        cols=cols,
        pixel_km=pixel_m / 1000,
        projection=projection,
        x0_km=round(left_m / 1000, 3) + 0.0,
        y0_km=round(upper_m / 1000, 3) + 0.0,
    )
    return grid, (CENTRES_NOTE,) if is_centres else ()


def plain_projection(text: str) -> str:
    """Check a PROJ string, or make one of an EPSG code; raises DataError for what is not plain."""
    # The database of codes lies beside PROJ itself: no file of anybody's is read.
    code = EPSG.fullmatch(" ".join(text.split()))
    projection = text
    if code is not None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                projection = pyproj.CRS.from_epsg(int(code.group(1))).to_proj4()
        except pyproj.exceptions.CRSError as error:
            raise DataError(f"projdef is {text!r:.200}, a code that PROJ does not know; {PROJECTION}") from error

    # Plain terms only: others name files, or chains of steps.
    terms = projection.split()
    kinds = [term.removeprefix("+").removeprefix("proj=") for term in terms if re.match(r"\+?proj=", term)]
    if not (
        len(projection) < 1000
        and all(PROJECTION_TERM.fullmatch(term) for term in terms)
        and len(kinds) == 1
        and kinds[0] not in REFUSED_PROJECTIONS
    ):
        raise DataError(f"projdef is {text!r:.200}; {PROJECTION}")
    return projection


def _corners(projection: str, where: hdf5.Attributes) -> list[_Corner]:
    """List the corners that are stated, those in metres first: they tell the place exactly."""
    in_metres = [
        _Corner(name, at, where.number(f"{name}_x"), where.number(f"{name}_y"))
        for name, at in CORNERS.items()
        if where.hold(f"{name}_x", f"{name}_y")
    ]
    in_degrees = [
        _Corner(name, at, *to_metres(projection, where.number(f"{name}_lon"), where.number(f"{name}_lat")))
        for name, at in CORNERS.items()
        if where.hold(f"{name}_lon", f"{name}_lat")
    ]
    # Degrees are rounded, and the ellipsoid may be another: two opposite corners prove that they fit.
    sides = [{corner.at[axis] for corner in in_degrees} for axis in (0, 1)]
    if not in_metres and not all(side == {0, 1} for side in sides):
        stated = ", ".join(corner.name for corner in in_degrees) or "none"
        raise DataError(
            f"of its corners it states {stated}; expected two opposite ones in degrees (UL_lon, UL_lat and LR_lon, "
            "LR_lat, or LL and UR), or one in metres (UL_x, UL_y): fetch the file again or remove it"
        )
    return in_metres + in_degrees


def _tolerance_m(shape: tuple[int, int], pixel_m: float, where: hdf5.Attributes) -> float:
    """Compute how far two corners may lie from their distance: the pixels' size, and the digits of the degrees."""
    degrees = [f"{name}_{axis}" for name in CORNERS for axis in ("lon", "lat")]
    digits = [-int(_exponent(where.number(name))) for name in degrees if where.hold(name)]
    rounding_m = math.sqrt(2) * METRES_A_DEGREE * 10.0 ** -max(digits, default=15)
    # A pixel at most, whatever the digits; a metre at least, to which corners are rounded.
    return max(1.0, min(SIZE_DIFFERENCE * max(shape) * pixel_m + rounding_m, pixel_m / 2))


def _exponent(value: float) -> Any:
    return Decimal(repr(value)).as_tuple().exponent


def _mismatch(corners: list[_Corner], between: tuple[int, int], pixel_m: float, tolerance_m: float) -> str | None:
    """Find two corners that are not so many rows and columns apart; gives the error's text."""
    rows, cols = between
    for first, second in combinations(corners, 2):
        wide_m = (second.at[0] - first.at[0]) * cols * pixel_m
        high_m = (second.at[1] - first.at[1]) * rows * pixel_m
        stated = (second.x_m - first.x_m, first.y_m - second.y_m)
        if max(abs(stated[0] - wide_m), abs(stated[1] - high_m)) > tolerance_m:
            return (
                f"the corners are {abs(stated[0]) / 1000:.3f} km by {abs(stated[1]) / 1000:.3f} km apart; expected "
                f"{abs(wide_m) / 1000:g} by {abs(high_m) / 1000:g} km, as sizes and scales say ({first.name} and "
                f"{second.name}, within {tolerance_m:.0f} m)"
            )
    return None


def to_metres(projection: str, lon: float, lat: float) -> tuple[float, float]:
    """Project a place; raises DataError for a projection that places it nowhere."""
    # Without its unit a projection gives metres, in which ODIM_H5 states scales whatever the projection's unit is.
    in_metres = " ".join(term for term in projection.split() if not re.match(r"\+?units=", term))
    try:
        x_m, y_m = pyproj.Proj(in_metres)(lon, lat, errcheck=True)
        if not (math.isfinite(x_m) and math.isfinite(y_m)):
            raise pyproj.exceptions.ProjError("it lies at no finite place")
    except pyproj.exceptions.ProjError as error:
        raise DataError(f"projdef {projection!r:.200} does not place {lon:g} E, {lat:g} N ({error})") from error
    return x_m, y_m
