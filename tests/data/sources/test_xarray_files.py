"""The given GRIB2, GeoTIFF, RADOLAN and NetCDF files: every pixel as an independent reading has it."""

import gzip
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyproj
import pytest

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop
from rainspark.data.pack.__main__ import main
from rainspark.data.sources.foreign.xarray_source import XarraySource
from rainspark.data.sources.source import Header
from rainspark.data.units import ZR

pytest.importorskip("rioxarray", reason="rioxarray (extra formats) is not installed")
pytest.importorskip("wradlib", reason="wradlib (extra formats) is not installed")
import rasterio

FINLAND = ZR(a=223, b=1.53)


def read(source: XarraySource, path: Path) -> tuple[Header, npt.NDArray[np.uint16]]:
    """Read a file's only frame, whole."""
    (ref,) = source.scan([path]).refs
    surveyed = source.survey(ref)
    grid = surveyed.header.grid
    reading = source.read(ref, Crop(row0=0, row1=grid.rows, col0=0, col1=grid.cols))
    assert reading.sha256 == surveyed.sha256
    assert reading.rounding.discarded is None
    return surveyed.header, reading.counts


def check(counts_hw: npt.NDArray[np.uint16], expected_mmh: npt.NDArray[Any]) -> None:
    """Compare counts with rates, NaN missing: to half a count, and what a 32-bit float may be off."""
    np.testing.assert_array_equal(counts_hw == 65535, np.isnan(expected_mmh))
    seen = counts_hw != 65535
    np.testing.assert_allclose(counts_hw[seen] * 0.01, np.minimum(expected_mmh[seen], 655.34), atol=0.00501, rtol=2e-7)


def radolan(path: Path) -> tuple[str, int, npt.NDArray[np.float64]]:
    """Read a RADOLAN composite by hand: product, end time, and mm or dBZ (rows, cols), north up, NaN missing."""
    data = gzip.decompress(path.read_bytes())
    header, _, values = data.partition(b"\x03")
    day, time, month, year = header[2:4], header[4:8], header[13:15], header[15:17]
    end = datetime.strptime((year + month + day + time).decode(), "%y%m%d%H%M").replace(tzinfo=UTC)
    rows, cols = (int(size) for size in header[header.index(b"GP") + 2 :][:9].split(b"x"))
    if header[:2] == b"RX":
        raw = np.frombuffer(values, np.uint8).reshape(rows, cols)
        numbers = np.where(raw >= 249, np.nan, raw / 2.0 - 32.5)
    else:
        raw = np.frombuffer(values, "<u2").reshape(rows, cols)
        precision = 10.0 ** int(header[header.index(b"PR E") + 4 :][:3])
        # No data, and clutter: neither was measured.
        numbers = np.where(raw & 0xA000, np.nan, (raw & 0xFFF) * precision)
    return header[:2].decode(), int(end.timestamp()), numbers[::-1]


@pytest.mark.parametrize(
    ("folder", "names", "period_s", "corner"),
    [
        ("data/radolan/radolan_rw", "*-1811220050-*", 3600, (3.5889, 46.9526)),
        ("data/radolan/radolan_ry", "*-2001011525-*", 300, (3.5889, 46.9526)),
        ("data/radolan/radolan_yw", "*-1708160100-*", 300, None),
        ("cases/radolan", "*-rx_*", 0, (3.5889, 46.9526)),
        ("cases/radolan", "*-ry_*", 300, (3.5889, 46.9526)),
    ],
)
def test_radolan(shared_dir: Path, folder: str, names: str, period_s: int, corner: tuple[float, float] | None) -> None:
    (path,) = (shared_dir / folder).glob(names)
    product, end_time_s, numbers = radolan(path)
    zr = ZR(a=256, b=1.42) if product == "RX" else None
    header, counts = read(XarraySource(variable=product, zr=zr), path)
    assert (header.end_time_s, header.period_s) == (end_time_s, period_s)
    expected_mmh = (10 ** (numbers / 10) / 256) ** (1 / 1.42) if zr else numbers * (3600 / period_s)
    check(counts, expected_mmh)
    grid = header.grid
    assert (counts.shape, grid.pixel_km) == (numbers.shape, 1.0)
    if corner is not None:
        # DWD's own lower left corner of the national composite.
        lower_m = 1000 * (grid.y0_km - grid.rows * grid.pixel_km)
        lon, lat = pyproj.Proj(grid.projection)(1000 * grid.x0_km, lower_m, inverse=True)
        assert (lon, lat) == pytest.approx(corner, abs=2e-4)


