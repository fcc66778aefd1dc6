"""Read ODIM_H5 composites: rain rates, accumulations and reflectivity of Europe's radars, as counts of 0.01 mm/h.

Groups, attributes and quantities: Michelson, Lewandowski, Szewczykowski, Beekhuis and Haase, EUMETNET OPERA weather
radar information model for implementation with the HDF5 file format, version 2.4 (2021). Pixels that a radar saw
without an echo ("undetect") are dry, pixels that none saw ("nodata") are missing. A projection may name no file.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Final

import h5py
import numpy as np
import numpy.typing as npt
import pyproj

from ..counts import QUANTUM_MMH, Rounding, requantise
from ..errors import DataError
from ..frames import Crop, Grid, iso_time
from ..json_checks import JsonRecord
from ..units import MISSING_COUNT
from . import hdf5
from .files import RadarFile
from .source import FileRef, Found, FrameRef, Header, Reading, Surveyed, find_composites

KIND: Final = hdf5.KINDS["odim"]
FILE_ENDINGS: Final = (".h5", ".hdf5", ".hdf", ".hd5", "-hd5")
"""The last one is that of the German weather service's composites, composite_hx_20231114_1200-hd5."""
QUANTITIES: Final = ("RATE", "ACRR", "DBZH")
DTYPES: Final = ("uint8", "uint16", "int16", "int32", "float32", "float64")
OBJECTS: Final = ("COMP", "IMAGE")
TIME_IN_NAME: Final = re.compile(r"(?<!\d)(\d{14}|\d{12})(?!\d)", re.ASCII)
# What a projection may say: numbers and names, no files (+nadgrids, +init) and no pipelines.
PROJECTION_TERM: Final = re.compile(
    r"\+(?:proj|lat_0|lon_0|lat_ts|lat_1|lat_2|lon_1|lon_2|x_0|y_0|a|b|R|f|rf|es|k|k_0|ellps|datum|pm|units|h|sweep|"
    r"gamma|alpha|azi|tilt|lonc|lon_wrap|zone|n|W|M|o_proj|o_lon_p|o_lat_p|type)=[A-Za-z0-9_.+-]{1,40}|"
    r"\+towgs84=[0-9eE.,+-]{1,200}|\+(?:no_defs|no_uoff|no_off|approx|R_A|south|over|wktext)",
    re.ASCII,
)
REFUSED_PROJECTIONS: Final = frozenset({"pipeline", "longlat", "latlong", "latlon", "lonlat"})
MAX_FILE_BYTES: Final = 2**29
MAX_DATASETS: Final = 256
MAX_PERIOD_S: Final = 86400
MAX_NOMINAL_SHIFT_S: Final = 3600
"""Furthest that data end from a composite's nominal time: OPERA's of 2018 end 5 minutes after it."""


