"""Small KNMI-format files for tests, and ways to break them."""

import hashlib
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyproj

from rainspark.data.frames import Crop
from rainspark.data.pack.survey import PackOptions
from rainspark.data.sources.knmi import KnmiSource
from rainspark.data.sources.knmi_writer import file_name, product_time, write_knmi_file
from rainspark.data.sources.source import Header
from rainspark.data.sources.storms.regime import Event
from rainspark.data.sources.synthetic import iterate_storms

FIRST_S = 1_577_836_800 - 600
"""31 December 2019, 23:50 UTC: series of three frames and more cross the new year."""


CROP = Crop(row0=2, row1=10, col0=1, col1=9)
OPTIONS = PackOptions(crop=CROP, window=4, max_frames=9)
# Three runs: 30, 2 (shorter than the window) and 8 frames.
NUMBERS = [*range(30), *range(35, 37), *range(40, 48)]


def random_counts(number: int, rows: int, cols: int) -> npt.NDArray[np.uint16]:
    """Make a frame that differs from every other, about half of it dry, with a missing pixel now and then."""
    random = np.random.default_rng(number)
    counts = random.integers(0, 400, (rows, cols)) * (random.random((rows, cols)) < 0.1 * (number % 11))
    counts[random.random((rows, cols)) < 0.01] = 65535
    return counts.astype(np.uint16)


def storms(
    num_frames: int, rows: int, cols: int, seed: int, *, radar_circle: bool = False, **wind: float
) -> npt.NDArray[np.uint16]:
    """Make the frames of one weather system at once: (t, rows, cols)."""
    event = Event(num_frames=num_frames, seed=seed, **wind)  # type: ignore[arg-type]
    return np.stack(list(iterate_storms(event, rows, cols, radar_circle=radar_circle)))


def read_header(path: Path) -> Header:
    """Read what a KNMI file says of its frame."""
    (ref,) = KnmiSource().scan([path]).refs
    return KnmiSource().survey(ref).header


def write_series(
    folder: Path, numbers: Iterable[int], *, size: tuple[int, int] = (12, 10), cadence_s: int = 300
) -> list[Path]:
    """Write frames `numbers` of a series; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in numbers:
        end_time_s = FIRST_S + number * cadence_s
        paths.append(folder / file_name(end_time_s))
        write_knmi_file(paths[-1], random_counts(number, *size), end_time_s)
    return paths


def change(path: Path, edit: Callable[[Any], None]) -> None:
    """Edit a file in place with h5py."""
    with h5py.File(path, "r+") as file:
        edit(file)


def set_attribute(member: str, name: str, value: Any) -> Callable[[Any], None]:
    """Make an edit that sets an attribute."""

    def edit(file: Any) -> None:
        file[member].attrs[name] = value

    return edit


def drop_attribute(member: str, name: str) -> Callable[[Any], None]:
    """Make an edit that removes an attribute."""

    def edit(file: Any) -> None:
        del file[member].attrs[name]

    return edit


def replace_dataset(name: str, **arguments: Any) -> Callable[[Any], None]:
    """Make an edit that puts another dataset in one's place."""

    def edit(file: Any) -> None:
        del file[name]
        file.create_dataset(name, **arguments)

    return edit


def replace_image(**arguments: Any) -> Callable[[Any], None]:
    """Make an edit that puts another dataset in the place of a KNMI file's image."""
    return replace_dataset("image1/image_data", **arguments)


def replace_by_link(name: str, link: Any) -> Callable[[Any], None]:
    """Make an edit that puts a link in a member's place."""

    def edit(file: Any) -> None:
        del file[name]
        file[name] = link

    return edit


def replace_by_virtual(name: str, source: str = "other.h5") -> Callable[[Any], None]:
    """Make an edit that puts a virtual dataset, whose values lie in another file, in one's place."""

    def edit(file: Any) -> None:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        layout = h5py.VirtualLayout(shape, dtype)
        layout[:] = h5py.VirtualSource(source, name, shape)
        file.create_virtual_dataset(name, layout)

    return edit


