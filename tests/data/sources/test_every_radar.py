"""Every real data set, packed by its command line and compared with a second reading that shares no code with ours.

The second readings stand here in full: values, missing pixels, times and corners come from h5py, netCDF4, PIL or bytes,
and from what the producers publish of their formats.
"""

import gzip
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import eccodes
import h5py
import netCDF4
import numpy as np
import numpy.typing as npt
import pyproj
import pytest
import rasterio
import rasterio.windows
from PIL import Image

from rainspark.data.pack.__main__ import main
from rainspark.data.shards.decode import decode_frame, read_sequence
from rainspark.data.shards.index import Index, load_index
from rainspark.data.store.storage import open_storage

Corners = dict[str, tuple[float, float]]
Part = tuple[slice, slice]
OFF_M = 100.0
FEW = 6
KNMI_SCALE_MMH, SCALE_MMH = 0.12, 0.01
LARGEST_MMH = 655.34


@dataclass(frozen=True, kw_only=True)
class SecondReading:
    """What a file holds, read plainly.

    Attributes:
        time_s: End of the frame, epoch seconds UTC.
        shape: Rows and columns of the whole field.
        rain_mmh: float64, the part that was asked for, row 0 in the north; NaN where no radar measured.
        corners: (longitude, latitude) or, with `in_crs`, (x, y) in metres of outer corners by their names: UL, LR, ...
        in_crs: The coordinates of the corners, where they are not degrees of the sphere or ellipsoid of the grid; what
            CF states of them, or a text.
    """

    time_s: int
    shape: tuple[int, ...]
    rain_mmh: npt.NDArray[np.float64]
    corners: Corners
    in_crs: dict[str, Any] | str | None = None


def epoch_s(text: str, form: str) -> int:
    return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp())


def rain_of_dbz(dbz: npt.NDArray[Any], a: float, b: float) -> npt.NDArray[np.float64]:
    """Z = a R^b, with Z = 10^(dBZ / 10)."""
    rain: npt.NDArray[np.float64] = (10 ** (np.asarray(dbz, np.float64) / 10) / a) ** (1 / b)
    return rain


def read_knmi(path: Path, part: Part) -> SecondReading:
    """KNMI HDF5 3.5: hundredths of a millimetre in five minutes, 65535 outside."""
    with h5py.File(path) as file:
        codes = file["image1/image_data"][part].astype(np.float64)
        shape = file["image1/image_data"].shape
        numbers = file["geographic"].attrs["geo_product_corners"].astype(float)
        time_text = np.asarray(file["overview"].attrs["product_datetime_end"]).item().decode()
    assert time_text[12:].startswith(f"{path.stem[-4:-2]}:{path.stem[-2:]}")
    return SecondReading(
        time_s=epoch_s(path.stem[-12:], "%Y%m%d%H%M"),
        shape=shape,
        rain_mmh=np.where(codes == 65535, np.nan, codes * 0.01 * 12),
        corners=named_corners(numbers),
    )


def read_knmi_reflectivity(path: Path, part: Part) -> SecondReading:
    """KNMI HDF5 3.6: dBZ = 0.5 code - 32, 0 no echo, 255 outside; rain by Z = 200 R^1.6."""
    with h5py.File(path) as file:
        codes = file["image1/image_data"][part].astype(np.float64)
        shape = file["image1/image_data"].shape
        numbers = file["geographic"].attrs["geo_product_corners"].astype(float)
    rain_mmh = np.where(codes == 0, 0, rain_of_dbz(0.5 * codes - 32, 200, 1.6))
    return SecondReading(
        time_s=epoch_s(path.stem[-12:], "%Y%m%d%H%M"),
        shape=shape,
        rain_mmh=np.where(codes == 255, np.nan, rain_mmh),
        corners=named_corners(numbers),
    )


def named_corners(numbers: Sequence[float]) -> Corners:
    """KNMI states lower left, upper left, upper right, lower right, each as longitude and latitude."""
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return dict(zip(("LL", "UL", "UR", "LR"), pairs, strict=True))


