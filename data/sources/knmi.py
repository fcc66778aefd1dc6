"""Read KNMI's radar precipitation composites: one HDF5 file a frame, in folders, daily tars and yearly zips.

Layout and names: KNMI HDF5 Data Format Specification, v3.5 (Roozekrans and Holleman, KNMI TR-264), and the files
themselves. Formulas are parsed, never evaluated.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..frames import Crop, Frame, Grid, iso_time
from ..json_checks import JsonRecord
from ..units import MISSING_COUNT, SCALES_MMH
from . import hdf5
from .files import RadarFile
from .source import FileRef as FileRef
from .source import Found, FrameRef, Header, Reading, Surveyed, find_composites

FILE_NAME: Final = re.compile(r"RAD_NL\d+_\w*?(\d{12})(?:_\w+)?\.h5", re.ASCII)
KIND: Final = hdf5.KINDS["knmi"]
FILE_ENDINGS: Final = (".h5", ".hdf5", ".hdf")
PRODUCT_TIME: Final = re.compile(r"(\d{2})-([A-Z]{3})-(\d{4});(\d{2}):(\d{2}):(\d{2})(?:\.0*)?", re.ASCII)
MONTHS: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
# Few digits, since a number is computed exactly: 1e999999999 would take all memory.
NUMBER: Final = r"\d{1,20}(?:\.\d{0,20})?(?:[eE][+-]?\d{1,2})?"
FORMULA: Final = re.compile(rf"GEO\s*=\s*({NUMBER})\s*\*\s*PV\s*(?:[+-]\s*0+(?:\.0*)?)?", re.ASCII)

ALWAYS_MISSING: Final = (65534, MISSING_COUNT)
"""Codes that are missing whatever a file declares: newer files use 65534 besides 65535."""

MAX_FILE_BYTES: Final = 2**26
"""Longest file that is read: KNMI's have less than 1 MB."""

SQUARE: Final = 1e-4
"""Largest relative difference between a pixel's sides: the real-time composites since 2018 state 1.0000035 by
-1.0000048 km, which is 1 m over the whole grid (files of nl_rdr_data_rtcor_5m 1.0)."""

SECONDS_AN_HOUR: Final = 3600
LICENCE: Final = "CC BY 4.0, KNMI"
SYNTHETIC_GROUP: Final = "SYNTHETIC_STORMS"
"""`product_group_name` by which files of data.sources.synthetic can never pass for measurements."""
SYNTHETIC_LICENCE: Final = "CC0-1.0, synthetic"


