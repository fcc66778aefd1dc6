"""A forecast as Cloud Optimized GeoTIFFs, one a lead time and one a sum over an hour (extra `formats`).

Layout: OGC 21-026, Cloud Optimized GeoTIFF 1.0, as GDAL's driver "COG" writes it; band unit and tags: GDAL's GeoTIFF
driver, https://gdal.org/en/stable/drivers/raster/cog.html.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...data.errors import ConfigError, DataError
from ...data.frames import Grid, iso_time
from ...data.store.storage import open_storage
from .content import Content
from .grid import parse_projection
from .probabilities import HOUR_S

LAYOUT: Final = {"compress": "DEFLATE", "predictor": "YES", "blocksize": 512, "overview_resampling": "AVERAGE"}
"""Every reader knows DEFLATE. Overviews are means: rain keeps its amount, and NaN is left out of them."""


def require_rasterio() -> Any:
    """Import rasterio; raises ConfigError where it is not installed."""
    try:
        import rasterio.io
        import rasterio.shutil
    except ImportError as error:
        raise ConfigError(
            f"rasterio is not installed ({error}); GeoTIFFs need it: pip install 'rainspark[formats]', or leave cog "
            "out of --products"
        ) from error
    return rasterio


@dataclass(frozen=True, kw_only=True, eq=False)
class _Raster:
    """What one file holds: its bands by description, (rows, cols) each, their unit, and the interval in seconds."""

    bands: Mapping[str, npt.NDArray[Any]]
    unit: str
    start_s: int
    end_s: int


def write_cogs(folder: Path, content: Content) -> list[Path]:
    """Write a forecast as GeoTIFFs: the rain rate of each lead time, and the sum of each hour; each appears whole.

    A forecast shorter than an hour gets the sum of what it has. A sum is missing where any of its rates is. Of an
    ensemble these are of the mean, and beside each stands a file of probabilities, a band a threshold, within the
    smallest radius: a band of every radius would take half a minute.

    Args:
        folder: Of the files; made if need be. Their names carry the time of the last radar frame and the lead time.
        content: The forecast.

    Returns:
        The files: lead times, then sums.

    Raises:
        ConfigError: rasterio is not installed.
        DataError: The projection is not known, or a file cannot be written.
    """
    require_rasterio()
    storage = open_storage(folder)
    about = _provenance_tags(content)

    names = []
    for name, raster in _rasters(content):
        tags = {**about, **_time_tags(content.reference_time_s, raster.start_s, raster.end_s)}
        storage.write(f"{name}.tif", _cog(raster.bands, raster.unit, tags, content.grid))
        names.append(f"{name}.tif")
    return [folder / name for name in names]


def _rasters(content: Content) -> Iterator[tuple[str, _Raster]]:
    """Give the name and the content of each file, one after the other: a lead's probabilities are many fields."""
    ensemble = content.ensemble

    # Rates: means over the interval that ends at the valid time.
    for lead, rain_mmh_hw in enumerate(content.rain_mmh_thw):
        times = {"start_s": lead * content.cadence_s, "end_s": (lead + 1) * content.cadence_s}
        name = content.name_of(times["end_s"])
        yield name, _Raster(bands={"rainfall_rate": rain_mmh_hw}, unit="mm h-1", **times)
        if ensemble is not None:
            radius_km = ensemble.options.radii_km[0]
            bands = {
                _band("rainfall_rate", threshold_mmh, "mm h-1", radius_km): ensemble.exceeding.probability(at, 0, lead)
                for at, threshold_mmh in enumerate(ensemble.options.thresholds_mmh)
            }
            yield f"{name}_probability", _Raster(bands=bands, unit="1", **times)

    # Sums over whole hours.
    for number, hour in enumerate(content.hours):
        sum_mm_hw = content.rain_mmh_thw[hour].sum(axis=0, dtype=np.float64) * (content.cadence_s / HOUR_S)
        times = {"start_s": hour.start * content.cadence_s, "end_s": hour.stop * content.cadence_s}
        name = f"{content.name_of(times['end_s'])}_sum_{(times['end_s'] - times['start_s']) // 60:03d}min"
        yield name, _Raster(bands={"rainfall_amount": sum_mm_hw}, unit="mm", **times)
        if ensemble is not None:
            bands = {
                _band("rainfall_amount", threshold_mm, "mm"): ensemble.sums_exceeding.probability(at, number)
                for at, threshold_mm in enumerate(ensemble.options.sum_thresholds_mm)
            }
            yield f"{name}_probability", _Raster(bands=bands, unit="1", **times)


def _band(quantity: str, threshold: float, unit: str, radius_km: float = 0) -> str:
    """Describe a band of probabilities."""
    nearby = f" within {radius_km:g} km" if radius_km else ""
    return f"probability of {quantity} above {threshold:g} {unit}{nearby}"


def _provenance_tags(content: Content) -> dict[str, str]:
    """Give the tags that all files share; the first ones are TIFF's own, which every viewer shows."""
    provenance = content.provenance
    return {
        "TIFFTAG_SOFTWARE": provenance.model,
        "TIFFTAG_COPYRIGHT": provenance.licence,
        "TIFFTAG_IMAGEDESCRIPTION": "Precipitation nowcast",
        "source": provenance.source,
        "licence": provenance.licence,
        "history": provenance.history,
        "institution": provenance.institution,
        "comment": content.comment,
        "reference_time": iso_time(content.reference_time_s),
    }


def _time_tags(reference_time_s: int, start_s: int, end_s: int) -> dict[str, str]:
    valid_time = datetime.fromtimestamp(reference_time_s + end_s, UTC)
    return {
        # As TIFF 6.0 writes times.
        "TIFFTAG_DATETIME": valid_time.strftime("%Y:%m:%d %H:%M:%S"),
        "start_time": iso_time(reference_time_s + start_s),
        "valid_time": iso_time(reference_time_s + end_s),
        "lead_minutes": f"{end_s / 60:g}",
    }


def _cog(bands: Mapping[str, npt.NDArray[Any]], unit: str, tags: Mapping[str, str], grid: Grid) -> bytes:
    """Give fields as the bytes of a Cloud Optimized GeoTIFF, a band each."""
    rasterio = require_rasterio()
    pixel_m = 1000 * grid.pixel_km
    try:
        profile = {
            "driver": "GTiff",
            "dtype": "float32",
            "count": len(bands),
            "height": grid.rows,
            "width": grid.cols,
            "nodata": float("nan"),
            "crs": rasterio.crs.CRS.from_wkt(parse_projection(grid.projection).to_wkt()),
            "transform": rasterio.Affine(pixel_m, 0, 1000 * grid.x0_km, 0, -pixel_m, 1000 * grid.y0_km),
        }

        # GDAL makes the optimized file of a whole plain one: both in memory.
        with rasterio.io.MemoryFile(ext=".tif") as plain, rasterio.io.MemoryFile(ext=".tif") as optimized:
            with plain.open(**profile) as file:
                for number, (description, values_hw) in enumerate(bands.items(), start=1):
                    file.write(np.where(np.isfinite(values_hw), values_hw, np.nan).astype(np.float32), number)
                    file.set_band_description(number, description)
                file.units = (unit,) * len(bands)
                file.update_tags(**tags)
            rasterio.shutil.copy(plain.name, optimized.name, driver="COG", **LAYOUT)
            return bytes(optimized.getbuffer())
    except rasterio.errors.RasterioError as error:
        raise DataError(
            f"projection {grid.projection!r:.200} cannot be written as GeoTIFF: {error}; leave cog out of --products"
        ) from error
