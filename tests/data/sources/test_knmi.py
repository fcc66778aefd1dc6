"""KNMI files: real ones read as h5py reads them; every broken one refused by name before anything is allocated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop
from rainspark.data.sources.knmi_writer import file_name, write_knmi_file
from tests.data.knmi_frames import read, scan
from tests.data.radar_files import (
    change,
    drop_attribute,
    random_counts,
    read_header,
    replace_by_link,
    replace_by_virtual,
    replace_image,
    set_attribute,
    write_series,
)

TIME_S = 1_282_780_800


@pytest.fixture
def radar_file(tmp_path: Path) -> Path:
    """Make one good file of 6 x 5 pixels."""
    path = tmp_path / file_name(TIME_S)
    write_knmi_file(path, random_counts(5, 6, 5), TIME_S)
    return path


def test_real_files_read_as_they_are(shared_dir: Path) -> None:
    refs = scan([shared_dir / "data" / "knmi"])
    assert len(refs) == 62
    assert refs[0].end_time_s == TIME_S
    frame = read(refs[5].path)
    with h5py.File(refs[5].path) as file:
        raw = file["image1/image_data"][()]
    np.testing.assert_array_equal(frame.counts, raw)
    assert frame.end_time_s == TIME_S + 5 * 300
    assert frame.scale_mmh == 0.12
    assert frame.licence == "CC BY 4.0, KNMI"
    assert (frame.grid.x0_km, frame.grid.y0_km, frame.grid.pixel_km) == (0.0, -3650.0, 1.0)
    crop = Crop(row0=284, row1=572, col0=225, col1=513)
    part = read(refs[5].path, crop)
    np.testing.assert_array_equal(part.counts, raw[284:572, 225:513])
    assert part.grid == frame.grid.cropped(crop)


def test_files_are_found_once_in_time_order(tmp_path: Path) -> None:
    late = write_series(tmp_path / "2020", [9, 3])
    early = write_series(tmp_path / "2019" / "12", [1])
    (tmp_path / "README.txt").write_text("not radar")
    refs = scan([tmp_path, early[0], tmp_path / "2020"])
    assert [ref.path for ref in refs] == [early[0], late[1], late[0]]


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("RAD_NL25_RAP_5min_201008260005.h5", "2010-08-26 00:05"),
        ("RAD_NL25_RAC_RT_202306152355.h5", "2023-06-15 23:55"),
        ("RAD_NL25_RAC_MFBS_5min_201802291200_NL.h5", None),
        ("RAD_NL25_RAC_MFBS_5min_201602291200_NL.h5", "2016-02-29 12:00"),
        ("RAD_NL25_RAP_5min_2010082600.h5", None),
        ("other_201008260005.h5", None),
    ],
)
def test_times_come_from_names(tmp_path: Path, name: str, time: str | None) -> None:
    (tmp_path / name).touch()
    if time is None:
        with pytest.raises(DataError, match=f"{name}: the name holds no time"):
            scan([tmp_path])
    else:
        assert scan([tmp_path])[0].end_time_s == int(np.datetime64(time, "s").astype(np.int64))


def test_a_folder_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no radar files in {tmp_path}"):
        scan([tmp_path])
    with pytest.raises(DataError, match="absent is not there"):
        scan([tmp_path / "absent"])


def test_every_missing_code_becomes_65535(radar_file: Path) -> None:
    counts = np.arange(30, dtype=np.uint16).reshape(6, 5)
    counts[0] = [65535, 65534, 65533, 60000, 65532]
    change(radar_file, replace_image(data=counts))
    change(radar_file, set_attribute("image1/calibration", "calibration_out_of_image", np.array([60000])))
    assert read_header(radar_file).missing_codes == (60000, 65534, 65535)
    expected = counts.copy()
    expected[0] = [65535, 65535, 65533, 65535, 65532]
    np.testing.assert_array_equal(read(radar_file).counts, expected)


def test_headers_as_the_real_time_composites_have_them(radar_file: Path) -> None:
    """Attributes of nl_rdr_data_rtcor_5m as published files state them: sides that differ in the sixth digit."""

    def edit(file: Any) -> None:
        file["geographic"].attrs.update(
            geo_pixel_size_x=np.array([1.0000035], np.float32),
            geo_pixel_size_y=np.array([-1.0000048], np.float32),
            geo_row_offset=np.array([3649.982], np.float32),
        )
        file["image1"].attrs["image_geo_parameter"] = np.bytes_("PRECIP_[MM]")
        file["image1/calibration"].attrs.update(
            calibration_formulas=np.bytes_("GEO=0.010000*PV+0.000000"),
            calibration_missing_data=np.array([65534], np.int32),
        )
        file["geographic/map_projection"].attrs["projection_proj4_params"] = np.bytes_(
            "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378.14 +b=6356.75 +x_0=0 y_0=0"
        )
        file.create_dataset("image2/image_data", data=np.zeros((6, 5), np.uint8))

    change(radar_file, edit)
    header = read_header(radar_file)
    assert (header.scale_mmh, header.missing_codes) == (0.12, (65534, 65535))
    assert header.grid.pixel_km == 1.0
    assert header.grid.y0_km == pytest.approx(-3650.0, abs=1e-3)
    np.testing.assert_array_equal(read(radar_file).counts, random_counts(5, 6, 5))


@pytest.mark.parametrize(
    ("formula", "scale_mmh"),
    [("GEO=0.01*PV+0.0", 0.12), ("GEO = 0.010 * PV", 0.12), ("GEO=1e-2*PV-0", 0.12), ("GEO=0.001*PV+0.000000", 0.012)],
)
def test_linear_calibrations(radar_file: Path, formula: str, scale_mmh: float) -> None:
    change(radar_file, set_attribute("image1/calibration", "calibration_formulas", np.bytes_(formula)))
    assert read_header(radar_file).scale_mmh == pytest.approx(scale_mmh)


@pytest.mark.parametrize(
    "formula",
    [
        "GEO=0.5*PV-32.0",
        "GEO=0.01*PV**2",
        "GEO=0*PV",
        "GEO=-0.01*PV",
        "GEO=__import__('os').abort()",
        "",
        "GEO=1e999*PV",
    ],
)
def test_other_calibrations_are_refused(radar_file: Path, formula: str) -> None:
    change(radar_file, set_attribute("image1/calibration", "calibration_formulas", np.bytes_(formula)))
    with pytest.raises(DataError, match=r"calibration_formulas is .* expected a linear scale") as caught:
        read_header(radar_file)
    assert str(radar_file) in str(caught.value)


IMAGE = "image1/image_data"
BROKEN: list[tuple[Callable[[Any], None], str]] = [
    (lambda file: file.pop("overview"), "/overview is missing"),
    (lambda file: file.pop("image1"), "/image1 is missing"),
    (drop_attribute("overview", "product_datetime_end"), "attribute product_datetime_end of /overview is missing"),
    (drop_attribute("image1/calibration", "calibration_formulas"), "attribute calibration_formulas"),
    (drop_attribute("geographic", "geo_number_rows"), "attribute geo_number_rows of /geographic is missing"),
    (drop_attribute("image1", "image_geo_parameter"), "attribute image_geo_parameter"),
    (
        set_attribute("overview", "product_datetime_end", "26-AUG-2010;00:05:00.000"),
        "ends at 2010-08-26T00:00:00Z, product",
    ),
    (set_attribute("overview", "product_datetime_end", "26-XXX-2010;00:00:00.000"), "product_datetime_end is '26-XXX"),
    (set_attribute("overview", "product_datetime_end", "31-FEB-2010;00:00:00.000"), "product_datetime_end is '31-FEB"),
    (set_attribute("overview", "product_datetime_end", 5), "expected text"),
    (set_attribute("overview", "product_datetime_start", "26-AUG-2010;00:00:00"), "its accumulation lasts 0 s"),
    (set_attribute("image1", "image_geo_parameter", "HEIGHT_[KM]"), "image_geo_parameter is 'HEIGHT"),
    (set_attribute("image1", "image_geo_parameter", "REFLECTIVITY_[DBZ]"), "holds reflectivity .* give --zr A,B"),
    (set_attribute("geographic", "geo_number_rows", [6, 6]), "has 2 values"),
    (set_attribute("geographic", "geo_number_rows", 7), "6 x 5 pixels; expected 7 x 5"),
    (set_attribute("geographic", "geo_pixel_size_x", np.nan), "geo_pixel_size_x .* expected a number"),
    (set_attribute("geographic", "geo_pixel_size_y", 1.0), "expected square ones whose rows run south"),
    (set_attribute("geographic", "geo_pixel_size_y", -1.001), "expected square ones whose rows run south"),
    (set_attribute("image1/calibration", "calibration_missing_data", 0), r"missing codes \[0, 65534, 65535\]"),
    (replace_image(data=np.zeros((6, 5), np.int16)), "expected uint16"),
    (replace_image(data=np.zeros((6, 5), np.float32)), "expected uint16"),
    (replace_image(data=np.zeros((6, 5, 1), np.uint16)), "expected uint16"),
    (replace_image(shape=(10**6, 10**6), dtype="u2", chunks=(100, 100)), "1000000 x 1000000 pixels .* at most"),
    (replace_image(shape=(6, 5), dtype="u2", maxshape=(None, None), chunks=(2**14, 2**14)), "in chunks of"),
    (replace_by_link(IMAGE, h5py.ExternalLink("other.h5", IMAGE)), r"/image1/image_data is a link \(ExternalLink\)"),
    (replace_by_link("geographic", h5py.SoftLink("/image1")), r"/geographic is a link \(SoftLink\)"),
    (replace_image(shape=(6, 5), dtype="u2", external=[("/etc/passwd", 0, 60)]), "keeps its values in other files"),
    (replace_by_virtual(IMAGE), "keeps its values in other files"),
]


@pytest.mark.parametrize(("edit", "message"), BROKEN)
def test_broken_files_are_refused_by_name(radar_file: Path, edit: Callable[[Any], None], message: str) -> None:
    read(radar_file)
    change(radar_file, edit)
    with pytest.raises(DataError, match=message) as caught:
        read_header(radar_file)
    assert str(radar_file) in str(caught.value)


def test_foreign_files_are_refused(radar_file: Path) -> None:
    radar_file.write_bytes(b"\x89PNG\r\n" + bytes(5000))
    with pytest.raises(DataError, match="cannot be read as a KNMI HDF5 composite"):
        read(radar_file)
    radar_file.unlink()
    with h5py.File(radar_file, "w") as file:
        file["x"] = 1
    with pytest.raises(DataError, match="/overview is missing"):
        read(radar_file)
