"""Read any format that pysteps imports, as counts of 0.01 mm/h (extra `nowcast`).

What an importer gives: pysteps.io.importers, "Raster data" (precipitation field, quality field, metadata; missing
pixels are NaN); Pulkkinen et al. (2019), Pysteps: an open-source Python library for probabilistic precipitation
nowcasting, Geosci. Model Dev. 12, 4185-4219, doi:10.5194/gmd-12-4185-2019. These readers are pysteps' own: they take
files on disk only, and check less than data.sources.hdf5 does.
"""

import contextlib
import io
import math
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from ..counts import QUANTUM_MMH, requantise
from ..errors import DataError
from ..frames import Crop, Grid
from ..json_checks import JsonRecord
from .files import RadarFile, digest_of, files_of
from .hdf5 import MAX_PIXELS, explained
from .odim import ZR
from .source import FileRef, Found, FrameRef, Header, Reading, Surveyed, in_time_order

KIND: Final = "a field with pysteps' metadata"
PATTERN: Final = "expected the pattern of the files' names, with %Y, %m, %d, %H and %M"
EARTH_RADIUS_M: Final = 6_371_000
"""Mean radius of the Earth (IUGG, R1, to the kilometre): a grid in degrees is plate carrée on this sphere."""
PLATE_CARREE: Final = f"+proj=eqc +lat_ts=0 +lon_0=0 +R={EARTH_RADIUS_M} +units=m"
KILOMETRES: Final = {"m": 0.001, "km": 1.0, "degrees": math.radians(EARTH_RADIUS_M / 1000)}
"""Kilometres of a `cartesian_unit`."""
SQUARE: Final = 0.01
"""Largest relative difference between a pixel's sides that still counts as square."""