def read_odim(path: Path, part: Part) -> SecondReading:
    """ODIM_H5: value = offset + gain code; nodata is missing, undetect is dry; what is not stated is 1, 0, NaN, 0."""
    with h5py.File(path) as file:
        groups = [name for name in ("dataset1/what", "dataset1/data1/what") if name in file]
        what = {name: value for group in groups for name, value in file[group].attrs.items()}
        codes = file["dataset1/data1/data"][part].astype(np.float64)
        shape = file["dataset1/data1/data"].shape
        where = {name: float(value) for name, value in file["where"].attrs.items() if name[2:] in ("_lon", "_lat")}
        time_text = (file["what"].attrs["date"] + file["what"].attrs["time"]).decode()

    values = float(what.get("offset", 0)) + float(what.get("gain", 1)) * codes
    rain_mmh = rain_of_dbz(values, 200, 1.6) if what["quantity"] == b"DBZH" else values
    rain_mmh = np.where(codes == float(what.get("undetect", 0)), 0, rain_mmh)
    return SecondReading(
        time_s=epoch_s(time_text, "%Y%m%d%H%M%S"),
        shape=shape,
        rain_mmh=np.where((codes == float(what.get("nodata", np.nan))) | np.isnan(codes), np.nan, rain_mmh),
        corners={name: (where[f"{name}_lon"], where[f"{name}_lat"]) for name in ("LL", "UL", "UR", "LR")},
    )


def read_fmi(path: Path, part: Part) -> SecondReading:
    """FMI's PGM: dBZ = (code - 64) / 2, 255 missing; rain by Z = 223 R^1.53; corners stand in the comments."""
    data = gzip.decompress(path.read_bytes())
    header = re.match(rb"P5\s(?:#.*\n)*(\d+) (\d+)\n(?:#.*\n)*255\n", data)
    assert header is not None
    cols, rows = map(int, header.groups())
    codes = np.frombuffer(data, np.uint8, rows * cols, header.end()).reshape(rows, cols)[part].astype(np.float64)

    stated = {
        name: tuple(map(float, numbers.split()))
        for name, numbers in re.findall(r"# (bottomleft|topright) ([\d. ]+)\n", header.group().decode())
    }
    (time_text,) = re.findall(r"# obstime (\d{12})\n", header.group().decode())
    return SecondReading(
        time_s=epoch_s(time_text, "%Y%m%d%H%M"),
        shape=(rows, cols),
        rain_mmh=np.where(codes == 255, np.nan, rain_of_dbz((codes - 64) / 2, 223, 1.53)),
        corners={"LL": stated["bottomleft"], "UR": stated["topright"]},  # type: ignore[dict-item]
    )


def read_mch(path: Path, part: Part) -> SecondReading:
    """MeteoSwiss AQC: mm in five minutes by code, 0 and 1 dry, 255 missing; 1 km on the Swiss grid LV03."""
    codes = np.array(Image.open(path))
    code = codes[part].astype(np.float64)
    # (10^((code - 71.5) / 20) / 316)^(1 / 1.5): the scale of the product's colour table.
    amount_mm = np.where(code < 2, 0, (10 ** ((code - 71.5) / 20) / 316) ** (1 / 1.5))
    return SecondReading(
        time_s=epoch_s(path.name[3:12], "%y%j%H%M"),
        shape=codes.shape,
        rain_mmh=np.where(code == 255, np.nan, amount_mm * 12),
        corners={"UL": (255_000, 480_000), "LR": (965_000, -160_000)},
        in_crs="EPSG:21781",
    )


def read_bom(path: Path, part: Part) -> SecondReading:
    """BoM Rainfields 3: kg m-2 in six minutes; x and y are centres of pixels in km, y falls."""
    with netCDF4.Dataset(path) as file:
        amount_mm = np.ma.filled(file["precipitation"][part].astype(np.float64), np.nan)
        shape = file["precipitation"].shape
        seconds = int(file["valid_time"][...]) - int(file["start_time"][...])
        time_s = int(file["valid_time"][...])
        x, y = (1000 * np.asarray(file[name][:], np.float64) for name in ("x", "y"))
        mapping = {name: file["proj"].getncattr(name) for name in file["proj"].ncattrs()}
    assert seconds == 360
    half_m = (x[1] - x[0]) / 2
    return SecondReading(
        time_s=time_s,
        shape=shape,
        rain_mmh=amount_mm * 10,
        corners={"UL": (x[0] - half_m, y[0] + half_m), "LR": (x[-1] + half_m, y[-1] - half_m)},
        in_crs=mapping,
    )


