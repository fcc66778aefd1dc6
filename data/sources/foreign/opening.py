"""Open files of strangers with xarray, lazily: the format by its first bytes, the engine that reads it, nothing else.

No engine is let at a file of another format than its own: GDAL would follow a virtual raster to any file or address,
and cfgrib would unpickle an index that lies beside a file. netCDF4, GDAL and HDF5 are not made for several threads.
"""

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import h5py

from ...errors import ConfigError, DataError
from ...json_checks import shown
from ..hdf5 import ChoiceError, check_inside
from ..places.formats import format_of_file

if TYPE_CHECKING:
    import xarray as xr

ENGINES: Final[Mapping[str, tuple[str, ...]]] = {
    "h5netcdf": ("an HDF5 file",),
    "netcdf4": ("an HDF5 file", "a NetCDF-3 file"),
    "scipy": ("a NetCDF-3 file",),
    "rasterio": ("a TIFF file", "a GRIB file"),
    "cfgrib": ("a GRIB file",),
    "radolan": ("a RADOLAN composite", "a RADOLAN composite, gzip-compressed"),
    "zarr": ("a Zarr store",),
}
"""The engines of xarray that may be used, and the formats that each may open (data.sources.places.formats)."""
USUAL: Final[Mapping[str, str]] = {
    "an HDF5 file": "h5netcdf",
    "a NetCDF-3 file": "netcdf4",
    "a TIFF file": "rasterio",
    "a GRIB file": "rasterio",
    "a RADOLAN composite": "radolan",
    "a RADOLAN composite, gzip-compressed": "radolan",
    "a Zarr store": "zarr",
}
"""The engine of each format: GDAL keeps the units and times of GRIB messages that ecCodes has no table for."""
DRIVERS: Final[Mapping[str, str]] = {"a TIFF file": "GTiff", "a GRIB file": "GRIB"}
"""GDAL's drivers by format."""
ZARR_MARKS: Final = ("zarr.json", ".zgroup", ".zmetadata")
GZIPPED: Final = "gzip-compressed"
"""How the names of what is compressed end (data.sources.places.formats)."""
MAX_GROUPS: Final = 1000
ALONE: Final = threading.Lock()
"""Held while a library below reads a file."""
PACKAGES: Final = "pip install 'rainspark[formats]'"


def is_zarr(path: Path) -> bool:
    """Check whether a folder is a Zarr store, by its metadata."""
    return any((path / mark).is_file() for mark in ZARR_MARKS)


def is_known(path: Path) -> bool:
    """Check whether a file is of a format that an engine here opens."""
    form = format_of_file(path)
    return form is not None and form.name.removesuffix(f", {GZIPPED}") in USUAL


def engine_for(path: Path, engine: str | None, name: str) -> str:
    """Choose the engine that opens a file.

    Raises:
        ChoiceError: Its format is none that is read here, or not the one of the engine that was asked for.
    """
    form = format_of_file(path)
    if form is None or form.name not in USUAL:
        known = "its format is not known" if form is None else f"it is {form.name}: {form.advice}"
        raise ChoiceError(f"{name}: {known}; expected NetCDF, Zarr, GRIB, GeoTIFF or RADOLAN")
    if engine is not None and form.name not in ENGINES[engine]:
        raise ChoiceError(f"{name} is {form.name}, which the engine {engine} does not read; leave --engine away")
    return engine or USUAL[form.name]


@contextlib.contextmanager
def opened(path: Path, engine: str | None, name: str) -> Iterator["xr.Dataset"]:
    """Open a file lazily; nobody else reads one until the block ends.

    Args:
        path: The file.
        engine: What opens it; None for the usual engine of its format.
        name: What messages call it.

    Raises:
        DataError: It is damaged, of another format, or refers to other files; a package is not installed.
    """
    chosen = engine_for(path, engine, name)
    with ALONE, warnings.catch_warnings():
        # Of several fill values, all of which are masked; of georeferences that a file lacks.
        warnings.simplefilter("ignore")
        with explaining(name, chosen):
            if chosen in ("h5netcdf", "netcdf4"):
                _check_links(path)
            with _opened(path, chosen) as dataset:
                yield dataset


@contextlib.contextmanager
def explaining(name: str, engine: str) -> Iterator[None]:
    """Turn whatever xarray and the libraries below it raise into errors that name the file."""
    try:
        yield
    except DataError as error:
        text = str(error)
        raise type(error)(text if text.startswith(name) else f"{name}: {text}") from error
    except ConfigError:
        raise
    except ImportError as error:
        raise DataError(f"{name}: the engine {engine} is not installed ({error}): {PACKAGES}") from error
    # They raise nearly everything, depending on which byte is wrong.
    except Exception as error:
        if "unrecognized engine" in str(error):
            raise DataError(f"{name}: the engine {engine} is not installed: {PACKAGES}") from error
        raise DataError(
            f"{name} cannot be read by the engine {engine} ({type(error).__name__}: {shown(error)}); it is damaged or "
            "of another kind: fetch it again or remove it"
        ) from error


def _opened(path: Path, engine: str) -> "xr.Dataset":
    import xarray as xr

    options: dict[str, Any] = {}
    if engine == "rasterio":
        form = format_of_file(path)
        assert form is not None, "the engine was chosen by the format"
        options = {"open_kwargs": {"driver": DRIVERS[form.name]}}
    elif engine == "cfgrib":
        # Without an index: it is a pickle.
        options = {"indexpath": ""}
    elif engine == "radolan":
        options = {"ancillary": True}
    return xr.open_dataset(str(path), engine=engine, chunks=None, cache=False, backend_kwargs=options)


def _check_links(path: Path) -> None:
    """Refuse an HDF5 file that refers to other files, by links or by values that are kept there."""
    if not h5py.is_hdf5(path):
        return
    with h5py.File(path, "r") as file:
        groups: list[Any] = [file]
        for group in groups:
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise DataError(f"{shown(name)} is a link, perhaps into another file; links are never followed")
                item = group[name]
                if isinstance(item, h5py.Dataset):
                    check_inside(item)
                elif isinstance(item, h5py.Group) and len(groups) < MAX_GROUPS:
                    groups.append(item)
