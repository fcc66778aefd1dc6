"""KNMI's radar precipitation composites: one HDF5 file a frame.

Layout and names: KNMI HDF5 Data Format Specification, v3.5 (Roozekrans and Holleman, KNMI TR-264), and the files
themselves. Nothing in a file is trusted: formulas are parsed, never evaluated, sizes are bounded before anything is
allocated, and no link leads to another file.
"""

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from data.frames import Crop, DataError, Frame, Grid
from data.units import MISSING_COUNT

FILE_NAME: Final = re.compile(r"RAD_NL\d+_\w*?(\d{12})(?:_\w+)?\.h5", re.ASCII)
FILE_ENDINGS: Final = (".h5", ".hdf5", ".hdf")
PRODUCT_TIME: Final = re.compile(r"(\d{2})-([A-Z]{3})-(\d{4});(\d{2}):(\d{2}):(\d{2})(?:\.0*)?", re.ASCII)
MONTHS: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
# Few digits, since a number is computed exactly: 1e999999999 would take all memory.
NUMBER: Final = r"\d{1,20}(?:\.\d{0,20})?(?:[eE][+-]?\d{1,2})?"
FORMULA: Final = re.compile(rf"GEO\s*=\s*({NUMBER})\s*\*\s*PV\s*(?:[+-]\s*({NUMBER}))?", re.ASCII)

ALWAYS_MISSING: Final = (65534, MISSING_COUNT)
"""Codes that are missing whatever a file declares: newer files use 65534 besides 65535 (FACTS of the project)."""

MAX_PIXELS: Final = 2**26
"""Largest image that is read: 128 MiB of counts, a hundred times KNMI's composite."""

SECONDS_AN_HOUR: Final = 3600
LICENCE: Final = "CC BY 4.0, KNMI"
SYNTHETIC_GROUP: Final = "SYNTHETIC_STORMS"
"""`product_group_name` by which files of data.sources.synthetic can never pass for measurements."""
SYNTHETIC_LICENCE: Final = "CC0-1.0, synthetic"


