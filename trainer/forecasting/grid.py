"""Where the pixels of a grid lie: in metres of its map projection, in degrees, in the words of the CF conventions."""

import math
import re
import warnings
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

from ...data.errors import DataError
from ...data.frames import Grid
from ...data.sources.odim_grid import PROJECTION_TERM, WKT_FILES
from ..settings.forecast import Site

NUMBER: Final = re.compile(r"[+-]?\d+\.?\d*(?:[eE][+-]?\d+)?", re.ASCII)
LENGTHS: Final = ("a", "b", "R", "x_0", "y_0")
EARTH: Final = ("a", "b", "R", "rf", "f", "es", "ellps", "datum")
"""Keys that state a figure of the Earth; BoM's files state none."""

KILOMETRES_BELOW: Final = 1e5
"""An axis of the Earth below this is stated in kilometres, with all other lengths (KNMI: +a=6378.137)."""

PART_OF_PIXEL: Final = 0.01
"""KNMI writes the axis as 6378.137 and as 6378.14 km: on its grid that is 2 m, a five-hundredth of a pixel."""

WKT: Final = re.compile(r"\s*[A-Za-z_]+\s*[\[(]")
"""How well-known text begins: a keyword and a bracket."""

WGS84: Final = "EPSG:4326"
TEXTS: Final = ("crs_wkt", "proj4")
WORDS_WITHIN_M: Final = 1.0
"""How far from a pixel its place by CF's words may lie: a thousandth of the usual pixel."""

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

    # The last of equal terms counts. Without an Earth it is that of PROJ, as long as its defaults are not refused.
    values = dict(term[1:].partition("=")[::2] for term in terms)
    if "no_defs" not in values and values.keys().isdisjoint(EARTH):
        values["datum"] = "WGS84"

    # Lengths are in metres whatever the unit of the coordinates is.
    values |= {"units": "m", "no_defs": ""}
    axis = values.get("a", values.get("R", ""))
    in_kilometres = NUMBER.fullmatch(axis) is not None and float(axis) < KILOMETRES_BELOW
    for key, value in values.items():
        if NUMBER.fullmatch(value):
            # 15 digits take off what the factor adds in rounding: 6378.137 km are 6378137 m.
            values[key] = f"{float(value) * (1000 if in_kilometres and key in LENGTHS else 1):.15g}"
    return " ".join(f"+{key}={value}" if value else f"+{key}" for key, value in values.items())


def parse_projection(projection: str) -> CRS:
    """Read a source's projection as one in metres: a PROJ string or well-known text (ISO 19162, GDAL's, ESRI's).

    Raises:
        DataError: PROJ does not know it, it names a file to read, or it gives degrees.
    """
    is_wkt = WKT.match(projection) is not None
    if is_wkt and WKT_FILES.search(projection):
        raise DataError(f"projection {projection!r:.200} names a file of shifts; expected one that needs no files")
    try:
        crs = CRS.from_wkt(projection) if is_wkt else CRS.from_proj4(in_metres(projection))
        if not crs.is_projected:
            raise DataError(f"projection {projection!r:.200} gives degrees; expected a map projection in metres")
        return _with_axes_in_metres(crs)
    except CRSError as error:
        raise DataError(f"projection {projection!r:.200} cannot be used: {error}") from error


def _with_axes_in_metres(crs: CRS) -> CRS:
    """Give the coordinates of a projection in metres, whatever unit its text counts them in."""
    if all(axis.unit_conversion_factor == 1 for axis in crs.axis_info):
        return crs
    values = crs.to_json_dict()
    projected = values.get("source_crs", values)
    for axis in projected["coordinate_system"]["axis"]:
        axis["unit"] = "metre"
    # It is no longer what the register of EPSG describes by this number.
    projected.pop("id", None)
    return CRS.from_json_dict(values)


def proj_string(projection: str) -> str:
    """Write a source's projection as a PROJ string in metres, whatever text states it."""
    if not WKT.match(projection):
        return in_metres(projection)
    with warnings.catch_warnings():
        # It warns of names and datums that no PROJ string can hold: the ellipsoid stays.
        warnings.simplefilter("ignore", UserWarning)
        return in_metres(parse_projection(projection).to_proj4())


