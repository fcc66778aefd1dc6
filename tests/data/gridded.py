"""Data sets as weather services publish them: NetCDF and Zarr of rain or reflectivity, with CF's coordinates."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import xarray as xr

FIRST = np.datetime64("2024-06-01T00:00", "ns")
ROWS, COLS = 12, 10


@dataclass(frozen=True, kw_only=True)
class Service:
    """How a service publishes.

    Attributes:
        variable: The variable's name.
        attributes: Its units and names.
        factor: What makes its numbers of mm/h.
        dtype: What they are stored as.
        encoding: How xarray packs them.
        crs: The projection; None for degrees.
        is_south_up: Whether rows run from the south.
        options: What the command needs beside the variable.
    """

    variable: str
    attributes: dict[str, str]
    factor: float = 1.0
    dtype: str = "float32"
    encoding: dict[str, Any] = field(default_factory=dict)
    crs: str | None = "EPSG:3035"
    is_south_up: bool = False
    options: tuple[str, ...] = ()


# Like those of mlcast's catalogue: five countries, each in its own way.
SERVICES = {
    "italy": Service(
        variable="RR",
        attributes={"units": "kg m-2 h-1", "standard_name": "rainfall_flux"},
        dtype="float16",
        crs="+proj=tmerc +lat_0=42 +lon_0=12.5 +k=1 +x_0=0 +y_0=0 +ellps=WGS84 +units=m",
    ),
    "denmark": Service(
        variable="rainfall_flux",
        attributes={"units": "kg m-2 s-1", "standard_name": "rainfall_flux"},
        factor=1 / 3600,
        dtype="float64",
        crs="+proj=stere +lat_0=56 +lon_0=10.5666 +ellps=WGS84 +units=m",
        is_south_up=True,
    ),
    "germany": Service(
        variable="rainfall_amount",
        attributes={"units": "mm", "standard_name": "rainfall_amount"},
        factor=1 / 12,
        crs="+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 +R=6370040 +units=m",
        is_south_up=True,
        options=("--period-min", "5"),
    ),
    "netherlands": Service(
        variable="precipitation",
        attributes={"units": "mm/h", "standard_name": "precipitation_flux"},
        dtype="uint16",
        encoding={"dtype": "uint16", "scale_factor": 0.12, "add_offset": 0.0, "_FillValue": 65535},
        crs="EPSG:28992",
    ),
    "spain": Service(
        variable="rate", attributes={"units": "m s-1", "standard_name": "rainfall_rate"}, factor=1 / 3.6e6, crs=None
    ),
}


def rain_mmh(number: int) -> npt.NDArray[np.float64]:
    """Draw one frame of rain, north up, (rows, cols), with missing and dry pixels: multiples of 0.12 mm/h."""
    random = np.random.default_rng(number)
    rain_hw = np.asarray(0.12 * random.integers(0, 200, (ROWS, COLS)), np.float64)
    rain_hw[random.random((ROWS, COLS)) < 0.3] = 0.0
    rain_hw[random.random((ROWS, COLS)) < 0.1] = np.nan
    return rain_hw


def dataset_of(service: Service, num_frames: int, *, cadence_min: int = 5) -> xr.Dataset:
    """Make a service's data set, frames `rain_mmh(0)` and on."""
    values = np.stack([rain_mmh(number) * service.factor for number in range(num_frames)])
    values = values[:, ::-1] if service.is_south_up else values
    times = FIRST + np.arange(num_frames) * np.timedelta64(cadence_min, "m")
    if service.crs is None:
        x, y = 2.005 + 0.01 * np.arange(COLS), 42.995 - 0.01 * np.arange(ROWS)
        x_attributes = {"units": "degrees_east", "standard_name": "longitude"}
        y_attributes = {"units": "degrees_north", "standard_name": "latitude"}
        names = ("lat", "lon")
    else:
        x, y = 1000.0 * (10.5 + np.arange(COLS)), 1000.0 * (-20.5 - np.arange(ROWS))
        x_attributes = {"units": "m", "standard_name": "projection_x_coordinate"}
        y_attributes = {"units": "m", "standard_name": "projection_y_coordinate"}
        names = ("y", "x")
    y = y[::-1] if service.is_south_up else y

    dataset = xr.Dataset(
        {service.variable: (("time", *names), values, {**service.attributes, "long_name": "rain"})},
        {
            "time": ("time", times, {"standard_name": "time"}),
            names[0]: (names[0], y, y_attributes),
            names[1]: (names[1], x, x_attributes),
        },
        {"license": "CC-BY-4.0", "institution": "nobody", "Conventions": "CF-1.8"},
    )
    if not service.encoding:
        dataset[service.variable] = dataset[service.variable].astype(service.dtype)
        dataset[service.variable].attrs = {**service.attributes, "long_name": "rain"}
    if service.crs is not None:
        wkt = pyproj.CRS.from_user_input(service.crs).to_wkt()
        dataset["crs"] = ((), 0, {"crs_wkt": wkt, "spatial_ref": wkt})
        dataset[service.variable].attrs["grid_mapping"] = "crs"
    return dataset


def write_zarr(path: Path, service: Service, num_frames: int, version: int, **changes: Any) -> xr.Dataset:
    """Write a service's data set as Zarr, a chunk a frame; gives it."""
    dataset = dataset_of(service, num_frames)
    encoding = {service.variable: {"chunks": (1, ROWS, COLS), **service.encoding, **changes}}
    dataset.to_zarr(path, zarr_format=version, encoding=encoding, consolidated=version == 2)
    return dataset


def write_netcdf(path: Path, service: Service, num_frames: int) -> xr.Dataset:
    """Write a service's data set as NetCDF-4; gives it."""
    dataset = dataset_of(service, num_frames)
    encoding = {service.variable: dict(service.encoding)}
    if service.dtype == "float16":
        # HDF5 knows half floats, NetCDF does not.
        dataset[service.variable] = (
            dataset[service.variable].astype("float32").assign_attrs(dataset[service.variable].attrs)
        )
    dataset.to_netcdf(path, engine="h5netcdf", encoding=encoding)
    return dataset