@dataclass(frozen=True, kw_only=True)
class FileRef:
    """A file and the end time that its name states, epoch seconds UTC."""

    path: Path
    end_time_s: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says about its frame.

    Attributes:
        end_time_s: End of the accumulation, epoch seconds UTC.
        scale_mmh: mm/h a count.
        missing_codes: Counts that are no measurement, sorted.
        grid: Where the pixels lie.
        source: The product's name.
        licence: Licence of the data.
    """

    end_time_s: int
    scale_mmh: float
    missing_codes: tuple[int, ...]
    grid: Grid
    source: str
    licence: str


def scan(paths: Iterable[Path]) -> list[FileRef]:
    """Find the composites among files and folders (searched to the bottom), in time order.

    Raises:
        DataError: A path that is not there, no files, a name without a time, or two files of one time (both named).
    """
    given = list(paths)
    found: dict[Path, FileRef] = {}
    for path in given:
        for file in _files_of(path):
            found.setdefault(file.resolve(), FileRef(path=file, end_time_s=time_of_name(file)))
    if not found:
        raise DataError(
            f"no radar files in {', '.join(map(str, given)) or 'nothing'}; "
            "expected KNMI HDF5 files such as RAD_NL25_RAP_5min_201008260005.h5"
        )
    refs = sorted(found.values(), key=lambda ref: (ref.end_time_s, str(ref.path)))
    for before, after in pairwise(refs):
        if before.end_time_s == after.end_time_s:
            raise DataError(f"two files of one time: {before.path} and {after.path}; expected one, remove the other")
    return refs


def time_of_name(path: Path) -> int:
    """Read the end time, epoch seconds UTC, from a file's name.

    Raises:
        DataError: The name holds none.
    """
    match = FILE_NAME.fullmatch(path.name)
    try:
        if match is None:
            raise ValueError("no such name")
        return int(datetime.strptime(match.group(1), "%Y%m%d%H%M").replace(tzinfo=UTC).timestamp())
    except ValueError as error:
        raise DataError(
            f"{path}: the name holds no time; expected a KNMI composite such as RAD_NL25_RAP_5min_201008260005.h5 "
            "(year, month, day, hour, minute of its end, UTC); remove the file or rename it"
        ) from error


def read_header(path: Path) -> Header:
    """Read what a file says about its frame, without its pixels.

    Raises:
        DataError: The file is no KNMI composite, is damaged, or its name and content disagree about the time.
    """
    with _open(path) as file:
        return _header(file, path)


def read(path: Path, crop: Crop | None = None) -> Frame:
    """Read one composite, or a part of it.

    Args:
        path: The file.
        crop: Part to keep; None for the whole grid.

    Raises:
        DataError: As `read_header`, or the pixels cannot be decoded, or the crop lies outside the grid.
    """
    with _open(path) as file:
        header = _header(file, path)
        grid = header.grid if crop is None else header.grid.cropped(crop)
        dataset = _member(file, "image1/image_data")
        counts = dataset[()] if crop is None else dataset[crop.row0 : crop.row1, crop.col0 : crop.col1]
    counts = np.ascontiguousarray(counts, dtype=np.uint16)
    for code in header.missing_codes:
        if code != MISSING_COUNT:
            counts[counts == code] = MISSING_COUNT
    return Frame(
        counts=counts,
        end_time_s=header.end_time_s,
        scale_mmh=header.scale_mmh,
        grid=grid,
        source=header.source,
        licence=header.licence,
    )


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in FILE_ENDINGS and file.is_file())
    if not path.is_file():
        raise DataError(f"{path} is not there; expected a KNMI HDF5 file or a folder of them")
    return [path]


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open a file to read; whatever h5py raises inside becomes a DataError that names it."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    # h5py raises all of these for damaged files, depending on which byte is wrong.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read as a KNMI HDF5 composite ({error}); it is damaged or of another kind: "
            "fetch it again or remove it"
        ) from error


def _header(file: Any, path: Path) -> Header:
    overview = _member(file, "overview")
    end_time_s = _product_time(overview, "product_datetime_end")
    named_s = time_of_name(path)
    if end_time_s != named_s:
        raise DataError(
            f"its name says that it ends at {_clock(named_s)}, product_datetime_end says {_clock(end_time_s)}; "
            "expected the same time: fetch it again or rename it"
        )
    period_s = end_time_s - _product_time(overview, "product_datetime_start")
    if not 0 < period_s <= 24 * SECONDS_AN_HOUR:
        raise DataError(
            f"product_datetime_start to product_datetime_end is {period_s} s; expected an accumulation time"
        )
    quantity = _text(_member(file, "image1"), "image_geo_parameter")
    if "PRECIP" not in quantity.upper() or "[MM]" not in quantity.upper():
        raise DataError(f"image_geo_parameter is {quantity!r}; expected ACCUMULATED_PRECIPITATION_[MM]")
    synthetic = _text(overview, "product_group_name") == SYNTHETIC_GROUP
    calibration = _member(file, "image1/calibration")
    return Header(
        end_time_s=end_time_s,
        scale_mmh=_scale_mmh(calibration, period_s),
        missing_codes=_missing_codes(calibration),
        grid=_grid(file),
        source="synthetic storms" if synthetic else f"KNMI {_text(overview, 'product_group_name')}",
        licence=SYNTHETIC_LICENCE if synthetic else LICENCE,
    )


def _grid(file: Any) -> Grid:
    """Read the grid and check that the image fits it, before any pixel is read."""
    image = _member(file, "image1/image_data")
    if not isinstance(image, h5py.Dataset) or image.ndim != 2 or image.dtype.kind != "u" or image.dtype.itemsize != 2:
        found = f"{image.dtype} {image.shape}" if isinstance(image, h5py.Dataset) else "a group"
        raise DataError(f"/image1/image_data is {found}; expected uint16 (rows, columns)")
    if image.external or image.is_virtual:
        raise DataError("/image1/image_data keeps its pixels in other files, which are never followed")
    rows, cols = image.shape
    if not 0 < rows * cols <= MAX_PIXELS or math.prod(image.chunks or (1,)) > MAX_PIXELS:
        raise DataError(
            f"/image1/image_data has {rows} x {cols} pixels in chunks of {image.chunks}; expected at most {MAX_PIXELS}"
        )
    geographic = _member(file, "geographic")
    stated = (int(_number(geographic, "geo_number_rows")), int(_number(geographic, "geo_number_columns")))
    if stated != (rows, cols):
        raise DataError(
            f"/image1/image_data has {rows} x {cols} pixels; expected {stated[0]} x {stated[1]} as /geographic says"
        )
    pixel_km, pixel_y_km = _number(geographic, "geo_pixel_size_x"), _number(geographic, "geo_pixel_size_y")
    if not (math.isfinite(pixel_km) and pixel_km > 0 and pixel_y_km == -pixel_km):
        raise DataError(
            f"pixels of {pixel_km} by {pixel_y_km}; expected square ones whose rows run south, such as 1, -1"
        )
    return Grid(
        rows=rows,
        cols=cols,
        pixel_km=pixel_km,
        projection=_text(_member(file, "geographic/map_projection"), "projection_proj4_params"),
        x0_km=_number(geographic, "geo_column_offset") * pixel_km,
        y0_km=_number(geographic, "geo_row_offset") * pixel_y_km,
    )


def _scale_mmh(calibration: Any, period_s: int) -> float:
    """Read the formula from counts to mm in a period, and give mm/h a count."""
    formula = _text(calibration, "calibration_formulas")
    match = FORMULA.fullmatch(formula.strip())
    # Exact: 0.01 mm in 5 minutes is the float nearest to 0.12 mm/h, and equal scales compare equal.
    factor, offset = (Fraction(match.group(1)), Fraction(match.group(2) or 0)) if match else (Fraction(0), Fraction(0))
    if factor <= 0 or offset != 0:
        raise DataError(
            f"calibration_formulas is {formula!r}; expected a linear scale without an offset, such as 'GEO=0.01*PV+0.0'"
        )
    return float(factor * SECONDS_AN_HOUR / period_s)


def _missing_codes(calibration: Any) -> tuple[int, ...]:
    codes = set(ALWAYS_MISSING)
    for name in ("calibration_missing_data", "calibration_out_of_image"):
        if name in calibration.attrs:
            codes.add(int(_number(calibration, name)))
    # 0 is "no rain" in KNMI's accumulations: a file that calls it missing would lose every dry pixel.
    if not all(0 < code <= MISSING_COUNT for code in codes):
        raise DataError(f"missing codes {sorted(codes)} are declared; expected counts of 1 to {MISSING_COUNT}")
    return tuple(sorted(codes))


def _member(file: Any, name: str) -> Any:
    """Step down to a member through hard links only: no other kind can be kept from leaving the file."""
    item, walked = file, ""
    for part in name.split("/"):
        walked += f"/{part}"
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
        if link is None:
            raise DataError(f"{walked} is missing; expected a KNMI composite")
        if not isinstance(link, h5py.HardLink):
            raise DataError(
                f"{walked} is a link ({type(link).__name__}), perhaps into another file; links are never followed"
            )
        item = item[part]
    return item


def _attribute(item: Any, name: str) -> Any:
    if name not in item.attrs:
        raise DataError(f"attribute {name} of {item.name} is missing; expected a KNMI composite")
    value = item.attrs[name]
    if isinstance(value, np.ndarray):
        if value.size != 1:
            raise DataError(f"attribute {name} of {item.name} has {value.size} values; expected one")
        value = value.reshape(())[()]
    return value


def _text(item: Any, name: str) -> str:
    value = _attribute(item, name)
    if isinstance(value, bytes):
        value = value.decode("ascii", errors="replace")
    if not isinstance(value, str):
        raise DataError(f"attribute {name} of {item.name} is {value!r}; expected text")
    return value.strip("\0 ")


def _number(item: Any, name: str) -> float:
    value = _attribute(item, name)
    if not isinstance(value, (int, float, np.integer, np.floating)) or not math.isfinite(value):
        raise DataError(f"attribute {name} of {item.name} is {value!r}; expected a number")
    return float(value)


def _product_time(overview: Any, name: str) -> int:
    text = _text(overview, name)
    match = PRODUCT_TIME.fullmatch(text.upper())
    try:
        if match is None or match.group(2) not in MONTHS:
            raise ValueError("no such time")
        day, _, year, hour, minute, second = match.groups()
        month = MONTHS.index(match.group(2)) + 1
        time = datetime(int(year), month, int(day), int(hour), int(minute), int(second), tzinfo=UTC)
    except ValueError as error:
        raise DataError(f"{name} is {text!r}; expected a time such as '26-AUG-2010;00:05:00.000'") from error
    return int(time.timestamp())


def _clock(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
