"""Find where the pixels of a variable lie: its horizontal coordinates, their spacing and order, and the projection."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyproj

from ...errors import DataError
from ...frames import Grid
from ...json_checks import shown
from ..odim_grid import PROJECTION_TERM, WKT_FILES

if TYPE_CHECKING:
    import xarray as xr

EARTH_RADIUS_M: Final = 6_371_000
"""Mean radius of the Earth (IUGG, R1, to the kilometre): a grid in degrees is plate carrée on this sphere."""
PLATE_CARREE: Final = f"+proj=eqc +lat_ts=0 +lon_0=0 +R={EARTH_RADIUS_M} +units=m"
DEGREE_M: Final = math.radians(EARTH_RADIUS_M)
SQUARE: Final = 0.01
"""Largest relative difference between a pixel's sides that still counts as square."""
AGREEMENT: Final = 1e-4
"""Largest relative difference between the stated size of pixels and the one by the grid's coordinates."""
UNEVEN: Final = 0.02
"""Pixels that a coordinate may lie off its place: 32-bit floats do so by 0.002 of a hundredth of a degree."""
PIXELS_M: Final = (10, 200_000)
"""Smallest and largest pixels of a composite, metres: of X-band radars in towns, and of satellites' coarsest."""
SAME_M: Final = 1.0
"""Metres that a projection's short text may move a corner on the Earth."""
METRES: Final[Mapping[str, float]] = {
    **dict.fromkeys(("m", "metre", "meter", "metres", "meters"), 1.0),
    **dict.fromkeys(("km", "kilometre", "kilometer", "kilometres", "kilometers"), 1000.0),
}
NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "x": ("projection_x_coordinate", "longitude", "grid_longitude", "x", "lon", "easting"),
    "y": ("projection_y_coordinate", "latitude", "grid_latitude", "y", "lat", "northing"),
}
"""Standard names and usual names of the coordinates, by axis."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where a variable's pixels lie.

    Attributes:
        grid: The grid, north up.
        x_name: Dimension from west to east.
        y_name: Dimension from north to south, or from south to north.
        is_south_up: Whether the first row is the southernmost.
    """

    grid: Grid
    x_name: str
    y_name: str
    is_south_up: bool


def locate(dataset: "xr.Dataset", variable: "xr.DataArray") -> Placed:
    """Find where a variable's pixels lie.

    Raises:
        DataError: Coordinates that are missing, uneven or descending from west to east; pixels that are not square; a
            projection that is missing or cannot be used.
    """
    x_name, y_name = _axis(dataset, variable, "x"), _axis(dataset, variable, "y")
    mapping = _mapping_attributes(dataset, variable)
    is_degrees = _is_degrees(dataset[x_name], mapping)
    first_x, step_x = _evenly(dataset, x_name, circle=is_degrees)
    first_y, step_y = _evenly(dataset, y_name)
    if step_x < 0:
        raise DataError(f"{x_name} falls from {first_x:g} on; expected columns from west to east")

    # Edges: half a pixel outside of the outermost centres.
    is_south_up = step_y > 0
    cols, rows = dataset.sizes[x_name], dataset.sizes[y_name]
    left = first_x - step_x / 2
    upper = (first_y + (rows - 1) * step_y if is_south_up else first_y) + abs(step_y) / 2
    unit = 1.0 if is_degrees else _metres(dataset[x_name], mapping) / _crs_metres(mapping)
    step_x, step_y = _stated_steps(mapping, (left, upper), (step_x, step_y), unit)
    if is_degrees:
        if max(upper, rows * abs(step_y) - upper) > 90 + abs(step_y):
            raise DataError(f"{y_name} reaches beyond the poles; expected latitudes, of -90 to 90 degrees")
        projection, x_m, y_m = _plate_carree(step_x, abs(step_y))
        # Degrees east run on to 360 in some files.
        left -= 360 if left >= 180 else 0
    else:
        x_m, y_m = _metres(dataset[x_name], mapping), _metres(dataset[y_name], mapping)
        projection = ""
    wide_m, high_m = step_x * x_m, abs(step_y) * y_m
    if abs(high_m - wide_m) > SQUARE * wide_m:
        raise DataError(f"pixels of {wide_m / 1000:g} by {high_m / 1000:g} km; expected square ones")
    if not PIXELS_M[0] <= wide_m <= PIXELS_M[1]:
        raise DataError(
            f"pixels of {wide_m:g} m, by the coordinates {x_name} and {y_name} and their units; expected "
            f"{PIXELS_M[0]} m to {PIXELS_M[1] // 1000} km: coordinates in km state the units km, and numbers of "
            "pixels are no coordinates"
        )

    corners = (left * x_m, upper * y_m, left * x_m + cols * wide_m, upper * y_m - rows * high_m)
    grid = Grid(
        rows=rows,
        cols=cols,
        pixel_km=round(wide_m / 1000, 6),
        projection=projection or _projection(tuple(mapping.items()), corners),
        x0_km=round(corners[0] / 1000, 3) + 0.0,
        y0_km=round(corners[1] / 1000, 3) + 0.0,
    )
    return Placed(grid=grid, x_name=x_name, y_name=y_name, is_south_up=is_south_up)


