"""Read any format that pysteps imports, as counts of 0.01 mm/h (extra `nowcast`).

What an importer gives: pysteps.io.importers, "Raster data" (precipitation field, quality field, metadata; missing
pixels are NaN); Pulkkinen et al. (2019), Pysteps: an open-source Python library for probabilistic precipitation
nowcasting, Geosci. Model Dev. 12, 4185-4219, doi:10.5194/gmd-12-4185-2019. These readers are pysteps' own: they take
files on disk only, and check less than data.sources.hdf5 does.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from ..counts import QUANTUM_MMH, Rounding, requantise
from ..errors import ConfigError, DataError
from ..frames import Crop, Grid
from ..json_checks import JsonRecord
from .files import Place, digest_of, find_all
from .foreign.frames import rain_of_dbz
from .foreign.importer_arguments import check_arguments, effective
from .foreign.mapping import AGREEMENT, DEGREE_M, PLATE_CARREE, SQUARE
from .foreign.name_times import NEEDED, NameTimes
from .foreign.opening import ALONE
from .hdf5 import MAX_PIXELS, explained
from .odim import ZR
from .places.formats import format_of_file
from .source import UNSTATED, FileRef, Found, FrameRef, Header, Reading, Surveyed, in_time_order, without_copies

MAX_FILE_BYTES: Final = 2**29
KIND: Final = "a field with pysteps' metadata"
KILOMETRES: Final = {"m": 0.001, "km": 1.0, "degrees": DEGREE_M / 1000}
"""Kilometres of a `cartesian_unit`."""
CONSTANT_PERIOD: Final = frozenset({"fmi_geotiff", "fmi_pgm", "mch_hdf5", "mrms_grib", "odim_hdf5", "opera_hdf5"})
"""Importers that write the same `accutime` whatever the file says (pysteps 1.21)."""
READ_BY_US: Final[Mapping[str, str]] = {
    "dwd_radolan": "it states no unit, and an orientation that the field does not have: use rainspark pack xarray "
    "FILES --engine radolan --variable RW (or RX, RY, YW)",
}
"""Importers that give wrong or incomplete fields, and what reads their files right."""
CHANGES: Final[Mapping[str, str]] = {
    "mch_hdf5": "pixels without an echo missing; rainspark pack odim keeps them dry",
}
"""What importers make of the data in any case."""


@dataclass(kw_only=True)
class ImporterSource(JsonRecord):
    """Files that an importer of pysteps reads, for packing (`data.sources.source.Source`).

    Attributes:
        importer: The importer's name as pysteps.io.get_method knows it, such as mrms_grib.
        time_patterns: The files' names (data.sources.foreign.name_times), with %Y%m%d%H%M of the end time.
        arguments: Further arguments of the importer, as texts.
        zr: From reflectivity to rain; needed for dBZ.
        name: The product's name; None for the importer's and its institution's.
        licence: Licence of the data.
    """

    kind: ClassVar[str] = "importer"
    importer: str
    time_patterns: tuple[str, ...]
    arguments: Mapping[str, str] = field(default_factory=dict)
    zr: ZR | None = None
    name: str | None = None
    licence: str = UNSTATED

    @property
    def settings(self) -> str:
        """Give all of these."""
        return f"importer {self!r}"

    def scan(self, paths: Sequence[Place]) -> Found:
        """Find the files whose names hold a time, in time order; those of folders that hold none are counted.

        Raises:
            ConfigError: About the importer, its arguments or the patterns, before any file is looked at.
            DataError: About the files.
        """
        name_times = NameTimes(patterns=self.time_patterns)
        name_times.check()
        _, arguments = self._method()

        times_s = {file: name_times.time_of(file.name) for file in find_all(paths)}
        others = [file for file, time_s in times_s.items() if time_s is None]
        patterns = " or ".join(map(repr, self.time_patterns))
        misnamed = next((file for file in others if file.stored is None and file.path in paths), None)
        if misnamed is not None:
            raise DataError(
                f"{misnamed}: its name does not fit --time-pattern {patterns}; {NEEDED} (pysteps reads no archives: "
                "take the files out first)"
            )

        timed = [FileRef(file=file, end_time_s=time_s) for file, time_s in times_s.items() if time_s is not None]
        if not timed:
            names = ", ".join(map(str, paths)) or "nothing"
            raise DataError(f"no file in {names} has a name like {patterns}; {NEEDED}")
        refs, notes = without_copies(timed, _digest)
        if others:
            notes.append(f"{len(others)} files have other names and are not read, such as {others[0]}")
        if arguments:
            notes.append(f"pysteps' {self.importer} reads with {arguments}")
        if self.importer in CHANGES:
            notes.append(f"pysteps' {self.importer} makes {CHANGES[self.importer]}")
        return Found(refs=in_time_order(refs), notes=tuple(notes))

    def survey(self, ref: FrameRef) -> Surveyed:
        """Import a file for its metadata and its pixels' worth, and digest its bytes."""
        assert isinstance(ref, FileRef)
        with ref.file.on_disk(MAX_FILE_BYTES) as path:
            field_hw, metadata = self._imported(ref, path)
            num_bytes, sha256 = path.stat().st_size, digest_of(path)
        with explained(str(ref), KIND):
            grid = _grid(metadata, field_hw.shape)
            period_s = self._period_s(metadata)
            self._counts(field_hw, metadata, Crop(row0=0, row1=grid.rows, col0=0, col1=grid.cols))

        institution = str(metadata.get("institution") or "").strip()
        header = Header(
            end_time_s=ref.end_time_s,
            scale_mmh=QUANTUM_MMH,
            missing_codes=(),
            grid=grid,
            source=self.name or f"{institution or 'unknown institution'}, by pysteps' {self.importer}",
            licence=self.licence,
            period_s=period_s,
        )
        return Surveyed(header=header, num_bytes=num_bytes, sha256=sha256)

    def read(self, ref: FrameRef, crop: Crop) -> Reading:
        """Import a file, and give a part of it as counts."""
        assert isinstance(ref, FileRef)
        with ref.file.on_disk(MAX_FILE_BYTES) as path:
            field_hw, metadata = self._imported(ref, path)
            # Digested after it was read: whoever wrote to it before that is found out.
            sha256 = digest_of(path)
        with explained(str(ref), KIND):
            crop.check_inside(*field_hw.shape)
            counts_hw, rounding = self._counts(field_hw, metadata, crop)

        return Reading(counts=counts_hw, sha256=sha256, rounding=rounding)

    def _counts(
        self, field_hw: npt.NDArray[Any], metadata: Mapping[str, Any], crop: Crop
    ) -> tuple[npt.NDArray[np.uint16], Rounding]:
        """Turn a part of the field, north up, into counts."""
        if metadata.get("yorigin") == "lower":
            field_hw = field_hw[::-1]
        part_hw = field_hw[crop.row0 : crop.row1, crop.col0 : crop.col1]
        rain_mmh = self._rain_mmh(part_hw, metadata).ravel()
        counts, rounding = requantise(
            rain_mmh,
            lambda at: (crop.row0 + at // crop.cols, crop.col0 + at % crop.cols),
            frame_pixels=field_hw.size,
        )
        return counts.reshape(part_hw.shape), rounding

    def _method(self) -> tuple[Callable[..., Any], str]:
        """Find the importer, bound to its arguments, and what they are in words; raises ConfigError."""
        if self.importer in READ_BY_US:
            raise ConfigError(f"pysteps' importer {self.importer}: {READ_BY_US[self.importer]}")
        method = _pysteps_method(self.importer)
        arguments = check_arguments(self.importer, method, self.arguments)
        return partial(method, **arguments), effective(method, arguments)

    def _imported(self, ref: FileRef, path: Path) -> tuple[npt.NDArray[np.float64], Mapping[str, Any]]:
        """Run the importer: the field with NaN where nothing was measured, and the metadata."""
        method, arguments = self._method()

        try:
            with ALONE, contextlib.redirect_stdout(io.StringIO()):
                imported = method(str(path))
        # Importers raise whatever the library below them raises.
        except Exception as error:
            advice = "the file is damaged or of another format: remove it, or choose another --importer"
            if arguments:
                advice += f" or --argument (it ran with {arguments})"
            if (form := format_of_file(path)) is not None:
                advice = f"it is {form.name}: {form.advice}; if it is what it should be, {advice}"
            if isinstance(error, ImportError) or type(error).__name__ == "MissingOptionalDependency":
                advice = "install the package that it asks for"
            raise DataError(
                f"{ref}: pysteps' importer {self.importer} failed: {type(error).__name__}: {str(error)[:300]}; {advice}"
            ) from error

        # What pysteps' importers promise: field, quality, metadata.
        if not (isinstance(imported, tuple) and len(imported) == 3 and isinstance(imported[2], Mapping)):
            raise DataError(f"{ref}: pysteps' importer {self.importer} gives no field with metadata; choose another")

        # Masked and not a number: both are missing.
        field_hw = np.ma.filled(np.ma.asarray(imported[0], np.float64), np.nan)
        if field_hw.ndim != 2 or not 0 < field_hw.size <= MAX_PIXELS:
            raise DataError(f"{ref}: the field has shape {field_hw.shape}; expected rows, columns, up to {MAX_PIXELS}")
        return field_hw, imported[2]

    def _rain_mmh(self, field_hw: npt.NDArray[Any], metadata: Mapping[str, Any]) -> npt.NDArray[Any]:
        """Turn the field into mm/h, as its unit, transform and accumulation time ask."""
        unit, transform = metadata.get("unit"), metadata.get("transform")
        zero, threshold = metadata.get("zerovalue"), metadata.get("threshold")
        is_known = transform in (None, "dB") and unit in ("mm/h", "mm", "dBZ")
        if not is_known or (unit == "dBZ") != (self.zr is not None):
            raise DataError(
                f"the field is in {unit!r}, transform {transform!r}, Z-R relation {self.zr}; expected mm/h or mm "
                "without --zr, or dBZ with one (--zr 200,1.6 is Marshall and Palmer's), untransformed or in dB"
            )

        # A depth becomes a rate by the minutes in which it fell.
        period_s = self._period_s(metadata)
        factor = 3600 / period_s if unit == "mm" and period_s else 1.0
        if self.zr is not None:
            rain_hw = rain_of_dbz(self.zr, field_hw)
        else:
            rain_hw = factor * (10 ** (field_hw / 10) if transform == "dB" else field_hw)

        # In dB no rain has no number: pysteps puts zerovalue there, below the threshold of rain.
        if (transform == "dB" or self.zr is not None) and zero is not None and threshold is not None:
            is_dry = (field_hw <= zero) & (field_hw < threshold) & ~np.isneginf(rain_hw)
            rain_hw = np.where(is_dry, 0.0, rain_hw)
        return rain_hw

    def _period_s(self, metadata: Mapping[str, Any]) -> int | None:
        """Read over which time a value is a mean or a sum, seconds; 0 of reflectivity, None where nothing says it."""
        unit, accutime = metadata.get("unit"), metadata.get("accutime")
        if unit == "dBZ":
            return 0
        is_constant = self.importer in CONSTANT_PERIOD
        if isinstance(accutime, (int, float, np.number)) and 0 < accutime <= 1440 and not is_constant:
            return round(60 * float(accutime))
        if unit == "mm":
            constant = ", which it writes whatever the file says: ODIM_H5 is read by rainspark pack odim"
            raise DataError(
                f"the field is in mm, {self.importer}'s accutime is {accutime!r}{constant if is_constant else ''}; "
                "expected the minutes in which it fell, 1 to 1440"
            )
        return None


def _digest(ref: FileRef) -> str:
    with ref.file.on_disk(MAX_FILE_BYTES) as path:
        return digest_of(path)


def _pysteps_method(name: str) -> Callable[..., Any]:
    try:
        # pysteps prints where its configuration lies as soon as it is imported, and sets filters of warnings.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            from pysteps import io as pysteps_io
    except ImportError as error:
        raise DataError(
            f"pysteps is not installed ({error}); importers need it: pip install 'rainspark[nowcast]'"
        ) from error
    try:
        method: Callable[..., Any] = pysteps_io.get_method(name, "importer")
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"pysteps knows no importer {name!r} ({' '.join(str(error).split())}); expected one such as mrms_grib or "
            "mch_gif"
        ) from error
    return method


