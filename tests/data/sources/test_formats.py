"""Foreign formats: recognised by their first bytes, refused with the name of what reads them."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rainspark.data.errors import DataError
from rainspark.data.sources.hdf5 import ChoiceError
from rainspark.data.sources.importer import ImporterSource
from rainspark.data.sources.knmi import KnmiSource
from rainspark.data.sources.odim import OdimSource
from rainspark.data.sources.places.formats import format_of, format_of_file
from rainspark.data.sources.smaat import SmaatSource
from tests.data.radar_files import FIRST_S, odim_name, rates, write_odim_file, write_series

RADOLAN = b"RW220050100001118BY1620150VS 3SW   2.18.3PR E-01INT  60GP 900x 900MS 58<boo>\x03"


def picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(stream, kind)
    return stream.getvalue()


def archive(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as file:
            file.writestr("a", b"b")
    else:
        with tarfile.open(fileobj=stream, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("a"))
    return stream.getvalue()


FORMATS = [
    (b"CDF\x01" + bytes(40), "a NetCDF-3 file", "sub-command xarray"),
    (b"CDF\x05" + bytes(40), "a NetCDF-3 file", "sub-command xarray"),
    (b"GRIB\0\0\xd1\x02" + bytes(40), "a GRIB file", "--importer mrms_grib"),
    (b"\x01\r\r\n123\r\r\nFXXX01 EDZW 010000\r\r\nGRIB\0\0\xd1\x01", "a GRIB file", "xarray --engine rasterio"),
    (picture("TIFF"), "a TIFF file", "xarray --engine rasterio"),
    (b"MM\0*" + bytes(20), "a TIFF file", "rasterio"),
    (b"II+\0" + bytes(20), "a TIFF file", "rasterio"),
    (picture("GIF"), "a GIF picture", "--importer mch_gif"),
    (picture("PPM"), "a PGM picture", "--importer fmi_pgm"),
    (picture("PNG"), "a PNG picture", "fetch the data"),
    (RADOLAN, "a RADOLAN composite", "xarray --engine radolan"),
    (b"BUFR\0\x01\0\x04" + bytes(40), "a BUFR message", "make ODIM_H5 of it"),
    (b"AR2V0006.123" + bytes(40), "a NEXRAD volume", "make a composite"),
    (gzip.compress(RADOLAN * 9, mtime=0), "a RADOLAN composite, gzip-compressed", "xarray --engine radolan .*gunzip"),
    (gzip.compress(b"nothing known", mtime=0), "gzip-compressed", "gunzip"),
    (b"BZh91AY&SY" + bytes(9), "bzip2-compressed", "bunzip2"),
    (b"\xfd7zXZ\0" + bytes(9), "xz-compressed", "unxz"),
    (archive("zip"), "a zip", r"ending \.zip"),
    (archive("tar"), "a tar", r"ending \.tar"),
]


@pytest.mark.parametrize("source", [OdimSource(), KnmiSource(), SmaatSource()])
@pytest.mark.parametrize(("content", "name", "advice"), FORMATS)
def test_every_source_names_a_foreign_format(
    tmp_path: Path, source: OdimSource | KnmiSource | SmaatSource, content: bytes, name: str, advice: str
) -> None:
    path = tmp_path / "RAD_NL25_RAP_5min_201008260005.h5"
    path.write_bytes(content)
    with pytest.raises(ChoiceError, match=f"{path}: it is {name}, not .*{advice}"):
        source.scan([path])


@pytest.mark.parametrize("ending", ["tar", "zip"])
def test_an_archive_of_another_format_is_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"day.{ending}"
    path.write_bytes(gzip.compress(archive("tar")))
    with pytest.raises(DataError, match=rf"{path} could not be read .*\.{ending}.: it is a tar, gzip-compressed"):
        KnmiSource().scan([path])


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>", b"\n<?xml version='1.0'?><Error>", b"<HTML>"])
def test_an_error_page_is_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / odim_name(FIRST_S)
    path.write_bytes(content)
    source = OdimSource()
    with pytest.raises(DataError, match=r"it is a web page or a server's error, .*fetch the file again") as caught:
        source.survey(source.scan([path]).refs[0])
    # Damaged files may be left out; foreign ones mean that the command is wrong.
    assert not isinstance(caught.value, ChoiceError)


def test_what_is_not_known_is_not_named(tmp_path: Path) -> None:
    for content in (b"", b"\0" * 600, b"P", b"RW22", b"BUF", b"ustar", b"GIF8", bytes(range(256)) * 9):
        assert format_of(content) is None
    assert format_of_file(tmp_path / "absent") is None


def test_foreign_files_of_a_folder_are_counted(tmp_path: Path) -> None:
    for number in range(2):
        write_odim_file(tmp_path / odim_name(FIRST_S + 300 * number), rates(1, 8, 8), FIRST_S + 300 * number)
    (tmp_path / "composite_20191231235000.hdf").write_bytes(b"CDF\x02" + bytes(60))
    found = OdimSource().scan([tmp_path])
    assert len(found.refs) == 2
    assert found.notes[0].startswith("1 file holds another format (a NetCDF-3 file) and is not read, such as ")


def test_a_folder_of_another_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.grib2").write_bytes(b"GRIB\0\0\xd1\x02" + bytes(40))
    with pytest.raises(DataError, match=r"no radar files in .*1 file with other endings.*a\.grib2, a GRIB file"):
        OdimSource().scan([tmp_path])


def test_netcdf_4_is_no_odim(tmp_path: Path) -> None:
    netcdf4 = pytest.importorskip("netCDF4")
    path = tmp_path / "RAD_NL25_RAP_5min_201008260005.h5"
    with netcdf4.Dataset(path, "w") as file:
        file.createDimension("x", 3)
        file.Conventions = "CF-1.7"
    for source in (OdimSource(), KnmiSource()):
        with pytest.raises(ChoiceError, match=r"it is a NetCDF-4 file, not .*sub-command xarray"):
            source.scan([path])
    # Their own files are HDF5 as well, and read.
    assert KnmiSource().scan(write_series(tmp_path / "knmi", [1])).refs


def test_importers_name_a_foreign_format(tmp_path: Path) -> None:
    pytest.importorskip("pysteps")
    path = tmp_path / "202001010000.gif"
    path.write_bytes(RADOLAN)
    arguments = {"product": "AQC", "unit": "mm", "accutime": "5"}
    source = ImporterSource(importer="mch_gif", time_patterns=("%Y%m%d%H%M.gif",), arguments=arguments)
    with pytest.raises(DataError, match=r"importer mch_gif failed.*it is a RADOLAN composite: .*--engine radolan"):
        source.survey(source.scan([path]).refs[0])


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ("data/fmi/*.gz", "a PGM picture, gzip-compressed"),
        ("data/geotiff/*.tif*", "a TIFF file"),
        ("data/mch/*.gif", "a GIF picture"),
        ("data/mrms/*.grib2", "a GRIB file"),
        ("data/radolan/*/*.gz", "a RADOLAN composite, gzip-compressed"),
        ("cases/radolan/*.gz", "a RADOLAN composite, gzip-compressed"),
        ("data/bom/*.nc", "an HDF5 file"),
        ("data/odim/*.hdf", "an HDF5 file"),
    ],
)
def test_real_files_are_recognised(shared_dir: Path, files: str, name: str) -> None:
    names = {getattr(format_of_file(path), "name", None) for path in shared_dir.glob(files)}
    assert names == {name}
