"""KNMI's radar precipitation composites: one HDF5 file a frame.

Layout and names: KNMI HDF5 Data Format Specification, v3.5 (Roozekrans and Holleman, KNMI TR-264), and the files
themselves. Nothing in a file is trusted: formulas are parsed, never evaluated, and data.sources.hdf5 bounds memory,
demands that every pixel was written, and follows no link to another file.
"""

import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NoReturn

from data.frames import Crop, DataError, Frame, Grid
from data.sources import hdf5
from data.units import MISSING_COUNT, SCALES_MMH

FILE_NAME: Final = re.compile(r"RAD_NL\d+_\w*?(\d{12})(?:_\w+)?\.h5", re.ASCII)
FILE_ENDINGS: Final = (".h5", ".hdf5", ".hdf")
PRODUCT_TIME: Final = re.compile(r"(\d{2})-([A-Z]{3})-(\d{4});(\d{2}):(\d{2}):(\d{2})(?:\.0*)?", re.ASCII)
MONTHS: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
# Few digits, since a number is computed exactly: 1e999999999 would take all memory.
NUMBER: Final = r"\d{1,20}(?:\.\d{0,20})?(?:[eE][+-]?\d{1,2})?"
FORMULA: Final = re.compile(rf"GEO\s*=\s*({NUMBER})\s*\*\s*PV\s*(?:[+-]\s*({NUMBER}))?", re.ASCII)

ALWAYS_MISSING: Final = (65534, MISSING_COUNT)
"""Codes that are missing whatever a file declares: newer files use 65534 besides 65535 (FACTS of the project)."""

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
    """Find the composites among files and folders (searched to the bottom, through links), in time order.

    Raises:
        DataError: A path that is not there, a folder or link that cannot be followed, no files, a name without a time,
            or two files of one time (both named).
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
    with hdf5.opened(path) as file:
        return _header(file, path)


def read(path: Path, crop: Crop | None = None) -> Frame:
    """Read one composite, or a part of it.

    Args:
        path: The file.
        crop: Part to keep; None for the whole grid.

    Raises:
        DataError: As `read_header`, or the pixels cannot be decoded, or the crop lies outside the grid.
    """
    with hdf5.opened(path) as file:
        header = _header(file, path)
        grid = header.grid if crop is None else header.grid.cropped(crop)
        part = crop or Crop(row0=0, row1=grid.rows, col0=0, col1=grid.cols)
        counts = hdf5.read_pixels(hdf5.member(file, "image1/image_data"), part)
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


def _files_of(path: Path) -> Iterator[Path]:
    """Give a file, or the radar files of a folder; folders and files behind links too, each folder once."""
    found = _stat(path)
    if not stat.S_ISDIR(found.st_mode):
        yield path
        return
    seen = {(found.st_dev, found.st_ino)}
    for name, folders, files in os.walk(path, onerror=_refuse_unreadable, followlinks=True):
        folder, unseen = Path(name), []
        for inner in sorted(folders):
            found = _stat(folder / inner)
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                unseen.append(inner)
        folders[:] = unseen
        for file in (folder / inner for inner in sorted(files)):
            is_radar = file.suffix.lower() in FILE_ENDINGS
            # os.walk lists a link among the files when its folder is closed or not mounted.
            if is_radar or file.is_symlink():
                _stat(file)
            if is_radar:
                yield file


def _stat(path: Path) -> os.stat_result:
    """Look at a file or folder through links; raises DataError when it is not there, closed, or neither."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        kind = "leads nowhere (a broken link)" if path.is_symlink() else "is not there"
        raise DataError(f"{path} {kind}; expected a KNMI HDF5 file or a folder of them") from error
    except OSError as error:
        _refuse_unreadable(error)
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise DataError(f"{path} is neither a file nor a folder; expected a KNMI HDF5 file or a folder of them")
    return found


def _refuse_unreadable(error: OSError) -> NoReturn:
    raise DataError(
        f"{error.filename}: could not be read: {error.strerror or error}; "
        "frames may lie there: make it readable, or name the files and folders without it"
    ) from error