def _grid(metadata: Mapping[str, Any], shape: tuple[int, ...]) -> Grid:
    rows, cols = shape
    unit, origin = metadata.get("cartesian_unit"), metadata.get("yorigin")
    edges = [metadata.get(name) for name in ("x1", "x2", "y1", "y2")]
    are_numbers = all(isinstance(edge, (int, float, np.number)) and math.isfinite(edge) for edge in edges)
    if unit not in KILOMETRES or origin not in ("upper", "lower") or not are_numbers:
        raise DataError(
            f"the metadata say x1, x2, y1, y2 = {edges}, cartesian_unit {unit!r}, yorigin {origin!r}; expected "
            "numbers, m, km or degrees, and upper or lower"
        )

    km = KILOMETRES[unit]
    left_km, right_km, lower_km, upper_km = (float(edge) * km for edge in edges)  # type: ignore[arg-type]
    wide_km, left_km = _stated_pixel(metadata.get("xpixelsize"), km, left_km, right_km, cols)
    high_km, below_km = _stated_pixel(metadata.get("ypixelsize"), km, -upper_km, -lower_km, rows)
    upper_km = -below_km
    # Degrees east run on to 360 in some files.
    if unit == "degrees" and left_km >= 180 * km:
        left_km -= 360 * km
    if not (wide_km > 0 and abs(high_km - wide_km) <= SQUARE * wide_km):
        raise DataError(f"pixels of {wide_km:g} by {high_km:g} km; expected square ones")
    projection = PLATE_CARREE if unit == "degrees" else " ".join(str(metadata.get("projection") or "").split())
    if not projection.isprintable() or not 0 < len(projection) < 1000:
        raise DataError(f"the metadata's projection is {projection!r:.200}; expected a PROJ string")

    return Grid(
        rows=rows,
        cols=cols,
        pixel_km=round(wide_km, 6),
        projection=projection,
        x0_km=round(left_km, 3) + 0.0,
        y0_km=round(upper_km, 3) + 0.0,
    )


def _stated_pixel(stated: Any, km: float, first_km: float, last_km: float, count: int) -> tuple[float, float]:
    """Compare the stated size of pixels with the edges of the grid, of which some importers give the pixels' centres.

    Args:
        stated: Size in the importer's unit; None where it states none.
        km: Kilometres of that unit.
        first_km: Edge that the pixels are counted from.
        last_km: Edge on the other side.
        count: Pixels between them.

    Returns:
        The size, km: the stated one. The edge of the first pixel, km.

    Raises:
        DataError: The edges are further apart than the pixels say, or closer.
    """
    span_km = last_km - first_km
    if not isinstance(stated, (int, float, np.number)) or not math.isfinite(stated) or stated == 0:
        return span_km / count, first_km
    size_km = abs(float(stated)) * km
    if abs(span_km - count * size_km) <= AGREEMENT * count * size_km:
        return size_km, first_km
    if abs(span_km - (count - 1) * size_km) <= AGREEMENT * count * size_km:
        return size_km, first_km - size_km / 2
    raise DataError(
        f"{count} pixels are stated to be {size_km:g} km wide each, and their edges are {span_km:g} km apart; expected "
        f"{count * size_km:g} km: the file is damaged, or its importer does not know this grid"
    )
