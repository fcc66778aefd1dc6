"""State in one way what formats say in their own words: tags of GeoTIFFs, flags and periods of RADOLAN, MRMS' codes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

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
    """

    attributes: Mapping[str, Any] = field(default_factory=dict)
    end_time_s: int | None = None
    period_s: int | None = None
    missing: tuple[float, ...] = ()
    dry: float | None = None
    gain: float = 1.0
    offset: float = 0.0
    masks: tuple[str, ...] = ()


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
