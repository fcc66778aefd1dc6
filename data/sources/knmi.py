"""Read KNMI's radar composites: one HDF5 file a frame, in folders, daily tars and yearly zips.

Precipitation keeps its counts; reflectivity (RAD_NL25_PCP) becomes counts of 0.01 mm/h by a Z-R relation.

Layout and names: KNMI HDF5 Data Format Specification, v3.5 (Roozekrans and Holleman, KNMI TR-264), and the files
themselves. Formulas are parsed, never evaluated.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn

import numpy as np
import numpy.typing as npt
import pyproj

from ..counts import QUANTUM_MMH, Rounding, requantise
from ..errors import DataError
from ..frames import Crop, Grid, iso_time
from ..json_checks import JsonRecord
from ..units import MISSING_COUNT, SCALES_MMH, ZR
from . import hdf5
from .files import Place, RadarFile
from .odim_grid import to_metres
from .places.composites import Finder, Look, find_composites
from .source import SYNTHETIC, Found, FrameRef, Header, Reading, Surveyed
from .source import FileRef as FileRef

FILE_NAME: Final = re.compile(r"RAD_NL\d+_\w*?(\d{12})(?:_\w+)?\.h5", re.ASCII)
KIND: Final = hdf5.KINDS["knmi"]
FILE_ENDINGS: Final = (".h5", ".hdf5", ".hdf")
PRODUCT_TIME: Final = re.compile(r"(\d{2})-([A-Z]{3})-(\d{4});(\d{2}):(\d{2}):(\d{2})(?:\.0*)?", re.ASCII)
MONTHS: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
# Few digits, since a number is computed exactly: 1e999999999 would take all memory.
NUMBER: Final = r"\d{1,20}(?:\.\d{0,20})?(?:[eE][+-]?\d{1,2})?"
FORMULA: Final = re.compile(rf"GEO\s*=\s*({NUMBER})\s*\*\s*PV\s*(?:([+-])\s*([+-]?)\s*({NUMBER}))?", re.ASCII)

IMAGE: Final = "image1/image_data"
DRY_OR_MISSING: Final = 0
"""Code of reflectivity that says "missing or no echo" without telling which: outside the radars' range it is 255."""
ALWAYS_MISSING: Final = (65534, MISSING_COUNT)
"""Codes that are missing whatever a file declares: newer files use 65534 besides 65535."""

MAX_FILE_BYTES: Final = 2**26
"""Longest file that is read: KNMI's have less than 1 MB."""

SQUARE: Final = 1e-4
"""Largest relative difference between a pixel's sides: the real-time composites since 2018 state 1.0000035 by
-1.0000048 km, which is 1 m over the whole grid (files of nl_rdr_data_rtcor_5m 1.0)."""

CORNERS: Final = "geo_product_corners"
MAX_RADIUS_KM: Final = 100_000
"""Ellipsoids with larger numbers are in metres."""
SECONDS_AN_HOUR: Final = 3600
LICENCE: Final = "CC BY 4.0, KNMI"
SYNTHETIC_GROUP: Final = "SYNTHETIC_STORMS"
"""`product_group_name` by which files of data.sources.synthetic can never pass for measurements."""
SYNTHETIC_LICENCE: Final = "CC0-1.0, synthetic"