def read_geotiff(path: Path, part: Part) -> SecondReading:
    """FMI's GeoTIFF: what codes mean stands in one of GDAL's tags; rain by Z = 223 R^1.53."""
    with rasterio.open(path) as file:
        codes = file.read(1, window=rasterio.windows.Window.from_slices(*part)).astype(np.float64)
        stated = dict(re.findall(r'<Item name="(\w[\w ]*)"[^>]*>([^<]*)</Item>', file.tags()["GDAL_METADATA"]))
        shape, transform, crs = file.shape, file.transform, file.crs.to_wkt()
    dbz = float(stated["Gain"]) * codes + float(stated["Offset"])
    rain_mmh = np.where(codes == float(stated["Undetect"]), 0, rain_of_dbz(dbz, 223, 1.53))
    return SecondReading(
        time_s=epoch_s(stated["Observation time"], "%Y%m%d%H%M"),
        shape=shape,
        rain_mmh=np.where(codes == float(stated["Nodata"]), np.nan, rain_mmh),
        corners={
            "UL": (transform.c, transform.f),
            "LR": (transform.c + shape[1] * transform.a, transform.f + shape[0] * transform.e),
        },
        in_crs=crs,
    )


def read_mrms(path: Path, part: Part) -> SecondReading:
    """MRMS GRIB2: mm/h from the north to the south, negative where there is no coverage, on whole hundredths."""
    with path.open("rb") as file:
        message = eccodes.codes_grib_new_from_file(file)
    ends = [f"{axis}Of{end}GridPointInDegrees" for axis in ("latitude", "longitude") for end in ("First", "Last")]
    names = ["Ni", "Nj", "dataDate", "dataTime", "iDirectionIncrementInDegrees", "jScansPositively", *ends]
    get = {name: eccodes.codes_get(message, name) for name in names}
    values = eccodes.codes_get_values(message).reshape(get["Nj"], get["Ni"])
    eccodes.codes_release(message)
    assert get["jScansPositively"] == 0

    half = get["iDirectionIncrementInDegrees"] / 2
    west, east = get["longitudeOfFirstGridPointInDegrees"], get["longitudeOfLastGridPointInDegrees"]
    north, south = get["latitudeOfFirstGridPointInDegrees"], get["latitudeOfLastGridPointInDegrees"]
    # The seconds of the name are those of the analysis; the message has minutes.
    return SecondReading(
        time_s=epoch_s(f"{get['dataDate']}{get['dataTime']:04d}", "%Y%m%d%H%M"),
        shape=values.shape,
        rain_mmh=np.where(values[part] < 0, np.nan, values[part]),
        corners={"UL": (west - half - 360, north + half), "LR": (east + half - 360, south - half)},
    )


