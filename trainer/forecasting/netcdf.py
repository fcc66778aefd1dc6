"""A forecast as a NetCDF-4 file after the CF conventions: grid, projection, times, and who made it from what.

CF conventions 1.8, https://cfconventions.org/Data/cf-conventions/cf-conventions-1.8/cf-conventions.html; names from the
CF standard name table.
"""

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import h5netcdf
import h5py
import numpy as np
import numpy.typing as npt

from ...data.errors import DataError
from ...data.frames import Grid
from ...data.store.storage import open_storage
from .content import Content
from .grid import grid_mapping, pixel_centres_m, to_degrees
from .probabilities import STEPS_PER_MMH, Ensemble, Shares

CONVENTIONS: Final = "CF-1.8"
CONVENTIONS_OF_BYTES: Final = "CF-1.9"
"""The first that know unsigned bytes (2.2), as which an ensemble's probabilities are packed (8.1)."""
NO_COUNT: Final = np.uint8(255)
NO_RATE: Final = np.uint16(65535)
SHARE_OF_MEMBERS: Final = "realization: mean (comment: of 1 where a member exceeds the threshold, and 0 elsewhere)"
TIME_UNITS: Final = "seconds since 1970-01-01 00:00:00"
LEAD_UNITS: Final = "seconds since %Y-%m-%d %H:%M:%S"
"""Units of valid times, counted from the last radar frame's end: pysteps takes the numbers for lead times."""
REFERENCES: Final = (
    "SparK: Tian et al. 2023, https://arxiv.org/abs/2301.03580; SpaT-SparK: Li, Siebes and Mehrkanoon 2024, "
    "https://arxiv.org/abs/2412.15917"
)
COMPRESSION_LEVEL: Final = 4
RAIN_NAME: Final = "rainfall_rate"
MEAN_NAME: Final = "rainfall_rate_mean"
PYSTEPS_NAME: Final = "precip_intensity"
"""Second name of the same variable, by which pysteps' `import_netcdf_pysteps` looks for rain; it takes no room."""


def write_forecast(path: Path, content: Content) -> None:
    """Write a forecast; the file appears whole or not at all.

    Of an ensemble `rainfall_rate` holds the members, (realization, time, y, x). They and their quantiles are packed in
    16 bits, in steps of 1/128 mm/h; their mean is float32; probabilities are counts of members, packed in 8 bits, or
    float32 where members are missing at single pixels.

    Raises:
        DataError: The projection is not known, or the file cannot be written.
    """
    grid = content.grid
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        file.dimensions = {"time": content.num_leads, "y": grid.rows, "x": grid.cols, "nv": 2}
        for name, value in _global_attributes(content).items():
            file.attrs[name] = value
        _write_times(file, content.reference_time_s, content.cadence_s, content.num_leads)
        _write_grid(file, grid)
        if content.ensemble is None:
            _write_rain(file, RAIN_NAME, ("time",), content.rain_mmh_thw, "forecast rain rate")
        else:
            _write_ensemble(file, content, content.ensemble)
    # A second link to the same data, which NetCDF's own libraries cannot make.
    with h5py.File(buffer, "r+") as file:
        file[PYSTEPS_NAME] = file[RAIN_NAME]
    open_storage(path.parent).write(path.name, buffer.getvalue())


