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
from .content import Content, Provenance
from .grid import grid_mapping, pixel_centres_m, to_degrees

CONVENTIONS: Final = "CF-1.8"
TIME_UNITS: Final = "seconds since 1970-01-01 00:00:00"
LEAD_UNITS: Final = "seconds since %Y-%m-%d %H:%M:%S"
"""Units of valid times, counted from the last radar frame's end: pysteps takes the numbers for lead times."""
REFERENCES: Final = (
    "SparK: Tian et al. 2023, https://arxiv.org/abs/2301.03580; SpaT-SparK: Li, Siebes and Mehrkanoon 2024, "
    "https://arxiv.org/abs/2412.15917"
)
COMPRESSION_LEVEL: Final = 4
RAIN_NAME: Final = "rainfall_rate"
PYSTEPS_NAME: Final = "precip_intensity"
"""Second name of the same variable, by which pysteps' `import_netcdf_pysteps` looks for rain; it takes no room."""


def write_forecast(path: Path, content: Content) -> None:
    """Write a forecast; the file appears whole or not at all.

    Raises:
        DataError: The projection is not known, or the file cannot be written.
    """
    grid = content.grid
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        file.dimensions = {"time": content.num_leads, "y": grid.rows, "x": grid.cols, "nv": 2}
        for name, value in _global_attributes(content.provenance).items():
            file.attrs[name] = value
        _write_times(file, content.reference_time_s, content.cadence_s, content.num_leads)
        _write_grid(file, grid)
        _write_rain(file, content.rain_mmh_thw)
    # A second link to the same data, which NetCDF's own libraries cannot make.
    with h5py.File(buffer, "r+") as file:
        file[PYSTEPS_NAME] = file[RAIN_NAME]
    open_storage(path.parent).write(path.name, buffer.getvalue())


def read_rain(path: Path) -> npt.NDArray[np.float32]:
    """Read the rain of a forecast that `write_forecast` has written: mm/h, (leads, rows, cols), NaN where missing.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with h5netcdf.File(path, "r") as file:
            rain_mmh_thw: npt.NDArray[np.float32] = file.variables[RAIN_NAME][...]
            return rain_mmh_thw
    except (OSError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as a forecast of ours: {error}") from error


def _global_attributes(provenance: Provenance) -> dict[str, str]:
    return {
        "Conventions": CONVENTIONS,
        "title": "Precipitation nowcast",
        "institution": provenance.institution,
        "source": f"{provenance.model}, run on radar composites: {provenance.source}",
        "history": provenance.history,
        "references": REFERENCES,
        # Spelled as the Attribute Convention for Data Discovery 1.3 does: that is where programs look.
        "license": provenance.licence,
        "comment": provenance.comment,
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


def _write_rain(file: Any, rain_mmh_thw: npt.NDArray[np.floating]) -> None:
    # Infinite values are no forecast either: readers know one missing value.
    rain: npt.NDArray[np.float32] = np.where(np.isfinite(rain_mmh_thw), rain_mmh_thw, np.nan).astype(np.float32)
    missing = np.float32(np.nan)
    variable = _write(file, RAIN_NAME, ("time", "y", "x"), rain, "forecast rain rate", "mm h-1", fillvalue=missing)
    variable.attrs["cell_methods"] = "time: mean"
    variable.attrs["grid_mapping"] = "crs"
    variable.attrs["coordinates"] = "lat lon forecast_period forecast_reference_time"


def _write(
    file: Any,
    name: str,
    dimensions: tuple[str, ...],
    values: Any,
    long_name: str = "",
    units: str = "",
    **settings: Any,
) -> Any:
    """Write a variable; with a long name it also gets its own name as CF's standard name.

    Fields are compressed, one lead a chunk, so that a lead is read alone.
    """
    array = np.asarray(values)
    if array.ndim > 1:
        chunks = array.shape if array.ndim == 2 else (1, *array.shape[1:])
        settings |= {"compression": "gzip", "compression_opts": COMPRESSION_LEVEL, "shuffle": True, "chunks": chunks}
    variable = file.create_variable(name, dimensions, array.dtype, data=array, **settings)

    if long_name:
        variable.attrs.update({"standard_name": name, "long_name": long_name, "units": units})
    return variable