def digests(folder: Path) -> dict[str, str]:
    """Give the SHA-256 of every file of a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def without_rights() -> Iterator[None]:
    """Work as a user whom closed folders stop: tests may be run by root, whom nothing stops."""
    if os.geteuid():
        yield
        return
    # Python's first use of strptime imports a module, which nobody may be allowed to read.
    assert datetime.strptime("2020", "%Y").year == 2020
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def closed_folder(mode: int) -> Iterator[tuple[Path, Path]]:
    """Make a folder that any user reaches, and inside it one with a radar file and this mode."""
    folder = Path(tempfile.mkdtemp(prefix="rainspark-"))
    try:
        folder.chmod(0o755)
        closed = folder / "closed"
        write_series(closed, [1])
        closed.chmod(mode)
        yield folder, closed
    finally:
        closed.chmod(0o755)
        shutil.rmtree(folder)


def write_archive(path: Path, files: Iterable[Path], *, stored: bool = False) -> Path:
    """Put files into a tar or zip, by its ending, in a folder inside it."""
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as tar:
            for file in files:
                tar.add(file, arcname=f"2020/{file.name}")
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, f"2020/{file.name}")
    return path


LAEA = "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84"
"""OPERA's projection: its composites' upper left corner lies at (0, 0)."""


def odim_name(end_time_s: int) -> str:
    """Name an ODIM file as OPERA does."""
    return f"T_TEST21_C_EUOC_{datetime.fromtimestamp(end_time_s, UTC):%Y%m%d%H%M%S}.hdf"


def write_odim_file(
    path: Path,
    raw_hw: npt.NDArray[Any],
    end_time_s: int,
    *,
    quantity: str = "RATE",
    levels: tuple[float, float, float, float] = (1.0, 0.0, -9999000.0, -8888000.0),
    period_s: int = 300,
    **storage: Any,
) -> None:
    """Write a composite as ODIM_H5 says, of 2 km pixels.

    Args:
        path: The file.
        raw_hw: Stored values (rows, cols).
        end_time_s: End of the data and nominal time.
        quantity: What they are.
        levels: Gain, offset, nodata, undetect.
        period_s: From the start of the data to their end.
        storage: How h5py stores the values.
    """
    rows, cols = raw_hw.shape
    to_degrees = pyproj.Proj(LAEA)
    corners = {"UL": (0, 0), "UR": (cols, 0), "LL": (0, rows), "LR": (cols, rows)}
    start, end = (datetime.fromtimestamp(time_s, UTC) for time_s in (end_time_s - period_s, end_time_s))
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_2")
        what = file.create_group("what").attrs
        what.update(object=np.bytes_("COMP"), version=np.bytes_("H5rad 2.2"), source=np.bytes_("ORG:247"))
        what.update(date=np.bytes_(f"{end:%Y%m%d}"), time=np.bytes_(f"{end:%H%M%S}"))
        where = file.create_group("where").attrs
        where.update(projdef=np.bytes_(LAEA), xsize=cols, ysize=rows, xscale=2000.0, yscale=2000.0)
        for name, (col, row) in corners.items():
            where[f"{name}_lon"], where[f"{name}_lat"] = to_degrees(col * 2000.0, -row * 2000.0, inverse=True)
        period = file.create_group("dataset1/what").attrs
        period.update(startdate=np.bytes_(f"{start:%Y%m%d}"), starttime=np.bytes_(f"{start:%H%M%S}"))
        period.update(enddate=np.bytes_(f"{end:%Y%m%d}"), endtime=np.bytes_(f"{end:%H%M%S}"))
        gain, offset, nodata, undetect = levels
        file.create_group("dataset1/data1/what").attrs.update(
            quantity=np.bytes_(quantity), gain=gain, offset=offset, nodata=nodata, undetect=undetect
        )
        file.create_dataset("dataset1/data1/data", data=raw_hw, **storage)


def rates(number: int, rows: int, cols: int) -> npt.NDArray[np.float64]:
    """Make a frame of rates in mm/h, 0.01 apart, with OPERA's codes of no echo and no radar."""
    random = np.random.default_rng(number)
    rain_mmh = random.integers(1, 3000, (rows, cols)) / 100
    rain_mmh[random.random((rows, cols)) < 0.5] = -8888000.0
    rain_mmh[random.random((rows, cols)) < 0.1] = -9999000.0
    return rain_mmh


def write_odim_series(folder: Path, numbers: Iterable[int], *, size: tuple[int, int] = (24, 20)) -> list[Path]:
    """Write frames `numbers` of a series of rates; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in numbers:
        time_s = FIRST_S + number * 300
        paths.append(folder / odim_name(time_s))
        write_odim_file(paths[-1], rates(number, *size), time_s, chunks=(7, 9), compression="gzip")
    return paths


def write_collected(
    path: Path, groups: dict[str, tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]], **storage: Any
) -> None:
    """Write SmaAt-UNet's collected HDF5 from counts (..., rows, cols) and end times (...) of each group."""
    with h5py.File(path, "w") as file:
        for group, (counts, times_s) in groups.items():
            values = (counts / np.float64(4783)).astype(np.float32)
            file.create_dataset(f"{group}/images", data=values, **storage)
            stamps = np.array([product_time(int(time_s)) for time_s in times_s.ravel()], object)
            file.create_dataset(
                f"{group}/timestamps", data=stamps.reshape(*times_s.shape, 1), dtype=h5py.string_dtype("ascii")
            )