def _axis(dataset: "xr.Dataset", variable: "xr.DataArray", axis: str) -> str:
    """Find the dimension that runs along an axis, by its standard name, its attribute axis or its own name."""
    for dimension in variable.dims:
        name = str(dimension)
        attributes = dataset[name].attrs if name in dataset.variables else {}
        standard_name = str(attributes.get("standard_name", "")).lower()
        if standard_name in NAMES[axis] or str(attributes.get("axis", "")).lower() == axis:
            return name
    for dimension in variable.dims:
        if str(dimension).lower() in NAMES[axis] and dimension in dataset.variables:
            return str(dimension)
    raise DataError(
        f"none of its dimensions {', '.join(map(str, variable.dims))} has a coordinate along {axis}; expected one with "
        f"the standard_name {NAMES[axis][0]} or {NAMES[axis][1]}"
    )


def _evenly(dataset: "xr.Dataset", name: str, *, circle: bool = False) -> tuple[float, float]:
    """Read the first value of a coordinate and its step; of degrees in a circle, also across 360 or 180.

    Raises:
        DataError: Values that are not evenly spaced, or that do not lie in the middle of their bounds.
    """
    values = np.asarray(dataset[name].values)
    if values.ndim != 1 or len(values) < 2 or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise DataError(f"{name} is {values.dtype} of shape {values.shape}; expected 2 numbers and more")
    values = values.astype(np.float64)
    values = np.unwrap(values, period=360) if circle else values
    step = (values[-1] - values[0]) / (len(values) - 1)
    ideal = values[0] + step * np.arange(len(values))
    off = float(np.max(np.abs(values - ideal)))
    if step == 0 or off > UNEVEN * abs(step):
        raise DataError(
            f"{name} is unevenly spaced: up to {off:g} off steps of {step:g}; expected a regular grid: "
            "resample it first"
        )

    # Pixels reach as far to one side as to the other, unless the coordinates are their edges.
    bounds = dataset.get(str(dataset[name].attrs.get("bounds", dataset[name].encoding.get("bounds", ""))))
    if bounds is not None and bounds.shape == (len(values), 2):
        first, last = sorted(np.asarray(bounds.values[0], np.float64).tolist())
        if max(abs(first - values[0] + abs(step) / 2), abs(last - values[0] - abs(step) / 2)) > UNEVEN * abs(step):
            raise DataError(
                f"{name} starts at {values[0]:g}, its bounds {bounds.name} at {first:g} to {last:g}; expected "
                f"coordinates of the pixels' centres, {step:g} apart"
            )
    return float(values[0]), float(step)


def _mapping_attributes(dataset: "xr.Dataset", variable: "xr.DataArray") -> Mapping[str, Any]:
    """Find the attributes of a variable's grid mapping; none where it has none."""
    name = variable.attrs.get("grid_mapping", variable.encoding.get("grid_mapping", ""))
    # CF's long form: "crs: x y" names the coordinates too.
    name = str(name).split(":")[0].strip()
    for candidate in (name, "spatial_ref", "crs"):
        if candidate in dataset.variables:
            return {name: _plain(value) for name, value in dataset[candidate].attrs.items()}
    return {}


