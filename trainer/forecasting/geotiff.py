"""A forecast as Cloud Optimized GeoTIFFs, one a lead time and one a sum over an hour (extra `formats`).

Layout: OGC 21-026, Cloud Optimized GeoTIFF 1.0, as GDAL's driver "COG" writes it; band unit and tags: GDAL's GeoTIFF
driver, https://gdal.org/en/stable/drivers/raster/cog.html.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...data.errors import ConfigError, DataError
from ...data.frames import Grid, iso_time
from ...data.store.storage import open_storage
from .content import HOUR_S, Content, Provenance
from .grid import parse_projection

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


def write_cogs(folder: Path, content: Content) -> list[Path]:
    """Write a forecast as GeoTIFFs: the rain rate of each lead time, and the sum of each hour; each appears whole.

    A forecast shorter than an hour gets the sum of what it has. A sum is missing where any of its rates is.

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
    reference_time_s, cadence_s = content.reference_time_s, content.cadence_s
    about = _provenance_tags(content.provenance, reference_time_s)

    # Rates: means over the interval that ends at the valid time.
    files = {}
    for lead, rain_mmh_hw in enumerate(content.rain_mmh_thw, start=1):
        end_s = lead * cadence_s
        tags = {**about, **_time_tags(reference_time_s, end_s - cadence_s, end_s)}
        files[f"{content.name_of(end_s)}.tif"] = (rain_mmh_hw, "rainfall_rate", "mm h-1", tags)

    # Sums over whole hours.
    for hour in content.hours:
        sum_mm_hw = content.rain_mmh_thw[hour].sum(axis=0, dtype=np.float64) * (cadence_s / HOUR_S)
        start_s, end_s = hour.start * cadence_s, hour.stop * cadence_s
        tags = {**about, **_time_tags(reference_time_s, start_s, end_s)}
        name = f"{content.name_of(end_s)}_sum_{(end_s - start_s) // 60:03d}min.tif"
        files[name] = (sum_mm_hw, "rainfall_amount", "mm", tags)

    for name, (values_hw, quantity, unit, tags) in files.items():
        storage.write(name, _cog(values_hw, quantity, unit, tags, content.grid))
    return [folder / name for name in files]


def _provenance_tags(provenance: Provenance, reference_time_s: int) -> dict[str, str]:
    """Give the tags that all files share; the first ones are TIFF's own, which every viewer shows."""
    return {
        "TIFFTAG_SOFTWARE": provenance.model,
        "TIFFTAG_COPYRIGHT": provenance.licence,
        "TIFFTAG_IMAGEDESCRIPTION": "Precipitation nowcast",
        "source": provenance.source,
        "licence": provenance.licence,
        "history": provenance.history,
        "institution": provenance.institution,
        "comment": provenance.comment,
        "reference_time": iso_time(reference_time_s),
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


def _cog(values_hw: npt.NDArray[Any], quantity: str, unit: str, tags: Mapping[str, str], grid: Grid) -> bytes:
    """Give a field as the bytes of a Cloud Optimized GeoTIFF."""
    rasterio = require_rasterio()
    field_hw = np.where(np.isfinite(values_hw), values_hw, np.nan).astype(np.float32)
    pixel_m = 1000 * grid.pixel_km
    try:
        profile = {
            "driver": "GTiff",
            "dtype": "float32",
            "count": 1,
            "height": grid.rows,
            "width": grid.cols,
            "nodata": float("nan"),
            "crs": rasterio.crs.CRS.from_wkt(parse_projection(grid.projection).to_wkt()),
            "transform": rasterio.Affine(pixel_m, 0, 1000 * grid.x0_km, 0, -pixel_m, 1000 * grid.y0_km),
        }

        # GDAL makes the optimized file of a whole plain one: both in memory.
        with rasterio.io.MemoryFile(ext=".tif") as plain, rasterio.io.MemoryFile(ext=".tif") as optimized:
            with plain.open(**profile) as file:
                file.write(field_hw, 1)
                file.set_band_description(1, quantity)
                file.units = (unit,)
                file.update_tags(**tags)
            rasterio.shutil.copy(plain.name, optimized.name, driver="COG", **LAYOUT)
            return bytes(optimized.getbuffer())
    except rasterio.errors.RasterioError as error:
        raise DataError(
            f"projection {grid.projection!r:.200} cannot be written as GeoTIFF: {error}; leave cog out of --products"
        ) from error