def _header(file: Any, path: Path) -> Header:
    overview = hdf5.member(file, "overview")
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
    quantity = hdf5.text(hdf5.member(file, "image1"), "image_geo_parameter")
    if "PRECIP" not in quantity.upper() or "[MM]" not in quantity.upper():
        raise DataError(f"image_geo_parameter is {quantity!r}; expected ACCUMULATED_PRECIPITATION_[MM]")
    synthetic = hdf5.text(overview, "product_group_name") == SYNTHETIC_GROUP
    calibration = hdf5.member(file, "image1/calibration")
    return Header(
        end_time_s=end_time_s,
        scale_mmh=_scale_mmh(calibration, period_s),
        missing_codes=_missing_codes(calibration),
        grid=_grid(file),
        source="synthetic storms" if synthetic else f"KNMI {hdf5.text(overview, 'product_group_name')}",
        licence=SYNTHETIC_LICENCE if synthetic else LICENCE,
    )


def _grid(file: Any) -> Grid:
    """Read the grid and check that the image fits it, before any pixel is read."""
    image = hdf5.member(file, "image1/image_data")
    hdf5.check_image(image, "/image1/image_data")
    rows, cols = image.shape
    geographic = hdf5.member(file, "geographic")
    stated = (int(hdf5.number(geographic, "geo_number_rows")), int(hdf5.number(geographic, "geo_number_columns")))
    if stated != (rows, cols):
        raise DataError(
            f"/image1/image_data has {rows} x {cols} pixels; expected {stated[0]} x {stated[1]} as /geographic says"
        )
    pixel_km, pixel_y_km = hdf5.number(geographic, "geo_pixel_size_x"), hdf5.number(geographic, "geo_pixel_size_y")
    if not (math.isfinite(pixel_km) and pixel_km > 0 and pixel_y_km == -pixel_km):
        raise DataError(
            f"pixels of {pixel_km} by {pixel_y_km}; expected square ones whose rows run south, such as 1, -1"
        )
    return Grid(
        rows=rows,
        cols=cols,
        pixel_km=pixel_km,
        projection=hdf5.text(hdf5.member(file, "geographic/map_projection"), "projection_proj4_params"),
        x0_km=hdf5.number(geographic, "geo_column_offset") * pixel_km,
        y0_km=hdf5.number(geographic, "geo_row_offset") * pixel_y_km,
    )


def _scale_mmh(calibration: Any, period_s: int) -> float:
    """Read the formula from counts to mm in a period, and give mm/h a count."""
    formula = hdf5.text(calibration, "calibration_formulas")
    match = FORMULA.fullmatch(formula.strip())
    # Exact: 0.01 mm in 5 minutes is the float nearest to 0.12 mm/h, and equal scales compare equal.
    factor, offset = (Fraction(match.group(1)), Fraction(match.group(2) or 0)) if match else (Fraction(0), Fraction(0))
    scale_mmh = float(factor * SECONDS_AN_HOUR / period_s)
    lowest_mmh, highest_mmh = SCALES_MMH
    if not lowest_mmh <= scale_mmh <= highest_mmh or offset != 0:
        raise DataError(
            f"calibration_formulas is {formula!r}; expected a linear scale without an offset, such as "
            f"'GEO=0.01*PV+0.0', of {lowest_mmh:g} to {highest_mmh:g} mm/h a count"
        )
    return scale_mmh


def _missing_codes(calibration: Any) -> tuple[int, ...]:
    codes = set(ALWAYS_MISSING)
    for name in ("calibration_missing_data", "calibration_out_of_image"):
        if name in calibration.attrs:
            codes.add(int(hdf5.number(calibration, name)))
    # 0 is "no rain" in KNMI's accumulations: a file that calls it missing would lose every dry pixel.
    if not all(0 < code <= MISSING_COUNT for code in codes):
        raise DataError(f"missing codes {sorted(codes)} are declared; expected counts of 1 to {MISSING_COUNT}")
    return tuple(sorted(codes))


def _product_time(overview: Any, name: str) -> int:
    text = hdf5.text(overview, name)
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