def _stated_steps(
    mapping: Mapping[str, Any], corner: tuple[float, float], steps: tuple[float, float], unit: float
) -> tuple[float, float]:
    """Take the size of pixels that GDAL's GeoTransform states, which has to agree with the coordinates.

    Args:
        mapping: Attributes of the grid mapping.
        corner: Left and upper edge by the coordinates.
        steps: Steps of the coordinates.
        unit: The coordinates' unit in the projection's, in which GeoTransform is.

    Raises:
        DataError: Sizes differ, the grid is skewed, or the two are a part of a pixel away from each other.
    """
    step_x, step_y = steps
    stated = mapping.get("GeoTransform", "")
    words = list(stated) if isinstance(stated, tuple) else str(stated).replace(",", " ").split()
    if len(words) != 6:
        return steps
    try:
        left, stated_x, skew_x, upper, skew_y, stated_y = (float(word) / unit for word in words)
    except ValueError as error:
        raise DataError(f"GeoTransform is {shown(stated)}; expected six numbers") from error

    agree = abs(stated_x - step_x) <= AGREEMENT * step_x and abs(abs(stated_y) - abs(step_y)) <= AGREEMENT * abs(step_y)
    if skew_x or skew_y or not agree:
        raise DataError(
            f"GeoTransform states pixels of {stated_x:g} by {stated_y:g} (skewed by {skew_x:g}, {skew_y:g}), its "
            f"coordinates are {step_x:g} and {step_y:g} apart; expected the same, and no skew"
        )
    # A part of a grid may keep the whole one's, which is whole pixels away.
    pixels = ((corner[0] - left) / step_x, (corner[1] - upper) / step_y)
    if any(abs(away - round(away)) > UNEVEN for away in pixels):
        raise DataError(
            f"GeoTransform states the corner {left:g}, {upper:g}, its coordinates {corner[0]:g}, {corner[1]:g}, "
            f"{pixels[0]:.2f} and {pixels[1]:.2f} pixels away; expected whole ones: coordinates are pixels' centres, "
            "and GeoTransform counts from their edge"
        )
    return stated_x, math.copysign(stated_y, step_y)


def _is_degrees(x: "xr.DataArray", mapping: Mapping[str, Any]) -> bool:
    standard_name, units = str(x.attrs.get("standard_name", "")).lower(), str(x.attrs.get("units", "")).lower()
    if "rotated" in str(mapping.get("grid_mapping_name", "")) or standard_name == "grid_longitude":
        raise DataError(f"{x.name} is in degrees of a rotated pole; expected longitudes, or metres of a projection")
    is_unstated = not units and not standard_name
    is_geographic = mapping.get("grid_mapping_name") == "latitude_longitude" or str(x.name).lower() in (
        "lon",
        "longitude",
    )
    if is_unstated and not is_geographic and mapping:
        is_geographic = _crs(mapping).is_geographic
    return standard_name == "longitude" or units.startswith("degree") or (is_unstated and is_geographic)


def _plate_carree(step_lon: float, step_lat: float) -> tuple[str, float, float]:
    """Give the plate carrée in which a grid of degrees has square pixels, and metres a degree east and north."""
    if abs(step_lat - step_lon) <= AGREEMENT * step_lon:
        return PLATE_CARREE, DEGREE_M, DEGREE_M
    if step_lat > step_lon:
        raise DataError(f"pixels of {step_lon:g} by {step_lat:g} degrees; expected none that are higher than wide")
    # Meridians that are closer than on the equator: the parallel on which they are.
    narrow = step_lat / step_lon
    parallel = f"{math.degrees(math.acos(narrow)):.10g}"
    return PLATE_CARREE.replace("+lat_ts=0", f"+lat_ts={parallel}"), DEGREE_M * narrow, DEGREE_M