@dataclass(frozen=True, kw_only=True)
class ZR:
    """Z = a R**b, with Z in mm^6/m^3 and R in mm/h (Marshall and Palmer 1948: a = 200, b = 1.6)."""

    a: float
    b: float

    def rain_mmh(self, reflectivity_dbz: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Turn dBZ, 10 log10 Z, of any shape into mm/h."""
        exponent = (np.asarray(reflectivity_dbz, np.float64) / 10.0 - math.log10(self.a)) / self.b
        # Beyond every radar's range, and within float64's.
        return np.power(10.0, np.clip(exponent, -30.0, 30.0))


def parse_zr(text: str) -> ZR:
    """Read a Z-R relation such as "200,1.6"; raises DataError for what is none."""
    try:
        a, b = (float(number) for number in text.split(","))
    except ValueError:
        a = b = math.nan
    if not (1 <= a <= 10_000 and 0.5 <= b <= 5):
        raise DataError(f"--zr {text}: expected A,B of Z = A R**B, A of 1 to 10000, B of 0.5 to 5, such as 200,1.6")
    return ZR(a=a, b=b)


@dataclass(frozen=True, kw_only=True)
class OdimSource(JsonRecord):
    """ODIM_H5 composites for packing (`data.sources.source.Source`).

    Attributes:
        quantity: RATE, ACRR or DBZH; None for the only one of these that a file holds.
        zr: From reflectivity to rain; needed for DBZH.
        name: The product's name; None for what the files say.
        licence: Licence of the data, of which the files say nothing.
    """

    kind: ClassVar[str] = "odim"
    quantity: str | None = None
    zr: ZR | None = None
    name: str | None = None
    licence: str = "not stated"

    @property
    def settings(self) -> str:
        """Give all of these."""
        return f"odim {self!r}"

    def scan(self, paths: Sequence[Path]) -> Found:
        """Find the composites, in time order: by the times in their names, or else in the files."""
        expected = f"ODIM_H5 composites ({', '.join(FILE_ENDINGS)})"
        return Found(refs=find_composites(paths, FILE_ENDINGS, self._time_of, expected))

    def survey(self, ref: FrameRef) -> Surveyed:
        """Read a file's header, and digest its bytes."""
        assert isinstance(ref, FileRef)
        data = ref.file.read(MAX_FILE_BYTES)
        with hdf5.opened(data, str(ref), KIND) as file:
            header = self._header(file)
            if header.end_time_s != ref.end_time_s:
                raise DataError(
                    f"its name says {iso_time(ref.end_time_s)}, its content {iso_time(header.end_time_s)}; "
                    "expected the same time: fetch it again or rename it"
                )
        return Surveyed(header=header, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def read(self, ref: FrameRef, crop: Crop) -> Reading:
        """Read a part of a composite, and digest the very bytes that it was read from."""
        assert isinstance(ref, FileRef)
        data = ref.file.read(MAX_FILE_BYTES)
        with hdf5.opened(data, str(ref), KIND) as file:
            counts, rounding = self._pixels(file, crop)
        return Reading(counts=counts, sha256=hashlib.sha256(data).hexdigest(), rounding=rounding)

    def _time_of(self, radar_file: RadarFile) -> int:
        times = TIME_IN_NAME.findall(radar_file.name)
        if len(times) == 1:
            with suppress(ValueError):
                return _parse_time(times[0].ljust(14, "0"))
        with hdf5.opened(radar_file.read(MAX_FILE_BYTES), str(radar_file), KIND) as file:
            return _times(file, self._layer(file))[0]

    def _header(self, file: Any) -> Header:
        layer = self._layer(file)
        hdf5.check_array(layer.image, (2,), DTYPES)
        layer.levels()
        self._rain_mmh(np.empty(0), layer, 0)

        product = f"ODIM {hdf5.text(hdf5.member(file, 'what'), 'source')} {layer.quantity}"
        if layer.quantity == "DBZH" and self.zr is not None:
            product += f" as rain by Z = {self.zr.a:g} R**{self.zr.b:g}"
        end_time_s, period_s = _times(file, layer)
        return Header(
            end_time_s=end_time_s,
            scale_mmh=QUANTUM_MMH,
            missing_codes=(),
            grid=_grid(layer),
            source=self.name or product,
            licence=self.licence,
            # Rates and reflectivities are of one moment, whatever span of scans the file states.
            period_s=period_s,
        )

    def _layer(self, file: Any) -> "_Layer":
        """Find the one image of the quantity that is asked for; raises DataError for what is no composite too."""
        hdf5.check_layout(file, "odim")
        kind = hdf5.text(hdf5.member(file, "what"), "object")
        if kind not in OBJECTS:
            raise DataError(f"/what object is {kind!r}; expected {' or '.join(OBJECTS)}: make a composite of it first")

        # Of several quantities one is rain, or the user chooses.
        layers = list(_layers(file))
        quantities = (self.quantity,) if self.quantity else QUANTITIES
        chosen = [layer for layer in layers if layer.quantity in quantities]
        if not chosen:
            held = ", ".join(sorted({layer.quantity for layer in layers})) or "nothing"
            raise hdf5.ChoiceError(
                f"it holds {held}; expected {self.quantity or 'one of ' + ', '.join(QUANTITIES)}: choose another "
                "--quantity, or remove the file"
            )
        if len(chosen) > 1:
            names = ", ".join(f"{layer.quantity} in {layer.image.name}" for layer in chosen)
            one_each = len({layer.quantity for layer in chosen}) == len(chosen)
            advice = f"choose with --quantity {chosen[0].quantity}" if one_each else "remove the file"
            raise hdf5.ChoiceError(f"it holds {names}; expected one image of rain: {advice}")
        return chosen[0]

    def _rain_mmh(self, values: npt.NDArray[Any], layer: "_Layer", period_s: int) -> npt.NDArray[Any]:
        """Turn values of the layer's quantity into mm/h."""
        if layer.quantity == "DBZH":
            if self.zr is None:
                raise hdf5.ChoiceError(
                    "it holds reflectivity (DBZH); expected a relation Z = A R**B to make rain of it: give --zr A,B "
                    "(--zr 200,1.6 is Marshall and Palmer's)"
                )
            return self.zr.rain_mmh(values)
        if self.zr is not None:
            raise hdf5.ChoiceError(f"it holds {layer.quantity}, which is rain already; leave --zr away")
        return values * (3600 / period_s) if period_s else values

    def _pixels(self, file: Any, crop: Crop) -> tuple[npt.NDArray[np.uint16], Rounding]:
        layer = self._layer(file)
        hdf5.check_array(layer.image, (2,), DTYPES)
        crop.check_inside(*layer.image.shape)
        gain, offset, nodata, undetect = layer.levels()
        period_s = _times(file, layer)[1]

        counts_hw = np.empty((crop.rows, crop.cols), np.uint16)
        rounding = Rounding()
        # A piece at a time: composites of Europe have 130 MB of float64.
        for rows, cols, raw_hw in hdf5.read_pieces(layer.image, crop):
            # Three kinds of pixels: never seen, seen without an echo (dry), and rain.
            missing_hw = (raw_hw == nodata) | np.isnan(raw_hw)
            seen_hw = ~(missing_hw | (raw_hw == undetect))
            values = raw_hw[seen_hw].astype(np.float64) * gain + offset
            pixel_of = _pixel_namer(seen_hw, (crop.row0 + rows.start, crop.col0 + cols.start))
            piece_hw = np.where(missing_hw, np.uint16(MISSING_COUNT), np.uint16(0))
            piece_hw[seen_hw], rounding = requantise(
                self._rain_mmh(values, layer, period_s), pixel_of, frame_pixels=layer.image.size, before=rounding
            )
            counts_hw[rows, cols] = piece_hw
        return counts_hw, rounding


@dataclass(frozen=True)
class _Layer:
    """An image of a file, and the groups "what" and "where" that describe it: its own, its dataset's and the file's."""

    image: Any
    holders: Mapping[str, Sequence[Any]]

    @cached_property
    def quantity(self) -> str:
        """What the image shows."""
        return self.text("what", "quantity")

    def text(self, kind: str, name: str) -> str:
        """Read an attribute that is text."""
        return hdf5.text(self._holder(kind, name), name)

    def number(self, kind: str, name: str, *, may_be_nan: bool = False) -> float:
        """Read an attribute that is a number."""
        return hdf5.number(self._holder(kind, name), name, may_be_nan=may_be_nan)

    def levels(self) -> tuple[float, float, float, float]:
        """Read gain, offset, nodata and undetect; raises DataError for numbers that keep nothing apart."""
        gain, offset, undetect = (self.number("what", name) for name in ("gain", "offset", "undetect"))
        # NaN is the code that floats have of their own, and compares unequal to every pixel; those are looked for too.
        nodata = self.number("what", "nodata", may_be_nan=True)
        if gain <= 0 or nodata == undetect:
            raise DataError(
                f"{self.image.name} has gain {gain:g}, nodata {nodata:g} and undetect {undetect:g}; expected a gain "
                "above 0, and dry pixels (undetect) kept apart from unseen ones (nodata)"
            )
        return gain, offset, nodata, undetect

    def _holder(self, kind: str, name: str) -> Any:
        """Find the group that holds an attribute, the nearest to the image first; the farthest if none does."""
        holders = self.holders[kind]
        if not holders:
            raise DataError(f"/{kind} is missing; expected a radar file that holds it")
        return next((holder for holder in holders if name in holder.attrs), holders[-1])


def _layers(file: Any) -> Iterator[_Layer]:
    """List the images of a file, without quality fields, in the order of their numbers."""
    for outer in _numbered(file, "dataset"):
        for inner in _numbered(outer, "data"):
            holders = {
                kind: [hdf5.member(group, kind) for group in (inner, outer, file) if kind in group]
                for kind in ("what", "where")
            }
            yield _Layer(hdf5.member(inner, "data"), holders)


def _numbered(group: Any, kind: str) -> list[Any]:
    """List the members "dataset1", "dataset2", ... or "data1", ... of a group."""
    if not isinstance(group, h5py.Group) or len(group) > MAX_DATASETS:
        raise DataError(f"{group.name} is no group of at most {MAX_DATASETS} members; expected {KIND}")
    names = [name for name in group if re.fullmatch(rf"{kind}[1-9]\d{{0,3}}", name, re.ASCII)]
    return [hdf5.member(group, name) for name in sorted(names, key=lambda name: int(name.removeprefix(kind)))]


def _times(file: Any, layer: _Layer) -> tuple[int, int]:
    """Read the frame's end time, epoch seconds UTC, and for an accumulation its seconds (else 0).

    An accumulation ends when its data do; a rate or reflectivity belongs to the file's nominal time.
    """
    what = hdf5.member(file, "what")
    nominal_s = _time(lambda name: hdf5.text(what, name), "")
    start_s = _time(lambda name: layer.text("what", name), "start")
    end_s = _time(lambda name: layer.text("what", name), "end")
    if abs(end_s - nominal_s) > MAX_NOMINAL_SHIFT_S:
        raise DataError(
            f"/what says {iso_time(nominal_s)}, its data end at {iso_time(end_s)}; expected at most "
            f"{MAX_NOMINAL_SHIFT_S // 60} min between them: fetch it again or remove it"
        )
    if layer.quantity != "ACRR":
        return nominal_s, 0

    if not 60 <= end_s - start_s <= MAX_PERIOD_S:
        raise DataError(f"its accumulation runs from {iso_time(start_s)} to {iso_time(end_s)}; expected 1 min to 1 day")
    return end_s, end_s - start_s


def _time(text_of: Callable[[str], str], prefix: str) -> int:
    """Read a pair of attributes such as startdate and starttime."""
    text = text_of(f"{prefix}date") + text_of(f"{prefix}time")
    try:
        return _parse_time(text)
    except ValueError as error:
        raise DataError(f"{prefix}date, {prefix}time are {text!r:.40}; expected YYYYMMDD, HHMMSS") from error


def _parse_time(text: str) -> int:
    if not re.fullmatch(r"\d{14}", text, re.ASCII):
        raise ValueError("no such time")
    return int(datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp())


def _grid(layer: _Layer) -> Grid:
    """Read the grid and check that sizes, scales and corners agree."""

    number = partial(layer.number, "where")
    rows, cols = layer.image.shape
    if (number("ysize"), number("xsize")) != (rows, cols):
        raise DataError(
            f"{layer.image.name} has {rows} x {cols} pixels; where says {number('ysize'):g} x {number('xsize'):g}"
        )

    pixel_m = number("xscale")
    if not (0 < pixel_m < 1e6 and number("yscale") == pixel_m):
        raise DataError(f"pixels of {pixel_m:g} by {number('yscale'):g} m; expected square ones")

    projection = layer.text("where", "projdef")
    left_m, upper_m = _to_metres(projection, number("UL_lon"), number("UL_lat"))
    right_m, lower_m = _to_metres(projection, number("LR_lon"), number("LR_lat"))
    # Half a pixel at each corner: some producers state the corner pixels' centres.
    if max(abs(right_m - left_m - cols * pixel_m), abs(upper_m - lower_m - rows * pixel_m)) > 1.01 * pixel_m:
        raise DataError(
            f"the corners are {(right_m - left_m) / 1000:.3f} km by {(upper_m - lower_m) / 1000:.3f} km apart; "
            f"expected {cols * pixel_m / 1000:g} by {rows * pixel_m / 1000:g} km, as sizes and scales say"
        )

    # To the metre: corners come in degrees, with fewer digits in some files.
    return Grid(
        rows=rows,
        cols=cols,
        pixel_km=pixel_m / 1000,
        projection=projection,
        x0_km=round(left_m / 1000, 3) + 0.0,
        y0_km=round(upper_m / 1000, 3) + 0.0,
    )


def _to_metres(projection: str, lon: float, lat: float) -> tuple[float, float]:
    """Project a place; raises DataError for a projection that is not plain, or places it nowhere."""
    # Plain terms only: others name files, or chains of steps.
    terms = projection.split()
    kinds = [term.removeprefix("+proj=") for term in terms if term.startswith("+proj=")]
    if not (
        len(projection) < 1000
        and all(PROJECTION_TERM.fullmatch(term) for term in terms)
        and len(kinds) == 1
        and kinds[0] not in REFUSED_PROJECTIONS
    ):
        raise DataError(f"projdef is {projection!r:.200}; expected one projection in metres, of plain +key=value terms")

    # Without its unit a projection gives metres, in which ODIM_H5 states scales whatever the projection's unit is.
    in_metres = " ".join(term for term in terms if not term.startswith("+units="))
    try:
        x_m, y_m = pyproj.Proj(in_metres)(lon, lat, errcheck=True)
        if not (math.isfinite(x_m) and math.isfinite(y_m)):
            raise pyproj.exceptions.ProjError("it lies at no finite place")
    except pyproj.exceptions.ProjError as error:
        raise DataError(f"projdef {projection!r:.200} does not place {lon:g} E, {lat:g} N ({error})") from error
    return x_m, y_m


def _pixel_namer(seen_hw: npt.NDArray[np.bool_], first: tuple[int, int]) -> Callable[[int], tuple[int, ...]]:
    """Find which pixel of the whole image the n-th seen one is."""
    return lambda number: tuple((np.argwhere(seen_hw)[number] + first).tolist())