def read_radolan(path: Path, part: Part) -> SecondReading:
    """RADOLAN: a line of text up to byte 3, then uint16, the southernmost row first.

    Bit 13 marks what nothing measured, bit 15 clutter.
    The sphere has 6370.04 km; the point 9 E, 51 N lies 450 km from the west and the south of the national grid, and
    370 and 550 km of the extended one (DWD, composite formats of RADOLAN, RADVOR and RADKLIM).
    """
    data = gzip.decompress(path.read_bytes())
    header, _, body = data.partition(b"\x03")
    text = header.decode("latin-1")
    ((precision, minutes, rows, cols),) = re.findall(r"PR E([+-]\d+)INT\s*(\d+).*?GP\s*(\d+)x\s*(\d+)", text)
    shape = int(rows), int(cols)
    codes = np.frombuffer(body, "<u2", shape[0] * shape[1]).reshape(shape)[::-1][part]
    amount_mm = (codes & 0xFFF) * 10.0 ** int(precision)

    # Of the polar stereographic projection at 60 N, 10 E.
    west_km, south_km = (450, 450) if shape == (900, 900) else (370, 550)
    radius_km = 6370.04 * (1 + np.sin(np.radians(60))) / (1 + np.sin(np.radians(51))) * np.cos(np.radians(51))
    x_m = 1000 * (radius_km * np.sin(np.radians(9 - 10)) - west_km)
    y_m = 1000 * (-radius_km * np.cos(np.radians(9 - 10)) - south_km)
    return SecondReading(
        time_s=epoch_s(re.findall(r"-(\d{10})-dwd", path.name)[0], "%y%m%d%H%M"),
        shape=shape,
        rain_mmh=np.where(codes & 0xA000, np.nan, amount_mm * 60 / int(minutes)),
        corners={"LL": (x_m, y_m), "UR": (x_m + 1000 * shape[1], y_m + 1000 * shape[0])},
        in_crs="+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 +R=6370040 +units=m",
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """A data set: its files below ../shared, how it is packed, and its second reading."""

    files: str
    words: str
    read: Callable[[Path, Part], SecondReading]
    crop: tuple[int, int, int, int] | None = None
    scale_mmh: float = SCALE_MMH
    is_large: bool = False

    @property
    def part(self) -> Part:
        """The rows and columns that are packed."""
        row0, row1, col0, col1 = self.crop or (None,) * 4
        return slice(row0, row1), slice(col0, col1)


FMI_NAMES = "--importer fmi_pgm --time-pattern %Y%m%d%H%M_fmi.radar.composite.lowest_FIN_SUOMI1.pgm.gz"
MCH = "importer {} --importer mch_gif --argument product=AQC --argument unit=mm --argument accutime=5"
BOM = "importer {} --importer bom_rf3 --time-pattern 2_%Y%m%d_%H%M%S.prcp-cscn.nc --cadence-min 6"
CASES = {
    "KNMI": Case(files="data/knmi/*.h5", words="knmi {}", read=read_knmi, scale_mmh=KNMI_SCALE_MMH),
    "KNMI reflectivity": Case(
        files="data/knmi_reflectivity/*.h5", words="knmi {} --zr 200,1.6", read=read_knmi_reflectivity,
        crop=(300, 396, 310, 406),
    ),
    "FMI": Case(
        files="data/fmi/*.gz", words=f"importer {{}} {FMI_NAMES} --argument gzipped=True --zr 223,1.53", read=read_fmi,
        crop=(600, 920, 200, 520),
    ),
    "MeteoSwiss": Case(
        files="data/mch/*.gif", words=f"{MCH} --time-pattern AQC%y%j%H%M?_00005.801.gif", read=read_mch,
        crop=(100, 420, 147, 563),
    ),
    "MeteoSwiss, names that vary": Case(
        files="cases/file_name_suffix_varies/*.gif", read=read_mch,
        words=f"{MCH} --time-pattern AQC%y%j%H%MF_00005.801.gif --time-pattern AQC%y%j%H%MV_00005.801.gif",
    ),
    "RMI": Case(files="data/rmi/*.hdf", words="odim {}", read=read_odim),
    "BoM": Case(files="data/bom/*.nc", words=BOM, read=read_bom),
    "OPERA 2018": Case(
        files="data/odim/T_PAAH*.hdf", words="odim {} --cadence-min 15", read=read_odim, crop=(500, 900, 500, 900)
    ),
    "OPERA 2024": Case(
        files="data/odim/T_PABV*.hdf", words="odim {} --zr 200,1.6", read=read_odim, crop=(1400, 1800, 1400, 1800)
    ),
    "BoM by xarray": Case(
        files="data/bom/*.nc", words="xarray {} --variable precipitation --cadence-min 6", read=read_bom,
        crop=(100, 292, 200, 392),
    ),
    "RADOLAN RW": Case(
        files="data/radolan/radolan_rw/*.gz", words="xarray {} --engine radolan --variable RW --cadence-min 60",
        read=read_radolan,
    ),
    "RADOLAN RY": Case(
        files="data/radolan/radolan_ry/*.gz", words="xarray {} --engine radolan --variable RY", read=read_radolan
    ),
    "RADOLAN YW": Case(
        files="data/radolan/radolan_yw/*.gz", words="xarray {} --engine radolan --variable YW", read=read_radolan
    ),
    "RADOLAN in gzip": Case(
        files="cases/radolan/raa01-ry*.gz", words="xarray {} --engine radolan --variable RY --window 1",
        read=read_radolan,
    ),
    "GeoTIFF": Case(
        files="data/geotiff/*.tif", words="xarray {} --variable band_data --zr 223,1.53", read=read_geotiff,
        crop=(3000, 3400, 2000, 2400), is_large=True,
    ),
    "MRMS by GDAL": Case(
        files="data/mrms/*.grib2", words="xarray {} --variable band_data --cadence-min 2", read=read_mrms,
        crop=(400, 800, 4400, 4800), is_large=True,
    ),
    "MRMS": Case(
        files="data/mrms/*.grib2",
        words="xarray {} --engine cfgrib --variable unknown --units mm/h --cadence-min 2", read=read_mrms,
        crop=(400, 800, 4400, 4800), is_large=True,
    ),
}  # fmt: skip


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((case, few), id=f"{name}{'' if few else ', all files'}", marks=marks)
        for name, case in CASES.items()
        for few, marks in ((True, pytest.mark.slow if case.is_large else ()), (False, pytest.mark.slow))
    ],
)
def chosen(request: pytest.FixtureRequest) -> tuple[Case, bool]:
    """A data set, and whether only the first of its files are packed."""
    return request.param


