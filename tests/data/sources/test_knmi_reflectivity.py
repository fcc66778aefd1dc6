"""KNMI's reflectivity composites: dBZ of one moment, as rain by a Z-R relation, beside the precipitation product."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop
from rainspark.data.pack.__main__ import main
from rainspark.data.sources.hdf5 import ChoiceError
from rainspark.data.sources.knmi import KnmiSource
from rainspark.data.sources.knmi_writer import file_name, product_time, write_knmi_file
from rainspark.data.sources.source import Header, Reading
from rainspark.data.units import ZR
from tests.data.radar_files import FIRST_S, change, set_attribute, write_series

ROWS, COLS = 12, 10
WHOLE = Crop(row0=0, row1=ROWS, col0=0, col1=COLS)
MARSHALL_PALMER = ZR(a=200, b=1.6)
ECHO = KnmiSource(zr=MARSHALL_PALMER)
FORMULA = "GEO = 0.500000 * PV + -32.000000"


def echo_name(end_time_s: int) -> str:
    return file_name(end_time_s).replace("RAP_5min", "PCP_NA")


def write_echo(
    path: Path, raw_hw: npt.NDArray[Any], end_time_s: int = FIRST_S, *, formula: str = FORMULA, period_s: int = 0
) -> Path:
    """Write a composite of reflectivity as KNMI does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_knmi_file(path, np.zeros(raw_hw.shape, np.uint16), end_time_s)

    def edit(file: Any) -> None:
        del file["image1/image_data"]
        file.create_dataset("image1/image_data", data=raw_hw, chunks=(5, 6), compression="gzip")
        file["overview"].attrs.update(
            product_group_name=np.bytes_("RAD_NL25_PCP_NA"),
            product_datetime_start=np.bytes_(product_time(end_time_s - period_s)),
        )
        file["image1"].attrs["image_geo_parameter"] = np.bytes_("REFLECTIVITY_[DBZ]")
        file["image1/calibration"].attrs.update(
            calibration_formulas=np.bytes_(formula),
            calibration_missing_data=np.array([0], np.int32),
            calibration_out_of_image=np.array([255], np.int32),
        )

    change(path, edit)
    return path


def codes(seed: int, dtype: Any = np.uint8) -> npt.NDArray[Any]:
    random = np.random.default_rng(seed)
    raw_hw = random.integers(20, 160, (ROWS, COLS))
    raw_hw[random.random(raw_hw.shape) < 0.3] = 0
    raw_hw[random.random(raw_hw.shape) < 0.2] = 255
    return raw_hw.astype(dtype)


def slow_counts(raw_hw: npt.NDArray[Any], gain: float = 0.5, offset: float = -32.0) -> npt.NDArray[np.uint16]:
    """Turn codes into counts of 0.01 mm/h one pixel at a time, by Z = 200 R**1.6."""
    counts = np.empty(raw_hw.shape, np.uint16)
    for at, raw in np.ndenumerate(raw_hw):
        reflectivity_mm6m3 = 10 ** ((int(raw) * gain + offset) / 10)
        rain_mmh = (reflectivity_mm6m3 / 200) ** (1 / 1.6)
        counts[at] = 65535 if raw == 255 else 0 if raw == 0 else min(round(rain_mmh / 0.01), 65534)
    return counts


def header_of(path: Path, source: KnmiSource = ECHO) -> Header:
    return source.survey(source.scan([path]).refs[0]).header


def reading_of(path: Path, crop: Crop = WHOLE, source: KnmiSource = ECHO) -> Reading:
    return source.read(source.scan([path]).refs[0], crop)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("formula", "gain", "offset"),
    [
        (FORMULA, 0.5, -32.0),
        ("GEO=0.5*PV-31.5", 0.5, -31.5),
        ("GEO=0.25*PV + 1.0", 0.25, 1.0),
        ("GEO=3e-1*PV--2", 0.3, 2.0),
    ],
)
def test_codes_become_rain_pixel_by_pixel(tmp_path: Path, dtype: Any, formula: str, gain: float, offset: float) -> None:
    raw_hw = codes(1, dtype)
    path = write_echo(tmp_path / echo_name(FIRST_S), raw_hw, formula=formula)
    reading = reading_of(path)
    np.testing.assert_array_equal(reading.counts, slow_counts(raw_hw, gain, offset))
    assert 0 < reading.rounding.max_error_mmh <= 0.005 + 1e-12
    crop = Crop(row0=3, row1=11, col0=2, col1=9)
    np.testing.assert_array_equal(reading_of(path, crop).counts, reading.counts[3:11, 2:9])


def test_the_header_says_what_the_frame_is(tmp_path: Path) -> None:
    path = write_echo(tmp_path / echo_name(FIRST_S), codes(1))
    header = header_of(path)
    assert (header.end_time_s, header.scale_mmh, header.period_s) == (FIRST_S, 0.01, 0)
    assert header.source == "KNMI RAD_NL25_PCP_NA as rain by Z = 200 R**1.6"
    # Another relation is another product.
    assert header_of(path, KnmiSource(zr=ZR(a=300, b=1.4))).source.endswith("Z = 300 R**1.4")
    spread = write_echo(tmp_path / "spread" / echo_name(FIRST_S), codes(1), period_s=300)
    assert header_of(spread).period_s == 300
    precipitation = write_series(tmp_path / "depth", [1])[0]
    assert header_of(precipitation, KnmiSource()).period_s == 300


