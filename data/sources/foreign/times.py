"""Find when a variable's frames end and over how long their values are means or sums, as CF says it and GDAL's tags."""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from ...json_checks import shown
from .quantity import SECONDS

if TYPE_CHECKING:
    import xarray as xr

NANOSECONDS: Final = 1_000_000_000
MAX_PERIOD_S: Final = 86_400
SPANS: Final = re.compile(r"\btime:\s*(?:sum|mean|maximum|minimum|mid_range|median)\b", re.IGNORECASE)
"""A method of CF's cell_methods that makes one value of a span of time."""
VALID_TIME: Final = "GRIB_VALID_TIME"
"""GDAL's tag of the time that a GRIB message is valid for, epoch seconds."""
START: Final = "start_time"
"""The scalar that stands beside the time of a sum in files without bounds (BoM's Rainfields)."""
BOUNDS: Final = ("bnds", "bounds")
"""How names of bounds end that no attribute names."""
ZONES: Final = re.compile(r"(time_?zone|tz(_?info|_?name)?|(utc|gmt|time)_?offset)", re.IGNORECASE)
"""Attributes that state a time zone."""
NAMED_ZONE: Final = re.compile(r"\bsince\s+[\d-]+(?:[T\s]+[\d:.]+)?+\s*([A-Za-z].*?)\s*$")
"""A word behind the origin of times: xarray drops the names of zones."""
UTC_NAMES: Final = re.compile(r"|(etc/)?(utc|gmt|ut|z|zulu|universal)?([+-]?0*(:0*)?)?", re.IGNORECASE)
"""UTC, whether by a name or by an offset of nothing."""
INTERVAL: Final = re.compile(
    r"\btime:\s*(?!point\b)\w+[^()]*\([^()]*\binterval:\s*(\d+(?:\.\d+)?)\s*([a-z]+)", re.IGNORECASE
)
"""A method over time and the interval of what went into it, as CF's cell_methods say it."""


def time_variable(dataset: "xr.Dataset", variable: "xr.DataArray") -> "xr.DataArray | None":
    """Find the times of a variable: its coordinate in time, or a scalar of the data set; None where there are none.

    Raises:
        DataError: Times of a calendar of models, or several that differ.
    """
    # When a forecast was issued is no time of its values.
    candidates = [
        dataset[name]
        for name in dataset.variables
        if _is_time(dataset[name])
        if dataset[name].attrs.get("standard_name") != "forecast_reference_time"
        if set(dataset[name].dims) <= set(variable.dims) or dataset[name].size == 1
    ]

    # A dimension of the variable comes before what only stands beside it.
    candidates.sort(
        key=lambda time: (not set(time.dims) & set(variable.dims), time.attrs.get("standard_name") != "time")
    )
    if not candidates:
        return None

    # xarray leaves calendars such as those of 360 days as objects or numbers.
    times = candidates[0]
    if times.dtype.kind != "M":
        raise DataError(
            f"{times.name} is {times.dtype}; expected times of the usual calendar, in units such as seconds since "
            "1970-01-01"
        )
    if times.ndim > 1:
        raise DataError(f"{times.name} has dimensions {', '.join(map(str, times.dims))}; expected one at most")
    _check_zone(dataset, times)
    return times


def _is_time(values: "xr.DataArray") -> bool:
    """Tell times by their standard name or usual name, or as a dimension that consists of times."""
    is_dimension = values.dtype.kind == "M" and values.dims == (values.name,)
    return values.attrs.get("standard_name") == "time" or values.name in ("time", "valid_time") or is_dimension


def _check_zone(dataset: "xr.Dataset", times: "xr.DataArray") -> None:
    """Refuse times of another zone than UTC that were decoded as if they were UTC; raises DataError."""
    for name, text in _zones(dataset, times):
        if not UTC_NAMES.fullmatch(text.replace(" ", "")):
            raise DataError(
                f"{times.name} states the zone {shown(text)!r} ({name}); expected times in UTC, or an offset in its "
                "units such as 'seconds since 2024-01-01 00:00:00 +02:00': write them in UTC first"
            )


def _zones(dataset: "xr.Dataset", times: "xr.DataArray") -> Iterator[tuple[str, str]]:
    """List what says in which zone times are, and what it says."""
    named = NAMED_ZONE.search(str(times.encoding.get("units", "")))
    if named is not None:
        yield "units", named[1]
    for name, value in {**dataset.attrs, **times.attrs}.items():
        if ZONES.fullmatch(name):
            yield name, str(value)
    if re.search(r"\blocal\b", str(times.attrs.get("long_name", "")), re.IGNORECASE):
        yield "long_name", str(times.attrs["long_name"])


