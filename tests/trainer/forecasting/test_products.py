"""Products on the grids of real radar files: all of them written, read back by others, and equal to each other."""

import contextlib
import io
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from pyproj import CRS, Proj, Transformer

from rainspark.data.frames import Crop, Grid
from rainspark.data.sources.foreign.xarray_source import XarraySource
from rainspark.data.sources.importer import ImporterSource
from rainspark.data.sources.knmi import KnmiSource
from rainspark.data.sources.odim import ZR, OdimSource
from rainspark.data.sources.source import Source
from rainspark.data.units import MISSING_COUNT
from rainspark.trainer.forecasting.content import Content, Provenance
from rainspark.trainer.forecasting.geotiff import write_cogs
from rainspark.trainer.forecasting.grid import in_metres
from rainspark.trainer.forecasting.map_lines import map_lines
from rainspark.trainer.forecasting.netcdf import write_forecast
from rainspark.trainer.forecasting.odim import write_odim

SOURCES: dict[str, tuple[Source, str]] = {
    "knmi": (KnmiSource(), "knmi/*.h5"),
    "meteoswiss": (
        ImporterSource(
            importer="mch_gif",
            time_patterns=("AQC%y%j%H%M?_00005.801.gif",),
            arguments={"product": "AQC", "unit": "mm", "accutime": "5"},
        ),
        "mch/*.gif",
    ),
    "fmi": (
        ImporterSource(
            importer="fmi_pgm",
            time_patterns=("%Y%m%d%H%M_fmi*.pgm.gz",),
            arguments={"gzipped": "true"},
            zr=ZR(a=223, b=1.53),
        ),
        "fmi/*.gz",
    ),
    "bom": (ImporterSource(importer="bom_rf3", time_patterns=("2_%Y%m%d_%H%M%S.prcp-cscn.nc",)), "bom/*.nc"),
    "opera": (OdimSource(quantity="RATE"), "odim/T_PAAH21*.hdf"),
    "opera_2024": (OdimSource(quantity="DBZH", zr=ZR(a=200, b=1.6)), "odim/T_PABV21*.hdf"),
    "radolan": (XarraySource(variable="RY", engine="radolan"), "radolan/radolan_ry"),
    "geotiff": (XarraySource(variable="band_data", zr=ZR(a=223, b=1.53)), "geotiff/*.tif"),
    "mrms": (XarraySource(variable="band_data", units="mm/h"), "mrms/*.grib2"),
    "rmi": (OdimSource(), "rmi/*"),
}


def _cut(shared: Path, name: str) -> tuple[Grid, int, np.ndarray]:
    """Read a frame: the middle of its grid, its time and its counts there."""
    source, pattern = SOURCES[name]
    paths = sorted((shared / "data").glob(pattern))
    if not paths:
        pytest.skip(f"no files like {pattern}")
    with contextlib.redirect_stdout(io.StringIO()):
        ref = source.scan(paths[:1]).refs[0]
        header = source.survey(ref).header
        row0, col0 = header.grid.rows // 2 - 30, header.grid.cols // 2 - 20
        crop = Crop(row0=row0, row1=row0 + 50, col0=col0, col1=col0 + 40)
        counts = source.read(ref, crop).counts
    # KNMI's counts are of 0.12 mm/h.
    scale = round(header.scale_mmh * 100)
    return header.grid.cropped(crop), header.end_time_s, np.where(counts == MISSING_COUNT, counts, counts * scale)


@pytest.mark.parametrize("name", SOURCES)
def test_every_product_gives_the_field_and_the_place_back(shared_dir: Path, tmp_path: Path, name: str) -> None:
    rasterio, pysteps_io = pytest.importorskip("rasterio"), pytest.importorskip("pysteps.io")
    pytest.importorskip("wradlib")
    grid, time_s, counts = _cut(shared_dir, name)
    rain_mmh = np.where(counts == MISSING_COUNT, np.nan, counts / 100).astype(np.float32)
    content = Content(
        rain_mmh_thw=rain_mmh[None],
        reference_time_s=time_s,
        cadence_s=300,
        grid=grid,
        provenance=Provenance(model="a model", source=name, licence="not stated", history="made"),
    )
    write_forecast(tmp_path / "forecast.nc", content)
    (composite,) = write_odim(tmp_path / "odim", content)
    geotiff = write_cogs(tmp_path / "cog", content)[0]

    # The field: by pysteps, by rasterio, and by our own reader in counts.
    field, _ = pysteps_io.import_netcdf_pysteps(str(tmp_path / "forecast.nc"), onerror="raise")
    np.testing.assert_array_equal(field, rain_mmh)
    with rasterio.open(geotiff) as file:
        np.testing.assert_array_equal(file.read(1), rain_mmh)
        geotiff_crs = CRS.from_wkt(file.crs.to_wkt())
    if not np.isnan(rain_mmh).all():
        np.testing.assert_array_equal(pysteps_io.import_odim_hdf5(str(composite), qty="RATE")[0], rain_mmh)
    source = OdimSource()
    (ref,) = source.scan([composite]).refs
    header = source.survey(ref).header
    assert header.end_time_s == time_s + 300
    np.testing.assert_array_equal(source.read(ref, Crop(row0=0, row1=50, col0=0, col1=40)).counts, counts)

    # The place: a metre from pyproj's own.
    x_m, y_m = 1000 * (grid.x0_km + np.array([0, 40, 0, 40]) * grid.pixel_km), np.repeat(1000 * grid.y0_km, 4)
    y_m[2:] -= 50_000 * grid.pixel_km
    longitude, latitude = Proj(in_metres(grid.projection))(x_m, y_m, inverse=True)
    with netCDF4.Dataset(tmp_path / "forecast.nc") as file:
        netcdf_crs = CRS.from_cf(dict(vars(file["crs"])))
    for crs in (netcdf_crs, geotiff_crs, CRS.from_proj4(header.grid.projection)):
        lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x_m, y_m)
        east_m = 111_320 * np.cos(np.radians(latitude)) * (lon - longitude)
        assert np.hypot(east_m, 111_320 * (lat - latitude)).max() < 1
    assert abs(header.grid.x0_km - grid.x0_km) < 0.001
    assert abs(header.grid.y0_km - grid.y0_km) < 0.001
    assert map_lines(grid) is not None