@pytest.fixture(scope="module")
def case(chosen: tuple[Case, bool]) -> Case:
    return chosen[0]


@pytest.fixture(scope="module")
def files(chosen: tuple[Case, bool], shared_dir: Path) -> list[Path]:
    case, few = chosen
    return sorted(shared_dir.glob(case.files))[: FEW if few else None]


@pytest.fixture(scope="module")
def archive(case: Case, files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pack the files, in windows of two frames."""
    out = str(tmp_path_factory.mktemp("packed") / "out")
    words = [word for name in case.words.split() for word in (map(str, files) if name == "{}" else [name])]
    crop = [] if case.crop is None else ["--crop", "{}:{},{}:{}".format(*case.crop)]
    window = [] if "--window" in words else ["--window", "2"]
    assert main([*words, *crop, *window, "--out", out]) == 0
    return out


def frames_of(url: str) -> Iterator[tuple[int, npt.NDArray[np.uint16]]]:
    """Give the time and the counts of every stored frame."""
    storage = open_storage(url)
    index = load_index(storage)
    for entry in index.sequences:
        frames = read_sequence(storage, index, entry)
        for number in range(entry.num_frames):
            counts_hw = np.empty((index.rows, index.cols), np.uint16)
            decode_frame(index, entry, frames, number, counts_hw)
            yield entry.start_s + number * index.cadence_s, counts_hw


def test_every_pixel_missing_pixel_and_time_is_that_of_a_second_reading(
    case: Case, files: list[Path], archive: str
) -> None:
    stored = dict(frames_of(archive))
    num_wet = 0
    for path in files:
        second = case.read(path, case.part)
        rain_mmh = second.rain_mmh
        counts_hw = stored.pop(second.time_s)

        missing = np.isnan(rain_mmh)
        assert np.array_equal(counts_hw == 65535, missing), path
        # Counts are the nearest ones, to the last bit of a float in ties.
        expected = np.minimum(np.where(missing, 0, rain_mmh), LARGEST_MMH if case.scale_mmh == SCALE_MMH else np.inf)
        off = np.abs(np.where(missing, 0, counts_hw) - expected / case.scale_mmh)
        assert off.max() <= 0.5 + 1e-3, path
        num_wet += int((counts_hw[~missing] > 0).sum())
    assert not stored
    assert num_wet > 0


def test_the_corners_are_those_of_a_second_reading(case: Case, files: list[Path], archive: str) -> None:
    index: Index = load_index(open_storage(archive))
    (origin,) = index.origins
    grid = origin.grid
    second = case.read(files[0], case.part)
    assert (grid.rows, grid.cols) == second.shape

    # The outer corners of the whole grid, from what the index states of it, in metres.
    x_m = {"L": 1000 * grid.x0_km, "R": 1000 * (grid.x0_km + grid.cols * grid.pixel_km)}
    y_m = {"U": 1000 * grid.y0_km, "L": 1000 * (grid.y0_km - grid.rows * grid.pixel_km)}
    # PROJ strings of KNMI's state their ellipsoid in kilometres.
    projection = re.sub(r"\+(a|b)=(6\d{3}\.\d+)", lambda m: f"+{m[1]}={float(m[2]) * 1000}", grid.projection)
    crs = pyproj.CRS(projection)
    other = crs.geodetic_crs
    if second.in_crs is not None:
        other = pyproj.CRS.from_cf(second.in_crs) if isinstance(second.in_crs, dict) else pyproj.CRS(second.in_crs)
    transformer = pyproj.Transformer.from_crs(other, crs, always_xy=True)
    for name, position in second.corners.items():
        x, y = transformer.transform(*position)
        assert abs(x - x_m[name[1]]) <= OFF_M, name
        assert abs(y - y_m[name[0]]) <= OFF_M, name
