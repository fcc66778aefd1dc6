"""Read ODIM_H5 composites: rain rates, accumulations and reflectivity of Europe's radars, as counts of 0.01 mm/h.

Groups, attributes and quantities: Michelson, Lewandowski, Szewczykowski, Beekhuis and Haase, EUMETNET OPERA weather
radar information model for implementation with the HDF5 file format, version 2.4 (2021). Pixels that a radar saw
without an echo ("undetect") are dry, pixels that none saw ("nodata") are missing. A projection may name no file.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, ClassVar, Final

import h5py
import numpy as np
import numpy.typing as npt

from ..counts import QUANTUM_MMH, Rounding, requantise
from ..errors import DataError
from ..frames import Crop, iso_time
from ..json_checks import JsonRecord
from ..units import MISSING_COUNT
from ..units import ZR as ZR
from ..units import parse_zr as parse_zr
from . import hdf5
from .files import Place, RadarFile
from .odim_grid import read_grid
from .places.composites import Finder, Look, find_composites
from .source import UNSTATED, FileRef, Found, FrameRef, Header, Reading, Surveyed

KIND: Final = hdf5.KINDS["odim"]
FILE_ENDINGS: Final = (".h5", ".hdf5", ".hdf", ".hd5", "-hd5")
"""The last one is that of the German weather service's composites, composite_hx_20231114_1200-hd5."""
QUANTITIES: Final = ("RATE", "ACRR", "DBZH")
DTYPES: Final = ("uint8", "uint16", "int16", "int32", "float32", "float64")
OBJECTS: Final = ("COMP", "IMAGE")
TIME_IN_NAME: Final = re.compile(r"(?<!\d)(\d{8})T?(\d{6}|\d{4})(?!\d|[+-]\d\d:?\d\d)", re.ASCII)
"""UTC: of a name that states another zone, the content's time is taken."""
PIXELS_OF: Final = {
    "PVOL": "polar volumes",
    "SCAN": "polar scans",
    "RAY": "polar rays",
    "AZIM": "azimuthal objects",
    "ELEV": "elevational objects",
    "CVOL": "cartesian volumes",
    "XSEC": "vertical cross sections",
    "VP": "vertical profiles",
    "PIC": "pictures",
}
"""What else ODIM_H5 files hold (manual, table 2)."""
MAX_FILE_BYTES: Final = 2**29
MAX_DATASETS: Final = 256
MAX_PERIOD_S: Final = 86400
MAX_NOMINAL_SHIFT_S: Final = 3600
"""Furthest that data end from a composite's nominal time: OPERA's of 2018 end 5 minutes after it."""


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
    licence: str = UNSTATED

    @property
    def settings(self) -> str:
        """Give all of these."""
        return f"odim {self!r}"

    def scan(self, paths: Sequence[Place]) -> Found:
        """Find the composites, in time order: by the times in their names, or else in the files."""
        return find_composites(
            paths,
            Finder(
                endings=FILE_ENDINGS,
                expected=f"ODIM_H5 composites ({', '.join(FILE_ENDINGS)})",
                time_of_name=_time_of_name,
                look=self._look,
                max_bytes=MAX_FILE_BYTES,
            ),
        )

    def survey(self, ref: FrameRef) -> Surveyed:
        """Read a file's header, and digest its bytes."""
        assert isinstance(ref, FileRef)
        data = ref.file.read(MAX_FILE_BYTES)
        with hdf5.opened(data, str(ref), KIND) as file:
            header, notes = self._header(file)
            if header.end_time_s != ref.end_time_s:
                raise DataError(
                    f"its name says {iso_time(ref.end_time_s)}, its content {iso_time(header.end_time_s)}; "
                    "expected the same time: fetch it again or rename it"
                )
        digest = hashlib.sha256(data).hexdigest()
        return Surveyed(header=header, num_bytes=len(data), sha256=digest, notes=notes)

    def read(self, ref: FrameRef, crop: Crop) -> Reading:
        """Read a part of a composite, and digest the very bytes that it was read from."""
        assert isinstance(ref, FileRef)
        data = ref.file.read(MAX_FILE_BYTES)
        with hdf5.opened(data, str(ref), KIND) as file:
            counts, rounding = self._pixels(file, crop)
        return Reading(counts=counts, sha256=hashlib.sha256(data).hexdigest(), rounding=rounding)

    def _look(self, radar_file: RadarFile) -> Look:
        """Open a file to see whether it holds what is asked for, and of which time it is."""
        try:
            with hdf5.opened(radar_file.content(MAX_FILE_BYTES), str(radar_file), KIND) as file:
                layer = self._layer(file)
                self._rain_mmh(np.empty(0), layer, 0)
                return Look(end_time_s=_times(file, layer)[0], holds=layer.quantity)
        except DataError as error:
            return Look(error=error)

    def _header(self, file: Any) -> tuple[Header, tuple[str, ...]]:
        layer = self._layer(file)
        hdf5.check_array(layer.image, (2,), DTYPES)
        _, level_notes = layer.levels()
        self._rain_mmh(np.empty(0), layer, 0)
        grid, grid_notes = read_grid(layer.image.shape, layer.where)

        end_time_s, period_s = _times(file, layer)
        return Header(
            end_time_s=end_time_s,
            scale_mmh=QUANTUM_MMH,
            missing_codes=(),
            grid=grid,
            source=self.name or self._product(file, layer),
            licence=self.licence,
            period_s=period_s,
        ), tuple(f"{layer.quantity}: {note}" for note in (*level_notes, *grid_notes))

    def _product(self, file: Any, layer: "_Layer") -> str:
        """Name the product by what the file says of its origin."""
        what = hdf5.member(file, "what")
        if "source" not in what.attrs:
            raise hdf5.ChoiceError("attribute source of /what is missing; expected the data's origin: give --name")
        product = f"ODIM {hdf5.text(what, 'source')} {layer.quantity}"
        if layer.quantity == "DBZH" and self.zr is not None:
            product += f" as rain by Z = {self.zr.a:g} R**{self.zr.b:g}"
        return product

    def _layer(self, file: Any) -> "_Layer":
        """Find the one image of the quantity that is asked for; raises DataError for what is no composite too."""
        hdf5.check_layout(file, "odim")
        kind = hdf5.text(hdf5.member(file, "what"), "object")
        if kind not in OBJECTS:
            raise hdf5.ChoiceError(
                f"/what object is {kind!r}; expected {' or '.join(OBJECTS)}: make a composite of it first",
                holds=f"{PIXELS_OF.get(kind, 'objects of another kind')} ({kind:.8})",
            )

        # Of several quantities one is rain, or the user chooses; reflectivity is rain with a relation only.
        layers = [layer if layer.states_quantity else replace(layer, asked=self.quantity) for layer in _layers(file)]
        held = {layer.quantity for layer in layers}
        wanted = {self.quantity} if self.quantity else set(QUANTITIES)
        if self.quantity is None and "DBZH" in held & wanted and len(held & wanted) > 1:
            wanted = {"DBZH"} if self.zr is not None else wanted - {"DBZH"}
        chosen = [layer for layer in layers if layer.quantity in wanted]
        if not chosen:
            listed = ", ".join(sorted(held)) or "nothing"
            raise hdf5.ChoiceError(
                f"it holds {listed}; expected {self.quantity or 'one of ' + ', '.join(QUANTITIES)}: "
                f"{'choose another --quantity, or remove' if held & set(QUANTITIES) else 'remove'} the file",
                holds=listed,
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
                    "(--zr 200,1.6 is Marshall and Palmer's)",
                    holds="reflectivity (DBZH, which needs --zr)",
                )
            return self.zr.rain_mmh(values)
        if self.zr is not None:
            raise hdf5.ChoiceError(
                f"it holds {layer.quantity}, which is rain already; leave --zr away",
                holds=f"{layer.quantity} (which takes no --zr)",
            )
        return values * (3600 / period_s) if period_s else values

    def _pixels(self, file: Any, crop: Crop) -> tuple[npt.NDArray[np.uint16], Rounding]:
        layer = self._layer(file)
        hdf5.check_array(layer.image, (2,), DTYPES)
        crop.check_inside(*layer.image.shape)
        (gain, offset, nodata, undetect), _ = layer.levels()
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
    """An image of a file, and what describes it: groups "what" and "where" of its own, its dataset's and the file's.

    Attributes:
        image: The image.
        what: Quantity, levels and times.
        where: The grid.
        asked: The quantity that is taken for one that is not stated.
    """

    image: Any
    what: hdf5.Attributes
    where: hdf5.Attributes
    asked: str | None = None

    @property
    def states_quantity(self) -> bool:
        """Whether the file says what the image shows."""
        return self.what.hold("quantity")

    @cached_property
    def quantity(self) -> str:
        """What the image shows."""
        if self.asked is not None and not self.states_quantity:
            return self.asked
        return self.what.text("quantity")

    def levels(self) -> tuple[tuple[float, float, float, float], tuple[str, ...]]:
        """Read gain, offset, nodata and undetect, and note those that are not stated.

        Gain and offset are 1 and 0 by the manual's own default. What is missing and dry then has no code: floats have
        NaN and 0, integers nothing.

        Raises:
            DataError: Numbers that keep nothing apart, or integers without a code.
        """
        absent = [name for name in ("gain", "offset", "nodata", "undetect") if not self.what.hold(name)]
        codes = [name for name in absent if name in ("nodata", "undetect")]
        if codes and self.image.dtype.kind != "f":
            raise DataError(
                f"attribute {codes[0]} of /what is missing, and {self.image.name} holds integers "
                f"({self.image.dtype}); expected it, for no integer says by itself which pixels are "
                f"{'missing' if codes[0] == 'nodata' else 'dry'}: fetch the file again or ask its producer"
            )

        gain = self.what.number("gain", 1.0)
        offset = self.what.number("offset", 0.0)
        undetect = self.what.number("undetect", 0.0)
        # NaN is the code that floats have of their own, and compares unequal to every pixel; those are looked for too.
        nodata = self.what.number("nodata", math.nan, may_be_nan=True)
        if gain <= 0 or nodata == undetect:
            raise DataError(
                f"{self.image.name} has gain {gain:g}, nodata {nodata:g} and undetect {undetect:g}; expected a gain "
                "above 0, and dry pixels (undetect) kept apart from unseen ones (nodata)"
            )
        meanings = {"gain": "gain 1", "offset": "offset 0", "nodata": "NaN missing", "undetect": "0 dry"}
        read_as = ", ".join(meanings[name] for name in absent)
        notes = (f"the files do not state {', '.join(absent)}: read as {read_as}",) if absent else ()
        return (gain, offset, nodata, undetect), notes