@dataclass(kw_only=True)
class ImporterSource(JsonRecord):
    """Files that an importer of pysteps reads, for packing (`data.sources.source.Source`).

    Attributes:
        importer: The importer's name as pysteps.io.get_method knows it, such as mrms_grib.
        time_pattern: The files' names as strptime reads them: %Y%m%d%H%M of the end time, UTC.
        arguments: Further arguments of the importer.
        zr: From reflectivity to rain; needed for dBZ.
        name: The product's name; None for the importer's and its institution's.
        licence: Licence of the data.
    """

    kind: ClassVar[str] = "importer"
    importer: str
    time_pattern: str
    arguments: Mapping[str, str | float] = field(default_factory=dict)
    zr: ZR | None = None
    name: str | None = None
    licence: str = "not stated"
    # The libraries below (netCDF4, GRIB) are not made for several threads.
    _alone: ClassVar[threading.Lock] = threading.Lock()

    @property
    def settings(self) -> str:
        """Give all of these."""
        return f"importer {self!r}"

    def scan(self, paths: Sequence[Path]) -> Found:
        """Find the files whose names hold a time, in time order; those of folders that hold none are counted."""
        _pysteps_method(self.importer)
        times_s = {file: self._time_of(file) for path in paths for file in files_of(path, ("",))}
        others = [file for file, time_s in times_s.items() if time_s is None]
        misnamed = next((path for path in paths if path in others), None)
        if misnamed is not None:
            raise DataError(
                f"{misnamed}: its name does not fit --time-pattern {self.time_pattern!r}; {PATTERN} (pysteps reads no "
                "archives: take the files out first)"
            )

        refs = [
            FileRef(file=RadarFile(path=file), end_time_s=time_s)
            for file, time_s in times_s.items()
            if time_s is not None
        ]
        if not refs:
            names = ", ".join(map(str, paths)) or "nothing"
            raise DataError(f"no file in {names} has a name like {self.time_pattern!r}; {PATTERN}")
        # Links may lead to a file twice.
        unique = {ref.file.key: ref for ref in refs}
        notes = (f"{len(others)} files have other names and are not read, such as {others[0]}",) if others else ()
        return Found(refs=in_time_order(list(unique.values())), notes=notes)

    def survey(self, ref: FrameRef) -> Surveyed:
        """Import a file for its metadata, and digest its bytes."""
        assert isinstance(ref, FileRef)
        field_hw, metadata = self._imported(ref)
        with explained(str(ref), KIND):
            grid = _grid(metadata, field_hw.shape)
            self._rain_mmh(np.empty(0), metadata)

        institution = str(metadata.get("institution") or "").strip()
        header = Header(
            end_time_s=ref.end_time_s,
            scale_mmh=QUANTUM_MMH,
            missing_codes=(),
            grid=grid,
            source=self.name or f"{institution or 'unknown institution'}, by pysteps' {self.importer}",
            licence=self.licence,
        )
        return Surveyed(header=header, num_bytes=ref.path.stat().st_size, sha256=digest_of(ref.path))

    def read(self, ref: FrameRef, crop: Crop) -> Reading:
        """Import a file, and give a part of it as counts."""
        assert isinstance(ref, FileRef)
        field_hw, metadata = self._imported(ref)
        with explained(str(ref), KIND):
            crop.check_inside(*field_hw.shape)
            if metadata.get("yorigin") == "lower":
                field_hw = field_hw[::-1]
            part_hw = field_hw[crop.row0 : crop.row1, crop.col0 : crop.col1]
            rain_mmh = self._rain_mmh(part_hw, metadata).ravel()
            counts, rounding = requantise(
                rain_mmh, lambda at: (crop.row0 + at // crop.cols, crop.col0 + at % crop.cols)
            )

        # Digested after it was read: whoever wrote to it before that is found out.
        return Reading(counts=counts.reshape(part_hw.shape), sha256=digest_of(ref.path), rounding=rounding)

    def _time_of(self, path: Path) -> int | None:
        try:
            return int(datetime.strptime(path.name, self.time_pattern).replace(tzinfo=UTC).timestamp())
        except ValueError:
            return None

    def _imported(self, ref: FileRef) -> tuple[npt.NDArray[np.float64], Mapping[str, Any]]:
        """Run the importer: the field with NaN where nothing was measured, and the metadata."""
        method = _pysteps_method(self.importer)
        try:
            with self._alone, contextlib.redirect_stdout(io.StringIO()):
                imported = method(str(ref.path), **self.arguments)
        # Importers raise whatever the library below them raises.
        except Exception as error:
            advice = "the file is damaged or of another format: remove it, or choose another --importer"
            if isinstance(error, ImportError) or type(error).__name__ == "MissingOptionalDependency":
                advice = "install the package that it asks for"
            raise DataError(
                f"{ref}: pysteps' importer {self.importer} failed: {type(error).__name__}: {str(error)[:300]}; {advice}"
            ) from error
        if not (isinstance(imported, tuple) and len(imported) == 3 and isinstance(imported[2], Mapping)):
            raise DataError(f"{ref}: pysteps' importer {self.importer} gives no field with metadata; choose another")
        # Masked, infinite and not a number: all of it is missing.
        field_hw = np.ma.filled(np.ma.masked_invalid(np.ma.asarray(imported[0], np.float64), copy=True), np.nan)
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
        factor = 1.0
        if unit == "mm":
            accutime = metadata.get("accutime")
            if not isinstance(accutime, (int, float)) or not 0 < accutime <= 1440:
                raise DataError(f"the field is in mm, accutime is {accutime!r}; expected its minutes, 1 to 1440")
            factor = 60 / accutime
        if self.zr is not None:
            rain_hw = self.zr.rain_mmh(field_hw)
        else:
            rain_hw = factor * (10 ** (field_hw / 10) if transform == "dB" else field_hw)

        # In dB no rain has no number: pysteps puts zerovalue there, below the threshold of rain.
        if (transform == "dB" or self.zr is not None) and zero is not None and threshold is not None:
            rain_hw = np.where((field_hw <= zero) & (field_hw < threshold), 0.0, rain_hw)
        return rain_hw


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
        raise DataError(
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

    left_km, right_km, lower_km, upper_km = (float(edge) * KILOMETRES[unit] for edge in edges)  # type: ignore[arg-type]
    wide_km, high_km = (right_km - left_km) / cols, (upper_km - lower_km) / rows
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