@dataclass(frozen=True, kw_only=True)
class KnmiSource(JsonRecord):
    """KNMI composites for packing (`data.sources.source.Source`).

    Attributes:
        zr: From reflectivity to rain; None for precipitation.
    """

    kind: ClassVar[str] = "knmi"
    zr: ZR | None = None

    @property
    def settings(self) -> str:
        """Give the relation, where there is one."""
        return "knmi" if self.zr is None else f"knmi {self.zr!r}"

    def scan(self, paths: Sequence[Place]) -> Found:
        """Find the composites, in time order: by the times in their names, or else in the files.

        Raises:
            DataError: A path that is not there, a folder or link that cannot be followed, an archive that cannot be
                read in place, no files, two different files of one time (both named).
        """
        return find_composites(
            paths,
            Finder(
                endings=FILE_ENDINGS,
                expected="KNMI HDF5 files such as RAD_NL25_RAP_5min_201008260005.h5",
                time_of_name=_time_of_name,
                look=self._look,
                max_bytes=MAX_FILE_BYTES,
            ),
        )

    def survey(self, ref: FrameRef) -> Surveyed:
        """Read a file's header, and digest its bytes."""
        assert isinstance(ref, FileRef)
        with _composite(ref.file, self.zr) as (header, _, data):
            return Surveyed(header=header, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def read(self, ref: FrameRef, crop: Crop) -> Reading:
        """Read a part of a composite, and digest the very bytes that it was read from."""
        assert isinstance(ref, FileRef)
        with _composite(ref.file, self.zr) as (header, file, data):
            sha256 = hashlib.sha256(data).hexdigest()
            if self.zr is None:
                return Reading(counts=_counts(file, header, crop), sha256=sha256)
            counts, rounding = _rain_counts(file, self.zr, crop)
            return Reading(counts=counts, sha256=sha256, rounding=rounding)

    def _look(self, radar_file: RadarFile) -> Look:
        """Open a file to see whether it holds what is asked for, and of which time it is."""
        try:
            with hdf5.opened(radar_file.content(MAX_FILE_BYTES), str(radar_file), KIND) as file:
                hdf5.check_layout(file, "knmi")
                _check_quantity(file, self.zr)
                return Look(end_time_s=_product_time(hdf5.member(file, "overview"), "product_datetime_end"))
        except hdf5.ChoiceError as error:
            return Look(error=error)
        except DataError as error:
            return Look(error=_unnamed(radar_file, error) if _time_of_name(radar_file) is None else error)


def parse_product_time(text: str) -> int:
    """Read a time as KNMI writes it, "26-AUG-2010;00:05:00.000", epoch seconds UTC; raises ValueError for another."""
    match = PRODUCT_TIME.fullmatch(text.upper())
    if match is None or match.group(2) not in MONTHS:
        raise ValueError("no such time")
    day, _, year, hour, minute, second = match.groups()
    month = MONTHS.index(match.group(2)) + 1
    return int(datetime(int(year), month, int(day), int(hour), int(minute), int(second), tzinfo=UTC).timestamp())


def _time_of_name(radar_file: RadarFile) -> int | None:
    """Read the end time, epoch seconds UTC, from a file's name; None where it is none of KNMI's, or holds no time."""
    match = FILE_NAME.fullmatch(radar_file.name)
    with suppress(ValueError):
        if match is not None:
            return int(datetime.strptime(match.group(1), "%Y%m%d%H%M").replace(tzinfo=UTC).timestamp())
    return None


def _unnamed(radar_file: RadarFile, error: DataError) -> DataError:
    """Word the error of a file of which neither the name nor the content states the time."""
    return DataError(
        f"{radar_file}: the name holds no time, and the content cannot be read; expected a name such as "
        "RAD_NL25_RAP_5min_201008260005.h5 (year, month, day, hour, minute of its end, UTC) or a sound file: rename "
        f"it, fetch it again or remove it ({error})"
    )


@contextmanager
def _composite(where: Path | RadarFile, zr: ZR | None) -> Iterator[tuple[Header, Any, bytes]]:
    """Open a composite: its header, the file, and all of its bytes."""
    radar_file = RadarFile(path=where) if isinstance(where, Path) else where
    data = radar_file.read(MAX_FILE_BYTES)
    with hdf5.opened(data, str(radar_file), KIND) as file:
        yield _header(file, radar_file, zr), file, data


def _counts(file: Any, header: Header, crop: Crop) -> npt.NDArray[np.uint16]:
    """Read pixels of an image that was checked; every missing code becomes 65535."""
    crop.check_inside(header.grid.rows, header.grid.cols)
    counts = np.empty((crop.rows, crop.cols), np.uint16)
    for rows, cols, piece in hdf5.read_pieces(hdf5.member(file, IMAGE), crop):
        counts[rows, cols] = piece
    for code in header.missing_codes:
        counts[counts == code] = MISSING_COUNT
    return counts


def _rain_counts(file: Any, zr: ZR, crop: Crop) -> tuple[npt.NDArray[np.uint16], Rounding]:
    """Read pixels of reflectivity as counts of 0.01 mm/h; code 0, which says missing or no echo, is dry."""
    image = hdf5.member(file, IMAGE)
    crop.check_inside(*image.shape)
    calibration = hdf5.member(file, "image1/calibration")
    gain, offset = map(float, _formula(calibration))
    missing = _declared_codes(calibration) - {DRY_OR_MISSING}

    counts = np.empty((crop.rows, crop.cols), np.uint16)
    rounding = Rounding()
    for rows, cols, piece in hdf5.read_pieces(image, crop):
        rain_mmh = zr.rain_mmh(piece * gain + offset)
        rain_mmh[piece == DRY_OR_MISSING] = 0.0
        rain_mmh[np.isin(piece, list(missing))] = np.nan
        pixel_of = _pixel_namer((crop.row0 + rows.start, crop.col0 + cols.start), piece.shape[1])
        flat, rounding = requantise(rain_mmh.ravel(), pixel_of, frame_pixels=image.size, before=rounding)
        counts[rows, cols] = flat.reshape(piece.shape)
    return counts, rounding


def _pixel_namer(first: tuple[int, int], width: int) -> Callable[[int], tuple[int, ...]]:
    """Find which pixel of the whole image the n-th one of a piece is."""
    return lambda number: (first[0] + number // width, first[1] + number % width)


def _header(file: Any, radar_file: RadarFile, zr: ZR | None) -> Header:
    hdf5.check_layout(file, "knmi")
    overview = hdf5.member(file, "overview")
    end_time_s = _product_time(overview, "product_datetime_end")
    named_s = _time_of_name(radar_file)
    if named_s is not None and end_time_s != named_s:
        raise DataError(
            f"its name says that it ends at {iso_time(named_s)}, product_datetime_end says {iso_time(end_time_s)}; "
            "expected the same time: fetch it again or rename it"
        )

    # Counts are a depth, whose period makes a rate of it; a reflectivity may be of one moment.
    period_s = end_time_s - _product_time(overview, "product_datetime_start")
    if not (0 if zr else 1) <= period_s <= 24 * SECONDS_AN_HOUR:
        raise DataError(f"its accumulation lasts {period_s} s, as product_datetime_start says; expected up to a day")

    _check_quantity(file, zr)
    product = hdf5.text(overview, "product_group_name")
    # Made storms may never pass for measurements.
    synthetic = product == SYNTHETIC_GROUP
    source = SYNTHETIC if synthetic else f"KNMI {product}"
    calibration = hdf5.member(file, "image1/calibration")
    if zr is not None:
        _formula(calibration)
        source += f" as rain by Z = {zr.a:g} R**{zr.b:g}"
    return Header(
        end_time_s=end_time_s,
        scale_mmh=_scale_mmh(calibration, period_s) if zr is None else QUANTUM_MMH,
        missing_codes=_missing_codes(calibration) if zr is None else (),
        grid=_grid(file, ("uint16",) if zr is None else ("uint8", "uint16")),
        source=source,
        licence=SYNTHETIC_LICENCE if synthetic else LICENCE,
        period_s=period_s,
    )


def _check_quantity(file: Any, zr: ZR | None) -> None:
    """Check that the image is precipitation, or reflectivity where a relation was given.

    Raises:
        ChoiceError: It is the other one.
        DataError: It is neither.
    """
    quantity = hdf5.text(hdf5.member(file, "image1"), "image_geo_parameter").upper()
    is_depth = "PRECIP" in quantity and "[MM]" in quantity
    is_reflectivity = "REFLECTIVITY" in quantity and "[DBZ]" in quantity
    if is_reflectivity and zr is None:
        raise hdf5.ChoiceError(
            "it holds reflectivity (REFLECTIVITY_[DBZ]); expected a relation Z = A R**B to make rain of it: give "
            "--zr A,B (--zr 200,1.6 is Marshall and Palmer's)",
            holds="reflectivity (which needs --zr)",
        )
    if is_depth and zr is not None:
        raise hdf5.ChoiceError(
            "it holds precipitation, which is rain already; leave --zr away",
            holds="precipitation (which takes no --zr)",
        )
    if not is_depth and not is_reflectivity:
        raise DataError(
            f"image_geo_parameter is {quantity!r}; expected ACCUMULATED_PRECIPITATION_[MM], or REFLECTIVITY_[DBZ] with "
            "--zr"
        )


def _grid(file: Any, dtypes: Sequence[str]) -> Grid:
    """Read the grid and check that the image fits it, before any pixel is read."""
    image = hdf5.member(file, IMAGE)
    hdf5.check_array(image, (2,), dtypes)
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

    grid = Grid(
        rows=rows,
        cols=cols,
        # To a tenth of a metre: products of one grid then have one size, and no pixel moves by more than 4 m.
        pixel_km=round(pixel_km, 4),
        projection=hdf5.text(hdf5.member(file, "geographic/map_projection"), "projection_proj4_params"),
        x0_km=hdf5.number(geographic, "geo_column_offset") * pixel_km,
        y0_km=hdf5.number(geographic, "geo_row_offset") * pixel_y_km,
    )
    _check_corners(geographic, grid)
    return grid


def _check_corners(geographic: Any, grid: Grid) -> None:
    """Compare the corners in degrees, where they are stated, with those that sizes and offsets give.

    Raises:
        DataError: One of them lies more than half a pixel away.
    """
    stated = np.atleast_1d(geographic.attrs.get(CORNERS, ()))
    if stated.shape != (8,) or stated.dtype.kind != "f":
        return
    # From the lower left one on, clockwise: longitude, latitude.
    right_km, lower_km = grid.x0_km + grid.cols * grid.pixel_km, grid.y0_km - grid.rows * grid.pixel_km
    corners_km = ((grid.x0_km, lower_km), (grid.x0_km, grid.y0_km), (right_km, grid.y0_km), (right_km, lower_km))
    # KNMI's ellipsoids are in kilometres, and so is what they place.
    unit_km = 1.0 if _radius(grid.projection) < MAX_RADIUS_KM else 0.001
    for (x_km, y_km), (lon, lat) in zip(corners_km, stated.reshape(4, 2).tolist(), strict=True):
        stated_x_km, stated_y_km = (unit_km * at for at in to_metres(grid.projection, lon, lat))
        if max(abs(stated_x_km - x_km), abs(stated_y_km - y_km)) > grid.pixel_km / 2:
            raise DataError(
                f"{CORNERS} states {lon:g} E, {lat:g} N, which lies at {stated_x_km:.3f}, "
                f"{stated_y_km:.3f} km; expected {x_km:.3f}, {y_km:.3f} km, as pixels and offsets say: fetch the "
                "file again or ask its producer"
            )


@lru_cache(maxsize=8)
def _radius(projection: str) -> float:
    """Give the ellipsoid's equatorial radius, in the unit in which the projection states it."""
    try:
        ellipsoid = pyproj.CRS.from_user_input(projection).ellipsoid
    except pyproj.exceptions.CRSError as error:
        raise DataError(f"projection_proj4_params is {projection!r:.200}, which PROJ cannot read ({error})") from error
    return math.inf if ellipsoid is None else float(ellipsoid.semi_major_metre)


def _formula(calibration: Any) -> tuple[Fraction, Fraction]:
    """Read factor and offset of the formula from pixels to values, exactly."""
    formula = hdf5.text(calibration, "calibration_formulas")
    match = FORMULA.fullmatch(formula.strip())
    if match is None:
        _refuse_formula(formula)
    factor, sign, second_sign, offset = match.groups()
    is_negative = (sign == "-") != (second_sign == "-")
    return Fraction(factor), (-1 if is_negative else 1) * Fraction(offset or 0)


def _scale_mmh(calibration: Any, period_s: int) -> float:
    """Read the formula from counts to mm in a period, and give mm/h a count."""
    factor, offset = _formula(calibration)
    # Exact: 0.01 mm in 5 minutes is the float nearest to 0.12 mm/h, and equal scales compare equal.
    scale_mmh = float(factor * SECONDS_AN_HOUR / period_s)
    if offset or not SCALES_MMH[0] <= scale_mmh <= SCALES_MMH[1]:
        _refuse_formula(hdf5.text(calibration, "calibration_formulas"))
    return scale_mmh


def _refuse_formula(formula: str) -> NoReturn:
    raise DataError(
        f"calibration_formulas is {formula!r:.80}; expected a linear scale without an offset, such as "
        f"'GEO=0.01*PV+0.0', of {SCALES_MMH[0]:g} to {SCALES_MMH[1]:g} mm/h a count (of reflectivity: dBZ, with an "
        "offset)"
    )


def _missing_codes(calibration: Any) -> tuple[int, ...]:
    codes = _declared_codes(calibration) | set(ALWAYS_MISSING)
    # 0 is "no rain" in KNMI's accumulations: a file that calls it missing would lose every dry pixel.
    if not all(0 < code <= MISSING_COUNT for code in codes):
        raise DataError(f"missing codes {sorted(codes)} are declared; expected counts of 1 to {MISSING_COUNT}")
    return tuple(sorted(codes))


def _declared_codes(calibration: Any) -> set[int]:
    names = ("calibration_missing_data", "calibration_out_of_image")
    return {int(hdf5.number(calibration, name)) for name in names if name in calibration.attrs}


def _product_time(overview: Any, name: str) -> int:
    text = hdf5.text(overview, name)
    try:
        return parse_product_time(text)
    except ValueError as error:
        raise DataError(f"{name} is {text!r}; expected a time such as '26-AUG-2010;00:05:00.000'") from error