def test_radolan_is_packed_by_the_command(shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["xarray", str(shared_dir / "data/radolan"), "--engine", "radolan", "--variable", "RY", "--window", "2"]
    assert main([*command, "--crop", "400:432,400:432", "--out", str(tmp_path / "out")]) == 0
    written = capsys.readouterr()
    assert "frames        13 every 5 min, 2020-01-01T15:00:00Z to 2020-01-01T16:00:00Z" in written.out
    assert "it has no variable RY; its variables: RW (y, x)" in written.err
    # An hour's sums every five minutes are refused.
    command = ["xarray", str(shared_dir / "data/radolan/radolan_rw"), "--variable", "RW", "--window", "2"]
    assert main([*command, "--cadence-min", "30", "--out", str(tmp_path / "no")]) == 4
    (path,) = (shared_dir / "cases/radolan").glob("*-rx_*")
    with pytest.raises(DataError, match="which the engine cfgrib does not read; leave --engine away"):
        XarraySource(variable="RX", engine="cfgrib").scan([path])


def test_tags_of_a_geotiff_state_unit_and_codes(tmp_path: Path) -> None:
    path = tmp_path / "x_202401010005.tif"
    raw_hw = np.array([[255, 0, 110], [110, 84, 84]], np.uint8)
    profile: dict[str, Any] = {"driver": "GTiff", "height": 2, "width": 3, "count": 1, "dtype": "uint8"}
    transform = rasterio.transform.from_origin(500_000, 7_000_000, 1000, 1000)

    def write(items: str, **tags: str) -> XarraySource:
        path.unlink(missing_ok=True)
        with rasterio.open(path, "w", crs="EPSG:3067", transform=transform, **profile) as file:
            file.write(raw_hw, 1)
            file.update_tags(**({"GDAL_METADATA": f"<GDALMetadata>{items}</GDALMetadata>"} if items else {}), **tags)
        return XarraySource(variable="band_data", zr=ZR(a=200, b=1.6))

    items = '<Item name="Quantity" unit="dBZ">Z</Item><Item name="Gain">0.5</Item><Item name="Offset">-32</Item>'
    codes = '<Item name="Nodata">255</Item><Item name="Undetect">0</Item>'
    time = '<Item name="Observation time" format="YYYYMMDDhhmm">202401010010</Item>'
    header, counts = read(write(items + codes + time), path)
    # 23 dBZ is 1 mm/h by Marshall and Palmer, 10 dBZ 0.15.
    assert counts.tolist() == [[65535, 0, 100], [100, 15, 15]]
    assert (header.end_time_s, header.period_s) == (1_704_067_800, 0)
    assert (header.grid.x0_km, header.grid.y0_km, header.grid.pixel_km) == (500.0, 7000.0, 1.0)
    with pytest.raises(DataError, match=r"states no time of its own; .*--time-pattern"):
        read(write(items + codes), path)
    with pytest.raises(DataError, match="its tag gain is much; expected a number"):
        read(write(items.replace("0.5", "much") + time), path)
    with pytest.raises(DataError, match="a tag states the time noon"):
        read(write(items + time.replace("202401010010", "noon")), path)
    with pytest.raises(DataError, match="its units are None"):
        read(write(""), path)


@pytest.mark.slow
def test_geotiff(shared_dir: Path) -> None:
    path = shared_dir / "data/geotiff/201609281445_FINUTM.tif"
    header, counts = read(XarraySource(variable="band_data", zr=FINLAND), path)
    with rasterio.open(path) as file:
        raw_hw, transform, crs = file.read(1), file.transform, pyproj.CRS.from_wkt(file.crs.to_wkt())
    # Its tags: gain 0.5, offset -32, 255 missing, 0 without an echo.
    rain_hw = (10 ** ((raw_hw * 0.5 - 32) / 10) / 223) ** (1 / 1.53)
    check(counts, np.where(raw_hw == 255, np.nan, np.where(raw_hw == 0, 0.0, rain_hw)))
    assert (header.end_time_s, header.period_s) == (int(datetime(2016, 9, 28, 14, 45, tzinfo=UTC).timestamp()), 0)
    grid = header.grid
    assert (1000 * grid.x0_km, 1000 * grid.y0_km) == pytest.approx((transform.c, transform.f), abs=0.6)
    assert grid.pixel_km == pytest.approx(transform.a / 1000, abs=1e-6)
    ours = pyproj.Transformer.from_crs(pyproj.CRS.from_user_input(grid.projection), crs, always_xy=True)
    assert ours.transform(transform.c, transform.f) == pytest.approx((transform.c, transform.f), abs=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        XarraySource(variable="band_data"),
        XarraySource(variable="unknown", engine="cfgrib", units="mm/h"),
    ],
)
def test_grib(shared_dir: Path, source: XarraySource) -> None:
    path = shared_dir / "data/mrms/PrecipRate_00.00_20190610-000200.grib2"
    if source.engine == "cfgrib":
        pytest.importorskip("cfgrib", reason="cfgrib (extra formats) is not installed")
    header, counts = read(source, path)
    with rasterio.open(path) as file:
        raw_hw, transform = file.read(1), file.transform
    check(counts, np.where(raw_hw < 0, np.nan, raw_hw))
    assert (header.end_time_s, header.period_s) == (int(datetime(2019, 6, 10, 0, 2, tzinfo=UTC).timestamp()), 0)
    grid = header.grid
    lon, lat = pyproj.Proj(grid.projection)(1000 * grid.x0_km, 1000 * grid.y0_km, inverse=True)
    assert (lon, lat) == pytest.approx((transform.c, transform.f), abs=2e-5)
    assert grid.pixel_km == pytest.approx(6371 * np.radians(0.01), abs=1e-6)


@pytest.mark.parametrize(
    ("folder", "cadence_min", "corner"), [("data/bom", 6, 128.25), ("cases/bom_negative_code", 10, 16)]
)
def test_netcdf(shared_dir: Path, folder: str, cadence_min: int, corner: float) -> None:
    source = XarraySource(variable="precipitation")
    paths = sorted((shared_dir / folder).glob("*.nc"))
    codes = 0
    for path in paths[: 5 if "data" in folder else None]:
        (ref,) = source.scan([path]).refs
        header = source.survey(ref).header
        grid = header.grid
        reading = source.read(ref, Crop(row0=0, row1=grid.rows, col0=0, col1=grid.cols))
        with h5py.File(path) as file:
            raw_hw, time_s = file["precipitation"][:], int(file["valid_time"][()])
        codes += reading.rounding.discarded or 0
        assert (header.end_time_s, header.period_s) == (time_s, 60 * cadence_min)
        check(reading.counts, np.where(raw_hw < 0, np.nan, raw_hw * 0.05 * 60 / cadence_min))
        assert (grid.pixel_km, grid.y0_km) == (0.5, corner)
    assert codes == (1 if "negative" in folder else 0)