def test_the_relation_is_asked_for_and_refused(tmp_path: Path) -> None:
    echo = write_echo(tmp_path / "echo" / echo_name(FIRST_S), codes(1))
    with pytest.raises(ChoiceError, match=f"{echo}: it holds reflectivity .*give --zr A,B .--zr 200,1.6 is Marshall"):
        KnmiSource().scan([echo])
    depth = write_series(tmp_path / "depth", [0, 1])[0]
    with pytest.raises(ChoiceError, match=f"{depth}: it holds precipitation, which is rain already; leave --zr away"):
        ECHO.scan([tmp_path / "depth"])


def test_the_relation_chooses_the_product_of_a_folder(tmp_path: Path) -> None:
    write_series(tmp_path, [0, 1, 2])
    for number in range(2):
        time_s = FIRST_S + 300 * number
        write_echo(tmp_path / echo_name(time_s), codes(number), time_s)
    depth, echo = KnmiSource().scan([tmp_path]), ECHO.scan([tmp_path])
    assert (len(depth.refs), len(echo.refs)) == (3, 2)
    assert depth.notes[0].startswith("2 files hold reflectivity (which needs --zr) and are not read, such as ")
    assert echo.notes[0].startswith("3 files hold precipitation (which takes no --zr) and are not read")


@pytest.mark.parametrize(
    "name",
    ["RAD_NL25_PCP_CM_201912312350.h5", "RADNL_OPER_R___25PCPRR_L3__20191231T235000_20191231T235500_0001.h5", "a.h5"],
)
def test_names_of_several_kinds(tmp_path: Path, name: str) -> None:
    assert header_of(write_echo(tmp_path / name, codes(1))).end_time_s == FIRST_S


def test_copies_of_composites_are_read_once(tmp_path: Path) -> None:
    first = write_echo(tmp_path / "a" / echo_name(FIRST_S), codes(1))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / first.name).write_bytes(first.read_bytes())
    found = ECHO.scan([tmp_path])
    assert len(found.refs) == 1
    assert found.notes[0].startswith("1 file is a copy of another, byte for byte")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_attribute("image1", "image_geo_parameter", np.bytes_("HEIGHT_[KM]")), "expected ACCUMULATED_PRECIPIT"),
        (set_attribute("image1/calibration", "calibration_formulas", np.bytes_("GEO=PV")), "'GEO=PV'; expected a lin"),
        (
            set_attribute("overview", "product_datetime_start", np.bytes_(product_time(FIRST_S + 300))),
            "its accumulation lasts -300 s",
        ),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, edit: Callable[[Any], None], message: str) -> None:
    path = write_echo(tmp_path / echo_name(FIRST_S), codes(1))
    change(path, edit)
    with pytest.raises(DataError, match=message) as caught:
        header_of(path)
    assert str(path) in str(caught.value)


def test_the_command_takes_the_relation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        time_s = FIRST_S + 300 * number
        write_echo(tmp_path / "in" / echo_name(time_s), codes(number), time_s)
    command = ["knmi", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--window", "2"]
    assert main(command) == 4
    assert "give --zr A,B" in capsys.readouterr().err
    assert main([*command, "--zr", "200,1.6"]) == 0
    assert "KNMI RAD_NL25_PCP_NA as rain by Z = 200 R**1.6" in capsys.readouterr().out


def test_real_files_read_as_h5py_reads_them(shared_dir: Path) -> None:
    refs = ECHO.scan([shared_dir / "data" / "knmi_reflectivity"]).refs
    assert len(refs) == 360
    path = Path(str(refs[20]))
    with h5py.File(path) as file:
        raw_hw = file["image1/image_data"][300:420, 280:400]
    crop = Crop(row0=300, row1=420, col0=280, col1=400)
    np.testing.assert_array_equal(ECHO.read(refs[20], crop).counts, slow_counts(raw_hw))
    header = ECHO.survey(refs[20]).header
    assert (header.period_s, header.grid.rows, header.grid.cols, header.grid.pixel_km) == (0, 765, 700, 1.0)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_attribute("geographic", "geo_product_corners", np.arange(8.0)), "geo_product_corners states 0 E, 1 N"),
        (set_attribute("geographic", "geo_column_offset", 1.0), r"expected 1.000, .* as pixels and offsets say"),
    ],
)
def test_corners_that_are_stated_have_to_agree(
    shared_dir: Path, tmp_path: Path, edit: Callable[[Any], None], message: str
) -> None:
    for name in ("knmi/RAD_NL25_RAP_5min_201008260000.h5", "knmi_reflectivity/RAD_NL25_PCP_NA_202101012005.h5"):
        path = tmp_path / Path(name).name
        shutil.copy(shared_dir / "data" / name, path)
        source = KnmiSource() if name.startswith("knmi/") else KnmiSource(zr=ZR(a=200, b=1.6))
        (ref,) = source.scan([path]).refs
        source.survey(ref)
        change(path, edit)
        with pytest.raises(DataError, match=f"{path}: .*{message}"):
            source.survey(ref)


@pytest.mark.parametrize("name", [".x.h5", "._RAD_NL25_RAP_5min_201008260000.h5", ".RAD_NL25_202101012005.h5"])
def test_hidden_files_of_a_folder_are_not_read(tmp_path: Path, name: str) -> None:
    paths = write_series(tmp_path, range(2))
    (tmp_path / name).write_bytes(b"half")
    assert [str(ref) for ref in KnmiSource().scan([tmp_path]).refs] == list(map(str, paths))