def read_rain(path: Path) -> npt.NDArray[np.float32]:
    """Read the rain of a forecast that `write_forecast` has written: mm/h, (leads, rows, cols), NaN where missing.

    Of an ensemble it is the mean.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with h5netcdf.File(path, "r") as file:
            name = MEAN_NAME if MEAN_NAME in file.variables else RAIN_NAME
            rain_mmh_thw: npt.NDArray[np.float32] = file.variables[name][...]
            return rain_mmh_thw
    except (OSError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as a forecast of ours: {error}") from error


def _global_attributes(content: Content) -> dict[str, str]:
    provenance = content.provenance
    attributes = {
        "Conventions": CONVENTIONS,
        "title": "Precipitation nowcast",
        "institution": provenance.institution,
        "source": f"{provenance.model}, run on radar composites: {provenance.source}",
        "history": provenance.history,
        "references": REFERENCES,
        # Spelled as the Attribute Convention for Data Discovery 1.3 does: that is where programs look.
        "license": provenance.licence,
        "comment": content.comment,
    }
    if content.ensemble is None:
        return attributes

    members, seed = content.ensemble.num_members, content.ensemble.options.seed
    return attributes | {
        "Conventions": CONVENTIONS_OF_BYTES,
        "title": "Precipitation nowcast, an ensemble",
        "ensemble": f"{members} members, equally likely, of seed {seed}",
    }


def _write_times(file: Any, reference_time_s: int, cadence_s: int, num_leads: int) -> None:
    # CF 1.8 knows no integers of 64 bits (2.2), and 32 end in 2038; float64 holds whole seconds exactly.
    leads_s = cadence_s * np.arange(1, num_leads + 1, dtype=np.float64)
    units = datetime.fromtimestamp(reference_time_s, UTC).strftime(LEAD_UNITS)

    time = _write(file, "time", ("time",), leads_s, "valid time, UTC", units)
    time.attrs.update({"axis": "T", "bounds": "time_bounds", "calendar": "standard"})
    # Boundary variables take their units from their parent: CF 7.1.
    _write(file, "time_bounds", ("time", "nv"), np.stack([leads_s - cadence_s, leads_s], axis=1))

    # Where the leads start from, and how far each of them lies ahead.
    long_name = "end of the last radar frame, UTC"
    reference = _write(file, "forecast_reference_time", (), np.float64(reference_time_s), long_name, TIME_UNITS)
    reference.attrs["calendar"] = "standard"
    _write(file, "forecast_period", ("time",), leads_s / 60, "lead time", "minutes")


def _write_grid(file: Any, grid: Grid) -> None:
    # The axes of the grid, in metres of its projection.
    x_m, y_m = pixel_centres_m(grid)
    for axis, values_m, direction in (("x", x_m, "easting"), ("y", y_m, "northing")):
        variable = _write(file, axis, (axis,), values_m, f"{direction} of the pixel's centre", "m")
        variable.attrs.update({"standard_name": f"projection_{axis}_coordinate", "axis": axis.upper()})

    # The same pixels in degrees, for programs that know no projections.
    longitude_deg, latitude_deg = to_degrees(grid.projection, x_m[None, :], y_m[:, None])
    for word, values_deg, direction in (("latitude", latitude_deg, "north"), ("longitude", longitude_deg, "east")):
        degrees: npt.NDArray[np.float32] = values_deg.astype(np.float32)
        variable = _write(file, word[:3], ("y", "x"), degrees, f"{word} of the pixel's centre", f"degrees_{direction}")
        variable.attrs["standard_name"] = word

    # The projection: its attributes are what counts, its value means nothing (CF 5.6).
    _write(file, "crs", (), np.int32(0)).attrs.update(grid_mapping(grid))


def _write_ensemble(file: Any, content: Content, ensemble: Ensemble) -> None:
    """Write the members, and what follows from them."""
    options = ensemble.options
    members = np.arange(ensemble.num_members, dtype=np.int32)
    _write_axis(file, "realization", members, "number of the member", "1", standard_name="realization")
    long_name = "forecast rain rate of each member"
    rain = _write_packed(file, RAIN_NAME, ("realization", "time"), ensemble.members_mmh_mthw, long_name)
    rain.attrs["num_not_finite"] = np.int32(ensemble.num_nonfinite)

    # The rain that is likely.
    mean = _write_rain(file, MEAN_NAME, ("time",), ensemble.mean_mmh_thw, "mean rain rate of the members")
    mean.attrs["cell_methods"] = "time: mean realization: mean"
    _write_axis(file, "quantile", options.quantiles, "quantile of the members", "1")
    long_name = "quantiles of the members' rain rates"
    _write_packed(file, f"{RAIN_NAME}_quantile", ("quantile", "time"), ensemble.quantiles_mmh_qthw, long_name)

    # How likely rain rates are, here and nearby.
    long_name = "rain rate that is exceeded"
    _write_axis(file, "threshold", options.thresholds_mmh, long_name, "mm h-1", standard_name=RAIN_NAME)
    _write_axis(file, "radius", options.radii_km, "distance within which rain counts", "km")
    long_name = "probability of a rain rate above the threshold at any pixel within the radius"
    _write_shares(file, "probability", ("threshold", "radius", "time"), ensemble.exceeding, long_name)

    # How likely sums of an hour are.
    hours_s = np.array([[hour.start, hour.stop] for hour in content.hours], np.float64) * content.cadence_s
    units = file.variables["time"].attrs["units"]
    hour = _write_axis(file, "hour", hours_s[:, 1], "end of the hour, UTC", units, standard_name="time")
    hour.attrs.update({"bounds": "hour_bounds", "calendar": "standard"})
    _write(file, "hour_bounds", ("hour", "nv"), hours_s)
    standard_name = "thickness_of_rainfall_amount"
    long_name = "rain sum that is exceeded"
    _write_axis(file, "sum_threshold", options.sum_thresholds_mm, long_name, "mm", standard_name=standard_name)
    long_name = "probability of a rain sum of the hour above the threshold"
    _write_shares(file, "probability_of_sum", ("sum_threshold", "hour"), ensemble.sums_exceeding, long_name)


def _write_axis(file: Any, name: str, values: Any, long_name: str, units: str, *, standard_name: str = "") -> Any:
    """Write a dimension and its coordinate; numbers of our own are float64, so that 0.1 is 0.1."""
    array = np.asarray(values)
    file.dimensions[name] = len(array)
    return _write(file, name, (name,), array, long_name, units, standard_name=standard_name)


def _write_shares(file: Any, name: str, dimensions: tuple[str, ...], shares: Shares, long_name: str) -> None:
    """Write probabilities: bytes that count members, or float32 where members were left out at single pixels."""
    most = int(shares.of.max())
    settings: dict[str, Any]
    if np.isin(shares.of, (0, most)).all():
        values: Any = np.where(shares.of > 0, shares.counts, NO_COUNT)
        settings = {"fillvalue": NO_COUNT}
    else:
        values = shares.probability()
        settings = {"fillvalue": np.float32(np.nan)}

    axes = (*dimensions, "y", "x")
    variable = _write(file, name, axes, values, long_name, "1", standard_name="", **settings)
    if values.dtype == np.uint8:
        variable.attrs["scale_factor"] = np.float32(1 / max(most, 1))
    variable.attrs.update({"cell_methods": SHARE_OF_MEMBERS, "grid_mapping": "crs", "coordinates": "lat lon"})


def _write_packed(
    file: Any, name: str, dimensions: tuple[str, ...], rain_mmh: npt.NDArray[np.float32], long_name: str
) -> Any:
    """Write rounded rain as counts of its steps, which read back as the same float32."""
    counts = np.empty(rain_mmh.shape, np.uint16)
    for index in np.ndindex(rain_mmh.shape[:-2]):
        steps_hw = rain_mmh[index] * np.float32(STEPS_PER_MMH)
        counts[index] = np.where(np.isnan(steps_hw), np.float32(NO_RATE), steps_hw)
    variable = _write_field(file, name, dimensions, counts, long_name, NO_RATE)
    variable.attrs["scale_factor"] = np.float32(1 / STEPS_PER_MMH)
    return variable


def _write_rain(
    file: Any, name: str, dimensions: tuple[str, ...], rain_mmh: npt.NDArray[np.floating], long_name: str
) -> Any:
    # Infinite values are no forecast either: readers know one missing value.
    rain: npt.NDArray[np.float32] = np.where(np.isfinite(rain_mmh), rain_mmh, np.nan).astype(np.float32)
    return _write_field(file, name, dimensions, rain, long_name, np.float32(np.nan))


def _write_field(
    file: Any, name: str, dimensions: tuple[str, ...], values: npt.NDArray[Any], long_name: str, missing: Any
) -> Any:
    axes = (*dimensions, "y", "x")
    variable = _write(file, name, axes, values, long_name, "mm h-1", standard_name=RAIN_NAME, fillvalue=missing)
    variable.attrs["cell_methods"] = "time: mean"
    variable.attrs["grid_mapping"] = "crs"
    variable.attrs["coordinates"] = "lat lon forecast_period forecast_reference_time"
    return variable


def _write(
    file: Any,
    name: str,
    dimensions: tuple[str, ...],
    values: Any,
    long_name: str = "",
    units: str = "",
    *,
    standard_name: str | None = None,
    **settings: Any,
) -> Any:
    """Write a variable; with a long name it also gets CF's standard name: its own name, unless another is stated.

    Fields are compressed, one lead a chunk, so that a lead is read alone.
    """
    array = np.asarray(values)
    if array.ndim > 1:
        chunks = (1,) * (array.ndim - 2) + array.shape[-2:]
        settings |= {"compression": "gzip", "compression_opts": COMPRESSION_LEVEL, "shuffle": True, "chunks": chunks}
    variable = file.create_variable(name, dimensions, array.dtype, data=array, **settings)

    if long_name:
        standard_name = name if standard_name is None else standard_name
        variable.attrs.update({"standard_name": standard_name} if standard_name else {})
        variable.attrs.update({"long_name": long_name, "units": units})
    return variable