def to_degrees(
    projection: str, x_m: npt.NDArray[np.float64], y_m: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Give (longitude, latitude) in degrees of points in metres.

    They are those of WGS 84 where the projection says how its datum lies to it (+towgs84, a registered datum), and else
    those of its own ellipsoid or sphere: what `pyproj.Proj` gives.

    Args:
        projection: As a source states it.
        x_m: Eastings, any shape.
        y_m: Northings, of a shape that broadcasts with it.
    """
    transformer = Transformer.from_crs(parse_projection(projection), WGS84, always_xy=True)
    every_x_m, every_y_m = np.broadcast_arrays(x_m, y_m)
    return transformer.transform(every_x_m, every_y_m)


def site_pixel(site: Site, grid: Grid) -> tuple[int, int]:
    """Find the (row, col) of the pixel that a point lies in.

    Raises:
        DataError: It lies outside the grid.
    """
    transformer = Transformer.from_crs(WGS84, parse_projection(grid.projection), always_xy=True)
    x_m, y_m = transformer.transform(site.longitude_deg, site.latitude_deg)
    # What a projection cannot show is infinitely far: no row, and no column.
    row, col = (grid.y0_km - y_m / 1000) / grid.pixel_km, (x_m / 1000 - grid.x0_km) / grid.pixel_km
    if not (0 <= row < grid.rows and 0 <= col < grid.cols):
        corners_deg = to_degrees(grid.projection, *(axis_m[[0, -1]] for axis_m in pixel_centres_m(grid)))
        (west, east), (north, south) = corners_deg
        raise DataError(
            f"--place {site} lies outside the forecast's grid, whose corners are {north:.2f} N, {west:.2f} E and "
            f"{south:.2f} N, {east:.2f} E; give a place inside, or forecast a larger --crop"
        )
    return int(row), int(col)


def cf_attributes(projection: str) -> dict[str, Any]:
    """Give the attributes of a grid mapping variable: CF conventions, appendix F; and a PROJ string as `proj4`."""
    crs = parse_projection(projection)
    with warnings.catch_warnings():
        # It warns of what CF has no words for; `grid_mapping` looks whether that matters.
        warnings.simplefilter("ignore", UserWarning)
        words = crs.to_cf()
    attributes = {name: value for name, value in words.items() if value != "unknown" and name not in REPETITIONS}
    # PROJ leaves out what follows from the standard parallel: which pole it is, where the cone's origin lies.
    match attributes.get("grid_mapping_name"), attributes.get("standard_parallel"):
        case "polar_stereographic", float(parallel_deg):
            attributes.setdefault("latitude_of_projection_origin", math.copysign(90.0, parallel_deg))
        case "lambert_conformal_conic", float(parallel_deg):
            attributes.setdefault("latitude_of_projection_origin", parallel_deg)
    return attributes if WKT.match(projection) else {**attributes, "proj4": in_metres(projection)}


def grid_mapping(grid: Grid) -> dict[str, Any]:
    """Give the attributes of a grid's mapping variable, of which every reader makes the same projection.

    Not every projection has words in CF (a Swiss oblique Mercator read by its words lies 1000 km away, and a scale
    factor of Lambert's cone is not among them): where they do not lead back, the texts alone describe it.
    """
    attributes = cf_attributes(grid.projection)
    words = {name: value for name, value in attributes.items() if name not in TEXTS}
    try:
        words_hold = bool((_moved_m(grid, CRS.from_cf(words)) < WORDS_WITHIN_M).all())
    except CRSError:
        words_hold = False
    return attributes if words_hold else {name: attributes[name] for name in TEXTS if name in attributes}


def same_projection(grid: Grid, projection: str) -> bool:
    """Check that another projection puts the corners of a grid at the same place, to a small part of a pixel."""
    if grid.projection == projection:
        return True
    return bool((_moved_m(grid, parse_projection(projection)) < PART_OF_PIXEL * 1000 * grid.pixel_km).all())


def _moved_m(grid: Grid, crs: CRS) -> npt.NDArray[np.float64]:
    """Measure how far the four outermost pixels of a grid lie from where another projection puts them, in metres."""
    x_m, y_m = (corner_m.ravel() for corner_m in np.meshgrid(*(axis_m[[0, -1]] for axis_m in pixel_centres_m(grid))))
    transformer = Transformer.from_crs(parse_projection(grid.projection), crs, always_xy=True)
    moved_m: npt.NDArray[np.float64] = np.hypot(*np.subtract(transformer.transform(x_m, y_m), (x_m, y_m)))
    return moved_m


def pixel_centres_m(grid: Grid) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Give the eastings (cols,) and northings (rows,) of a grid's pixel centres, in metres; row 0 lies in the north."""
    x_m = 1000 * (grid.x0_km + (np.arange(grid.cols, dtype=np.float64) + 0.5) * grid.pixel_km)
    y_m = 1000 * (grid.y0_km - (np.arange(grid.rows, dtype=np.float64) + 0.5) * grid.pixel_km)
    return x_m, y_m
