"""State in one way what formats say in their own words: tags of GeoTIFFs, flags and periods of RADOLAN, MRMS' codes."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ...errors import DataError
from ...json_checks import shown
from .times import parse_compact

if TYPE_CHECKING:
    import xarray as xr

GDAL_METADATA: Final = "GDAL_METADATA"
"""The tag of GeoTIFFs, and of some writers an item inside it, that holds items as XML."""
ITEM: Final = re.compile(r'<Item\s+name="([^"<>]{1,80})"([^<>]{0,200})>([^<>]{0,200})</Item>')
UNIT: Final = re.compile(r'\bunit="([^"<>]{1,40})"')
MRMS_DISCIPLINE: Final = "209"
"""NSSL's own discipline of GRIB2, as GDAL states it."""
MRMS_CENTRE: Final = "161"
"""NOAA's Office of Oceanic and Atmospheric Research, which NSSL is part of, as ecCodes states it."""
MRMS_MISSING: Final = (-1.0, -3.0, -99.0, -999.0)
"""What MRMS writes for a missing value and for no coverage: of rates, and of reflectivities (MRMS GRIB2 tables)."""
EVERYTHING: Final = (-math.inf, math.inf)
"""The valid range of what states none."""
NETCDF: Final = ("h5netcdf", "netcdf4", "scipy")
FILLS: Final = {
    "i2": -32767,
    "u2": 65535,
    "i4": -(2**31) + 1,
    "u4": 2**32 - 1,
    "f4": 2.0**122 * 1.875,
    "f8": 2.0**122 * 1.875,
}
"""NetCDF's own fill values by type (netcdf.h): what was never written is them."""
MASKS: Final = ("cluttermask", "nodatamask")
"""Variables of wradlib that mark pixels without a measurement."""


@dataclass(frozen=True, kw_only=True)
class Peculiar:
    """What a format says about a variable in its own words.

    Attributes:
        attributes: The variable's, with units in CF's way.
        end_time_s: When its one frame ends, epoch seconds UTC.
        period_s: Over which time its values are means or sums.
        missing: Numbers that are no measurement.
        dry: The number of a pixel without an echo.
        gain: What a number is multiplied with.
        offset: What is added to it then.
        masks: Variables of the data set that are true where nothing was measured.
        valid: Smallest and largest number that is a measurement.
    """

    attributes: Mapping[str, Any] = field(default_factory=dict)
    end_time_s: int | None = None
    period_s: int | None = None
    missing: tuple[float, ...] = ()
    dry: float | None = None
    gain: float = 1.0
    offset: float = 0.0
    masks: tuple[str, ...] = ()
    valid: tuple[float, float] = EVERYTHING


def peculiar_of(dataset: "xr.Dataset", variable: "xr.DataArray", path: Path | None, engine: str) -> Peculiar:
    """Find what a file's format says in its own words.

    Args:
        dataset: The data set.
        variable: Its variable.
        path: The file; None in a store.
        engine: What opened it.

    Raises:
        DataError: A tag that is none.
    """
    peculiar = _of_format(dataset, variable, path, engine)
    codes = _default_fill(variable) if engine in NETCDF else ()
    return replace(peculiar, valid=_valid_range(variable), missing=(*peculiar.missing, *codes))


def _valid_range(variable: "xr.DataArray") -> tuple[float, float]:
    """Read the range of a variable's measurements, as CF and NetCDF's guide have it, in its decoded numbers."""
    attributes = variable.attrs
    ends = np.atleast_1d(attributes.get("valid_range", (attributes.get("valid_min"), attributes.get("valid_max"))))
    try:
        low, high = (end if end is None else _decoded(variable, np.asarray(end)) for end in ends)
    except (TypeError, ValueError) as error:
        raise DataError(f"its valid range is {shown(ends.tolist())}; expected two numbers") from error

    # By less than half a step of packed numbers nothing lies outside of it.
    half = abs(float(variable.encoding.get("scale_factor", 0.0))) / 2
    return (-math.inf if low is None else low - half, math.inf if high is None else high + half)