def end_times_s(dataset: "xr.Dataset", variable: "xr.DataArray") -> npt.NDArray[np.int64] | None:
    """Read when the frames of a variable end, epoch seconds UTC (frames,); None where the data set does not say.

    That is the upper bound of each time where there are bounds, else the time itself.

    Raises:
        DataError: A time is missing.
    """
    times = time_variable(dataset, variable)
    if times is None:
        return _tagged_times(variable.attrs, dataset.attrs)
    bounds = bounds_of(dataset, times)
    ends = times.values.reshape(-1) if bounds is None else bounds.max(axis=1)
    if np.isnat(ends).any():
        raise DataError(f"{times.name} holds times that are missing; expected one of each frame")
    # To the second: days as floats are off by microseconds.
    nanoseconds = ends.astype("datetime64[ns]").astype(np.int64)
    return np.asarray(np.rint(nanoseconds / NANOSECONDS), np.int64)


def bounds_of(dataset: "xr.Dataset", times: "xr.DataArray") -> npt.NDArray[Any] | None:
    """Read the bounds of times (frames, 2); None where there are none."""
    name = times.attrs.get("bounds", times.encoding.get("bounds"))
    if name is None:
        name = next((f"{times.name}_{end}" for end in BOUNDS if f"{times.name}_{end}" in dataset.variables), None)
    if name in dataset.variables and dataset[name].dtype.kind == "M":
        bounds = dataset[name].values.reshape(-1, 2)
        if len(bounds) == times.size:
            return bounds
        raise DataError(
            f"{name} holds {len(bounds)} pairs of bounds, {times.name} {times.size} times; expected as many"
        )
    if START in dataset.variables and dataset[START].dtype.kind == "M" and dataset[START].size == times.size:
        return np.stack([dataset[START].values.reshape(-1), times.values.reshape(-1)], axis=1)
    return None


def period_s(dataset: "xr.Dataset", variable: "xr.DataArray", kind: str) -> int | None:
    """Find over which time a variable's values are means or sums, seconds; 0 of instantaneous ones, None if unstated.

    Args:
        dataset: The data set.
        variable: Its variable.
        kind: What it is (`data.sources.foreign.quantity`).

    Raises:
        DataError: Bounds of several lengths, or longer than a day.
    """
    methods = str(variable.attrs.get("cell_methods", ""))
    if kind == "reflectivity" or re.search(r"\btime:\s*point\b", methods):
        return 0
    times = time_variable(dataset, variable)
    bounds = None if times is None else bounds_of(dataset, times)
    if bounds is None:
        return None if kind == "amount" else _interval_s(methods, times)

    spans = np.unique(np.abs(np.diff(bounds, axis=1)).astype("timedelta64[s]").astype(np.int64))
    # Where the bounds are the time itself they say nothing.
    if len(spans) != 1 or not 0 <= spans[0] <= MAX_PERIOD_S:
        listed = ", ".join(f"{span:g}" for span in spans[:4])
        raise DataError(f"the bounds of its times are {listed} s apart; expected one period, of at most a day")
    return int(spans[0]) or None


def _interval_s(methods: str, times: "xr.DataArray | None") -> int | None:
    """Read over which time rates are means at least, where only the interval of their samples is stated, seconds.

    An interval that is no longer than the step of the times says nothing: samples are taken within a period.
    """
    match = INTERVAL.search(methods)
    if match is None or match[2].lower() not in SECONDS:
        return None
    interval_s = round(float(match[1]) * SECONDS[match[2].lower()])
    if times is not None and times.size > 1:
        first, second = times.values.reshape(-1)[:2].astype("datetime64[s]").astype(np.int64)
        return None if interval_s <= second - first else interval_s
    return interval_s


def _tagged_times(attributes: Mapping[str, Any], everywhere: Mapping[str, Any]) -> npt.NDArray[np.int64] | None:
    """Read the one time that GDAL's tags of a file state."""
    valid = re.match(r"\d+", str(attributes.get(VALID_TIME, everywhere.get(VALID_TIME, ""))).strip())
    return None if valid is None else np.array([int(valid[0])], np.int64)


def parse_compact(text: str) -> int:
    """Parse a time of digits, YYYYmmddHHMM with or without seconds; raises DataError for another."""
    try:
        time = datetime.strptime(text, "%Y%m%d%H%M%S" if len(text) == 14 else "%Y%m%d%H%M")
    except ValueError as error:
        raise DataError(f"a tag states the time {shown(text)}; expected YYYYMMDDhhmm") from error
    return int(time.replace(tzinfo=UTC).timestamp())