def _layers(file: Any) -> Iterator[_Layer]:
    """List the images of a file, without quality fields, in the order of their numbers."""
    for outer in _numbered(file, "dataset"):
        for inner in _numbered(outer, "data"):
            what, where = (
                hdf5.Attributes(kind, [hdf5.member(group, kind) for group in (inner, outer, file) if kind in group])
                for kind in ("what", "where")
            )
            yield _Layer(hdf5.member(inner, "data"), what, where)


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
    # A rate needs no period, and files without one are about.
    stated = [name for name in ("startdate", "starttime", "enddate", "endtime") if layer.what.hold(name)]
    if not stated and layer.quantity != "ACRR":
        return nominal_s, 0
    start_s = _time(layer.what.text, "start")
    end_s = _time(layer.what.text, "end")
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


def _time_of_name(radar_file: RadarFile) -> int | None:
    """Read the time in a file's name, epoch seconds UTC; None where it holds none, or several."""
    times = TIME_IN_NAME.findall(radar_file.name)
    with suppress(ValueError):
        if len(times) == 1:
            return _parse_time("".join(times[0]).ljust(14, "0"))
    return None


def _parse_time(text: str) -> int:
    if not re.fullmatch(r"\d{14}", text, re.ASCII):
        raise ValueError("no such time")
    return int(datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp())


def _pixel_namer(seen_hw: npt.NDArray[np.bool_], first: tuple[int, int]) -> Callable[[int], tuple[int, ...]]:
    """Find which pixel of the whole image the n-th seen one is."""
    return lambda number: tuple((np.argwhere(seen_hw)[number] + first).tolist())