def _metres(coordinate: "xr.DataArray", mapping: Mapping[str, Any]) -> float:
    """Find how many metres a coordinate's unit has: its own, or that of the projection where it states none."""
    units = str(coordinate.attrs.get("units", "")).strip().lower()
    if units in METRES:
        return METRES[units]
    if units not in ("", "1"):
        raise DataError(f"{coordinate.name} is in {shown(units)}; expected m, km or degrees")
    return _crs_metres(mapping)


def _crs_metres(mapping: Mapping[str, Any]) -> float:
    """Find how many metres the unit of a projection has."""
    return float(_crs(mapping).axis_info[0].unit_conversion_factor or 1.0)


def _crs(mapping: Mapping[str, Any]) -> pyproj.CRS:
    """Read the projection of a grid mapping: well-known text, or the words of CF."""
    text = next((str(mapping[name]) for name in ("crs_wkt", "spatial_ref", "esri_pe_string") if name in mapping), "")
    if WKT_FILES.search(text):
        raise DataError(f"its projection {shown(text)} names a file of shifts; expected one that needs none")
    try:
        if text:
            return pyproj.CRS.from_wkt(text)
        proj4 = next((str(mapping[name]) for name in ("proj4", "proj4text", "proj4_params") if name in mapping), "")
        if "grid_mapping_name" not in mapping and proj4 and all(map(PROJECTION_TERM.fullmatch, proj4.split())):
            return pyproj.CRS.from_proj4(proj4)
        return pyproj.CRS.from_cf(dict(mapping))
    except (pyproj.exceptions.CRSError, KeyError, TypeError, ValueError) as error:
        stated = text or ", ".join(f"{name}={value}" for name, value in mapping.items()) or "no grid_mapping"
        raise DataError(
            f"its projection cannot be read from {shown(stated)} ({shown(error)}); expected a grid_mapping with "
            "crs_wkt or the words of CF, or coordinates in degrees"
        ) from error


def _plain(value: Any) -> Any:
    """Turn numpy's numbers and arrays into Python's numbers, texts and tuples."""
    plain = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    return tuple(plain) if isinstance(plain, list) else plain


@lru_cache(maxsize=64)
def _projection(words: tuple[tuple[str, Any], ...], corners: tuple[float, float, float, float]) -> str:
    """Write a projection as a PROJ string in metres where that is the same on this grid, else as well-known text.

    Once for the many files of a grid: PROJ takes a third of a second.
    """
    crs = _crs(dict(words))
    if not crs.is_projected:
        raise DataError(f"its projection {shown(crs.name)} gives degrees; expected coordinates with the units degrees")

    with warnings.catch_warnings():
        # It warns that such a string may lose something; whether it does is looked at below.
        warnings.simplefilter("ignore")
        terms = [term for term in crs.to_proj4().split() if not term.startswith(("+units=", "+type=", "+no_defs"))]
    text = " ".join([*terms, "+units=m", "+no_defs"])
    if all(map(PROJECTION_TERM.fullmatch, terms)) and _moved_m(crs, text, corners) < SAME_M:
        return text
    return crs.to_wkt()


def _moved_m(crs: pyproj.CRS, text: str, corners: tuple[float, float, float, float]) -> float:
    """Measure how far a projection's text moves the corners of a grid on the Earth, metres."""
    left, upper, right, lower = corners
    x_m: npt.NDArray[np.float64] = np.array([left, right, right, left])
    y_m: npt.NDArray[np.float64] = np.array([upper, upper, lower, lower])
    try:
        # In WGS 84: a text without the datum may keep the metres and move the degrees.
        lon, lat, text_lon, text_lat = (
            degrees
            for one in (crs, pyproj.CRS.from_proj4(text))
            for degrees in pyproj.Transformer.from_crs(one, "EPSG:4326", always_xy=True).transform(x_m, y_m)
        )
    except pyproj.exceptions.ProjError:
        return math.inf
    east, north = (text_lon - lon) * np.cos(np.radians(lat)), text_lat - lat
    moved_m = DEGREE_M * np.hypot(east, north)
    return float(moved_m.max()) if np.isfinite(moved_m).all() else math.inf