@dataclass(frozen=True, kw_only=True)
class KnmiSource(JsonRecord):
    """KNMI composites for packing (`data.sources.source.Source`)."""

    kind: ClassVar[str] = "knmi"

    @property
    def settings(self) -> str:
        """Nothing can be chosen."""
        return "knmi"

    def scan(self, paths: Sequence[Path]) -> Found:
        """Find the composites, in time order."""
        return Found(refs=scan(paths))

    def survey(self, ref: FrameRef) -> Surveyed:
        """Read a file's header, and digest its bytes."""
        assert isinstance(ref, FileRef)
        with _composite(ref.file) as (header, _, data):
            return Surveyed(header=header, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def read(self, ref: FrameRef, crop: Crop) -> Reading:
        """Read a part of a composite, and digest the very bytes that it was read from."""
        assert isinstance(ref, FileRef)
        with _composite(ref.file) as (header, image, data):
            return Reading(counts=_counts(image, header, crop), sha256=hashlib.sha256(data).hexdigest())


def scan(paths: Iterable[Path]) -> tuple[FileRef, ...]:
    """Find the composites among files, folders (searched to the bottom, through links), tars and zips, in time order.

    Raises:
        DataError: A path that is not there, a folder or link that cannot be followed, an archive that cannot be read in
            place, no files, a name without a time, or two files of one time (both named).
    """
    example = "KNMI HDF5 files such as RAD_NL25_RAP_5min_201008260005.h5"
    return find_composites(list(paths), FILE_ENDINGS, _time_of_name, example)


def read(where: Path | RadarFile, crop: Crop | Callable[[Grid], Crop] | None = None) -> Frame:
    """Read one composite, or a part of it; the file is opened and parsed once.

    Args:
        where: The file, or a member of an archive.
        crop: Part to keep, or what finds it in the file's grid; None for the whole grid.

    Raises:
        DataError: The file is no KNMI composite, is damaged, or its name and content disagree about the time, or the
            crop lies outside the grid.
    """
    with _composite(where) as (header, image, _):
        grid = header.grid
        chosen = crop(grid) if callable(crop) else crop or Crop(row0=0, row1=grid.rows, col0=0, col1=grid.cols)
        return Frame(
            counts=_counts(image, header, chosen),
            end_time_s=header.end_time_s,
            scale_mmh=header.scale_mmh,
            grid=grid.cropped(chosen),
            source=header.source,
            licence=header.licence,
        )


def parse_product_time(text: str) -> int:
    """Read a time as KNMI writes it, "26-AUG-2010;00:05:00.000", epoch seconds UTC; raises ValueError for another."""
    match = PRODUCT_TIME.fullmatch(text.upper())
    if match is None or match.group(2) not in MONTHS:
        raise ValueError("no such time")
    day, _, year, hour, minute, second = match.groups()
    month = MONTHS.index(match.group(2)) + 1
    return int(datetime(int(year), month, int(day), int(hour), int(minute), int(second), tzinfo=UTC).timestamp())


def _time_of_name(radar_file: RadarFile) -> int:
    """Read the end time, epoch seconds UTC, from a file's name; raises DataError where it holds none."""
    match = FILE_NAME.fullmatch(radar_file.name)
    try:
        if match is None:
            raise ValueError("no such name")
        return int(datetime.strptime(match.group(1), "%Y%m%d%H%M").replace(tzinfo=UTC).timestamp())
    except ValueError as error:
        raise DataError(
            f"{radar_file}: the name holds no time; expected a name such as RAD_NL25_RAP_5min_201008260005.h5 (year, "
            "month, day, hour, minute of its end, UTC): rename the file, remove it, or pack it with the sub-command of "
            "its kind"
        ) from error


@contextmanager
def _composite(where: Path | RadarFile) -> Iterator[tuple[Header, Any, bytes]]:
    """Open a composite: its header, its image, and all bytes of the file."""
    radar_file = RadarFile(path=where) if isinstance(where, Path) else where
    data = radar_file.read(MAX_FILE_BYTES)
    with hdf5.opened(data, str(radar_file), KIND) as file:
        yield _header(file, radar_file), hdf5.member(file, "image1/image_data"), data


def _counts(image: Any, header: Header, crop: Crop) -> npt.NDArray[np.uint16]:
    """Read pixels of an image that was checked; every missing code becomes 65535."""
    crop.check_inside(header.grid.rows, header.grid.cols)
    counts = np.empty((crop.rows, crop.cols), np.uint16)
    for rows, cols, piece in hdf5.read_pieces(image, crop):
        counts[rows, cols] = piece
    for code in header.missing_codes:
        counts[counts == code] = MISSING_COUNT
    return counts


def _header(file: Any, radar_file: RadarFile) -> Header:
    hdf5.check_layout(file, "knmi")
    overview = hdf5.member(file, "overview")
    end_time_s = _product_time(overview, "product_datetime_end")
    named_s = _time_of_name(radar_file)
    if end_time_s != named_s:
        raise DataError(
            f"its name says that it ends at {iso_time(named_s)}, product_datetime_end says {iso_time(end_time_s)}; "
            "expected the same time: fetch it again or rename it"
        )

    # Counts are a depth; its period makes a rate of it.
    period_s = end_time_s - _product_time(overview, "product_datetime_start")
    if not 0 < period_s <= 24 * SECONDS_AN_HOUR:
        raise DataError(f"its accumulation lasts {period_s} s, as product_datetime_start says; expected up to a day")

    quantity = hdf5.text(hdf5.member(file, "image1"), "image_geo_parameter")
    if "PRECIP" not in quantity.upper() or "[MM]" not in quantity.upper():
        raise DataError(f"image_geo_parameter is {quantity!r}; expected ACCUMULATED_PRECIPITATION_[MM]")

    product = hdf5.text(overview, "product_group_name")
    # Made storms may never pass for measurements.
    synthetic = product == SYNTHETIC_GROUP
    calibration = hdf5.member(file, "image1/calibration")
    return Header(
        end_time_s=end_time_s,
        scale_mmh=_scale_mmh(calibration, period_s),
        missing_codes=_missing_codes(calibration),
        grid=_grid(file),
        source="synthetic storms" if synthetic else f"KNMI {product}",
        licence=SYNTHETIC_LICENCE if synthetic else LICENCE,
        period_s=period_s,
    )


def _grid(file: Any) -> Grid:
    """Read the grid and check that the image fits it, before any pixel is read."""
    image = hdf5.member(file, "image1/image_data")
    hdf5.check_array(image, (2,), ("uint16",))
    # The image's own size and the stated one have to agree.
    rows, cols = image.shape
    geographic = hdf5.member(file, "geographic")
    stated = tuple(int(hdf5.number(geographic, f"geo_number_{axis}")) for axis in ("rows", "columns"))
    if stated != (rows, cols):
        raise DataError(
            f"/image1/image_data has {rows} x {cols} pixels; expected {stated[0]} x {stated[1]} as /geographic says"
        )

    pixel_km, pixel_y_km = (hdf5.number(geographic, f"geo_pixel_size_{axis}") for axis in ("x", "y"))
    if not (pixel_km >= SQUARE and abs(pixel_y_km + pixel_km) <= SQUARE * pixel_km):
        raise DataError(
            f"pixels of {pixel_km} by {pixel_y_km}; expected square ones whose rows run south, such as 1, -1"
        )

    return Grid(
        rows=rows,
        cols=cols,
        # To a tenth of a metre: products of one grid then have one size, and no pixel moves by more than 4 m.
        pixel_km=round(pixel_km, 4),
        projection=hdf5.text(hdf5.member(file, "geographic/map_projection"), "projection_proj4_params"),
        x0_km=hdf5.number(geographic, "geo_column_offset") * pixel_km,
        y0_km=hdf5.number(geographic, "geo_row_offset") * pixel_y_km,
    )


def _scale_mmh(calibration: Any, period_s: int) -> float:
    """Read the formula from counts to mm in a period, and give mm/h a count."""
    formula = hdf5.text(calibration, "calibration_formulas")
    match = FORMULA.fullmatch(formula.strip())
    # Exact: 0.01 mm in 5 minutes is the float nearest to 0.12 mm/h, and equal scales compare equal.
    scale_mmh = float(Fraction(match.group(1)) * SECONDS_AN_HOUR / period_s) if match else 0.0
    lowest_mmh, highest_mmh = SCALES_MMH
    if not lowest_mmh <= scale_mmh <= highest_mmh:
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
    try:
        return parse_product_time(text)
    except ValueError as error:
        raise DataError(f"{name} is {text!r}; expected a time such as '26-AUG-2010;00:05:00.000'") from error