def _default_fill(variable: "xr.DataArray") -> tuple[float, ...]:
    """Give the number that NetCDF fills a variable with by itself, where the file states none (bytes have none)."""
    stored = np.dtype(variable.encoding.get("dtype", variable.dtype))
    if "_FillValue" in variable.encoding or f"{stored.kind}{stored.itemsize}" not in FILLS:
        return ()
    return (_decoded(variable, np.array(FILLS[f"{stored.kind}{stored.itemsize}"], stored)),)


def _decoded(variable: "xr.DataArray", number: "np.ndarray[Any, Any]") -> float:
    """Decode a number as xarray did the variable's: one of the stored type is packed, another is not."""
    encoding = variable.encoding
    stored = np.dtype(encoding.get("dtype", variable.dtype))
    if number.dtype.kind not in "iuf":
        raise TypeError(f"{number.dtype}")
    if stored.kind in "iu" and number.dtype.kind not in "iu":
        return float(number)
    if str(encoding.get("_Unsigned", "")).lower() == "true" and number < 0:
        number = number + 2 ** (8 * stored.itemsize)

    # Step by step in the type that was decoded to: the code is then found again as it is.
    decoded = np.array([number], variable.dtype)
    if variable.dtype.kind == "f":
        decoded *= encoding.get("scale_factor", 1.0)
        decoded += encoding.get("add_offset", 0.0)
    return float(decoded[0])


def _of_format(dataset: "xr.Dataset", variable: "xr.DataArray", path: Path | None, engine: str) -> Peculiar:
    """Find what a file's format alone says."""
    attributes = dict(variable.attrs)
    if engine == "rasterio" and GDAL_METADATA in {**dataset.attrs, **attributes}:
        return _of_tags(attributes, str({**dataset.attrs, **attributes}[GDAL_METADATA]))
    if engine == "radolan" and path is not None:
        masks = tuple(name for name in MASKS if name in dataset.variables)
        return Peculiar(attributes=attributes, period_s=_radolan_period_s(path), masks=masks)

    # A GRIB message at a point in time (template 4.0), as GDAL and ecCodes state it.
    is_instant = str(attributes.get("GRIB_PDS_PDTN")) == "0" or attributes.get("GRIB_stepType") == "instant"
    discipline, centre = str(attributes.get("GRIB_DISCIPLINE", "")), str(dataset.attrs.get("GRIB_centre", ""))
    is_mrms = discipline.startswith(MRMS_DISCIPLINE) or centre == MRMS_CENTRE
    return Peculiar(attributes=attributes, period_s=0 if is_instant else None, missing=MRMS_MISSING if is_mrms else ())


def _of_tags(attributes: dict[str, Any], xml: str) -> Peculiar:
    """Read the items of a GeoTIFF: what FMI's say."""
    items = {name.lower(): (words, text.strip()) for name, words, text in ITEM.findall(xml)}
    words, _ = items.get("quantity", ("", ""))
    unit = UNIT.search(words)
    if unit is not None:
        attributes = {"units": unit[1], **attributes}

    time = items.get("observation time")
    missing, dry = _number(items, "nodata"), _number(items, "undetect")
    gain, offset = _number(items, "gain"), _number(items, "offset")
    return Peculiar(
        attributes=attributes,
        end_time_s=None if time is None else parse_compact(time[1]),
        missing=() if missing is None else (missing,),
        dry=dry,
        gain=1.0 if gain is None else gain,
        offset=0.0 if offset is None else offset,
    )


def _number(items: Mapping[str, tuple[str, str]], name: str) -> float | None:
    if name not in items:
        return None
    try:
        return float(items[name][1])
    except ValueError as error:
        raise DataError(f"its tag {name} is {shown(items[name][1])}; expected a number") from error


def _radolan_period_s(path: Path) -> int:
    """Read from a RADOLAN header over which time the values are sums; reflectivities are of one moment."""
    from wradlib.io.radolan import read_radolan_composite

    header = read_radolan_composite(str(path), loaddata=False)[1]
    return int(header["intervalseconds"])
