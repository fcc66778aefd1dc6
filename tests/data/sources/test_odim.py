"""ODIM_H5 composites: real ones read as pysteps reads them, our own as they were made, broken ones refused by name."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rainspark.data.counts import requantise
from rainspark.data.errors import DataError
from rainspark.data.frames import Crop
from rainspark.data.sources.odim import ZR, OdimSource, parse_zr
from rainspark.data.sources.source import Header, Reading
from tests.data.radar_files import (
    LAEA,
    change,
    drop_attribute,
    odim_name,
    rates,
    replace_by_link,
    replace_by_virtual,
    replace_dataset,
    set_attribute,
    write_odim_file,
    write_odim_series,
)

TIME_S = 1_535_133_600
ROWS, COLS = 24, 20
WHOLE = Crop(row0=0, row1=ROWS, col0=0, col1=COLS)
IMAGE = "dataset1/data1"
MARSHALL_PALMER = ZR(a=200, b=1.6)


@pytest.fixture
def radar_file(tmp_path: Path) -> Path:
    """Make one good file of rates."""
    path = tmp_path / odim_name(TIME_S)
    write_odim_file(path, rates(1, ROWS, COLS), TIME_S, chunks=(7, 9), compression="gzip")
    return path


def header_of(path: Path, source: OdimSource | None = None) -> Header:
    source = source or OdimSource()
    return source.survey(source.scan([path]).refs[0]).header


def reading_of(path: Path, source: OdimSource | None = None, crop: Crop = WHOLE) -> Reading:
    source = source or OdimSource()
    return source.read(source.scan([path]).refs[0], crop)


def slow_counts(raw_hw: npt.NDArray[Any], levels: tuple[float, float, float, float]) -> npt.NDArray[np.uint16]:
    """Requantise rates one pixel at a time."""
    gain, offset, nodata, undetect = levels
    counts = np.empty(raw_hw.shape, np.uint16)
    for at, raw in np.ndenumerate(raw_hw):
        rain_mmh = float(raw) * gain + offset
        if raw == nodata or rain_mmh != rain_mmh:
            counts[at] = 65535
        elif raw == undetect:
            counts[at] = 0
        else:
            counts[at] = min(round(rain_mmh / 0.01), 65534)
    return counts


def test_a_part_is_the_part_of_the_whole(radar_file: Path) -> None:
    whole = reading_of(radar_file).counts
    for crop in (Crop(row0=3, row1=17, col0=5, col1=20), Crop(row0=23, row1=24, col0=0, col1=1)):
        part = reading_of(radar_file, crop=crop).counts
        np.testing.assert_array_equal(part, whole[crop.row0 : crop.row1, crop.col0 : crop.col1])


def test_header_and_grid(radar_file: Path) -> None:
    header = header_of(radar_file)
    assert (header.end_time_s, header.scale_mmh, header.source) == (TIME_S, 0.01, "ODIM ORG:247 RATE")
    assert (header.grid.x0_km, header.grid.y0_km, header.grid.pixel_km) == (0.0, 0.0, 2.0)
    named = header_of(radar_file, OdimSource(name="OPERA", licence="CC BY 4.0"))
    assert (named.source, named.licence) == ("OPERA", "CC BY 4.0")


LAYOUTS: list[tuple[str, tuple[float, float, float, float]]] = [
    ("uint8", (0.5, -0.5, 255, 0)),
    ("uint16", (0.01, 0.0, 65535, 0)),
    (">u2", (0.01, -1.0, 65535, 0)),
    ("int16", (0.1, 0.0, -1, -2)),
    ("int32", (0.003, 0.0, -9999, -8888)),
    ("float32", (1.0, 0.0, -9999000.0, -8888000.0)),
    (">f8", (2.0, 0.25, -1.0, -2.0)),
]


@pytest.mark.parametrize(("dtype", "levels"), LAYOUTS)
@pytest.mark.parametrize("storage", [{}, {"chunks": (7, 9), "shuffle": True, "compression": "gzip"}])
def test_every_dtype_reads_as_the_slow_way(
    tmp_path: Path, dtype: str, levels: tuple[float, float, float, float], storage: dict[str, Any]
) -> None:
    random = np.random.default_rng(3)
    raw_hw = random.integers(101, 250, (ROWS, COLS)).astype(dtype)
    raw_hw[random.random((ROWS, COLS)) < 0.3] = levels[2]
    raw_hw[random.random((ROWS, COLS)) < 0.3] = levels[3]
    path = tmp_path / odim_name(TIME_S)
    write_odim_file(path, raw_hw, TIME_S, levels=levels, **storage)
    reading = reading_of(path)
    np.testing.assert_array_equal(reading.counts, slow_counts(raw_hw, levels))
    assert reading.rounding.max_error_mmh <= 0.005 + 1e-12


def test_nodata_and_undetect_and_rates_beyond_the_range(tmp_path: Path) -> None:
    raw_hw = np.full((ROWS, COLS), -8888000.0)
    raw_hw[0, :6] = [-9999000.0, np.nan, 655.34, 655.344, 655.4, 1e6]
    raw_hw[1, :3] = [-0.004, 0.004, 0.006]
    path = tmp_path / odim_name(TIME_S)
    write_odim_file(path, raw_hw, TIME_S)
    reading = reading_of(path)
    assert reading.counts[0, :7].tolist() == [65535, 65535, 65534, 65534, 65534, 65534, 0]
    assert reading.counts[1, :3].tolist() == [0, 0, 1]
    assert reading.rounding.clamped == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [(-0.006, r"pixel \(23, 19\) is -0.006 mm/h"), (np.inf, "pixel .*is inf mm/h .one of 1")],
)
def test_rates_that_cannot_be_are_missing_or_refused(tmp_path: Path, value: float, message: str) -> None:
    raw_hw = rates(1, ROWS, COLS)
    raw_hw[23, 19] = value
    path = tmp_path / odim_name(TIME_S)
    write_odim_file(path, raw_hw, TIME_S, chunks=(5, 6))
    reading = reading_of(path)
    assert (reading.counts[23, 19], reading.rounding.discarded) == (65535, 1)

    # One more, in another piece of the image: of 480 pixels that is too many.
    raw_hw[0, 0] = -1
    write_odim_file(path, raw_hw, TIME_S, chunks=(5, 6))
    with pytest.raises(DataError, match=f"{path}: .*{message}"):
        reading_of(path)


@given(st.lists(st.floats(0, 700), min_size=1, max_size=50))
def test_requantising_is_off_by_half_a_count_at_most(values: list[float]) -> None:
    rain_mmh = np.array(values)
    counts, rounding = requantise(rain_mmh, lambda at: (at,), frame_pixels=5000)
    within = rain_mmh <= 655.345
    error_mmh = np.abs(counts * 0.01 - rain_mmh)
    assert np.all(error_mmh[within] <= 0.005 + 1e-9)
    assert np.all(counts[~within] == 65534)
    assert rounding.max_error_mmh == pytest.approx(np.max(error_mmh, initial=0, where=within), abs=1e-9)


def test_accumulations_become_rates_of_their_period(tmp_path: Path) -> None:
    path = tmp_path / odim_name(TIME_S)
    depth_mm = np.full((ROWS, COLS), 2.5)
    write_odim_file(path, depth_mm, TIME_S, quantity="ACRR", period_s=900)
    assert set(reading_of(path).counts.ravel().tolist()) == {1000}
    assert header_of(path).end_time_s == TIME_S
    change(path, set_attribute("dataset1/what", "startdate", np.bytes_("20180821")))
    with pytest.raises(DataError, match=r"its accumulation runs from 2018-08-21T.* expected 1 min to 1 day"):
        header_of(path)


# Rain rate in mm/h of 5, 10, ... dBZ by Z = 200 R**1.6, as weather services tabulate it (for example the United States
# National Weather Service's and Wikipedia's table "DBZ (meteorology)").
PUBLISHED_MMH = (0.07, 0.15, 0.3, 0.6, 1.3, 2.7, 5.6, 11.53, 23.7, 48.6, 100, 205, 421)


def test_marshall_palmer_matches_the_published_table() -> None:
    for reflectivity_dbz, rain_mmh in zip(range(5, 70, 5), PUBLISHED_MMH, strict=True):
        digits = 0.005 if rain_mmh < 0.2 else 0.05 if rain_mmh < 50 else 0.5
        computed_mmh = MARSHALL_PALMER.rain_mmh(np.array([reflectivity_dbz]))[0]
        assert computed_mmh == pytest.approx(rain_mmh, abs=digits * 1.01)


@given(st.floats(-32, 60), st.sampled_from([(200.0, 1.6), (300.0, 1.4), (256.0, 1.42)]))
def test_reflectivity_becomes_rain_by_the_stated_relation(reflectivity_dbz: float, pair: tuple[float, float]) -> None:
    a, b = pair
    rain_mmh = float(ZR(a=a, b=b).rain_mmh(np.array([reflectivity_dbz]))[0])
    assert a * rain_mmh**b == pytest.approx(10 ** (reflectivity_dbz / 10), rel=1e-9)


def test_reflectivity_needs_a_relation_and_rain_none(tmp_path: Path, radar_file: Path) -> None:
    path = tmp_path / "dbzh" / odim_name(TIME_S)
    path.parent.mkdir()
    write_odim_file(path, np.full((ROWS, COLS), 23.0), TIME_S, quantity="DBZH")
    with pytest.raises(DataError, match=f"{path}: it holds reflectivity.*--zr 200,1.6 is Marshall and Palmer"):
        header_of(path)
    # 23 dBZ is 0.9986 mm/h by Marshall and Palmer.
    assert set(reading_of(path, OdimSource(zr=MARSHALL_PALMER)).counts.ravel().tolist()) == {100}
    assert header_of(path, OdimSource(zr=MARSHALL_PALMER)).source == "ODIM ORG:247 DBZH as rain by Z = 200 R**1.6"
    with pytest.raises(DataError, match="it holds RATE, which is rain already; leave --zr away"):
        header_of(radar_file, OdimSource(zr=MARSHALL_PALMER))


@pytest.mark.parametrize("text", ["", "200", "200,x", "200,1.6,3", "0,1.6", "nan,1.6", "200,-1", "1e9,1.6"])
def test_other_relations_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="expected A,B of Z = A R"):
        parse_zr(text)
    assert parse_zr("200,1.6") == MARSHALL_PALMER


def second_image(quantity: str) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        file.copy("dataset1", "dataset2")
        file["dataset2/data1/what"].attrs["quantity"] = np.bytes_(quantity)
        file["dataset2/data1/data"][...] = 1.0

    return edit


def test_the_quantity_is_chosen(radar_file: Path) -> None:
    change(radar_file, second_image("QIND"))
    assert header_of(radar_file).source == "ODIM ORG:247 RATE"
    change(radar_file, set_attribute("dataset2/data1/what", "quantity", np.bytes_("ACRR")))
    with pytest.raises(
        DataError, match=r"RATE in /dataset1/data1/data, ACRR in /dataset2/data1/data; .*--quantity RATE"
    ):
        header_of(radar_file)
    assert header_of(radar_file, OdimSource(quantity="ACRR")).source == "ODIM ORG:247 ACRR"
    assert set(reading_of(radar_file, OdimSource(quantity="ACRR")).counts.ravel().tolist()) == {1200}
    with pytest.raises(DataError, match="it holds ACRR, RATE; expected DBZH: choose another --quantity"):
        header_of(radar_file, OdimSource(quantity="DBZH"))


def test_what_of_the_dataset_serves_its_images(radar_file: Path) -> None:
    def edit(file: Any) -> None:
        for name, value in file[f"{IMAGE}/what"].attrs.items():
            file["dataset1/what"].attrs[name] = value
        del file[f"{IMAGE}/what"]

    before = reading_of(radar_file).counts
    change(radar_file, edit)
    np.testing.assert_array_equal(reading_of(radar_file).counts, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nodata_may_be_nan(tmp_path: Path, dtype: type) -> None:
    raw_hw = rates(4, ROWS, COLS)
    write_odim_file(tmp_path / "a.h5", raw_hw, TIME_S)
    nan_hw: npt.NDArray[Any] = np.where(raw_hw == -9999000.0, np.nan, raw_hw).astype(dtype)
    write_odim_file(tmp_path / "b.h5", nan_hw, TIME_S, levels=(1.0, 0.0, np.nan, -8888000.0))
    np.testing.assert_array_equal(reading_of(tmp_path / "b.h5").counts, reading_of(tmp_path / "a.h5").counts)


def test_the_unit_of_a_projection_moves_no_pixel(radar_file: Path) -> None:
    before = header_of(radar_file).grid
    change(radar_file, projection(LAEA.replace("+units=m", "+units=km")))
    assert replace(header_of(radar_file).grid, projection="") == replace(before, projection="")


def test_times_come_from_names_or_files(tmp_path: Path) -> None:
    paths = write_odim_series(tmp_path / "named", [3, 1, 2])
    source = OdimSource()
    assert [ref.path for ref in source.scan([tmp_path / "named"]).refs] == sorted(paths)  # type: ignore[attr-defined]
    times_s = [ref.end_time_s for ref in source.scan(paths).refs]
    for number, path in enumerate(sorted(paths)):
        path.rename(path.with_name(("c.h5", "a.h5", "composite_hx_20231114_1200-hd5")[number]))
    assert [ref.end_time_s for ref in source.scan([tmp_path / "named"]).refs] == times_s
    wrong = tmp_path / odim_name(TIME_S + 600)
    (tmp_path / "named" / "a.h5").rename(wrong)
    with pytest.raises(DataError, match=f"{wrong}: its name says 2018-08-24T18:10:00Z, its content 2020-01-01T"):
        source.survey(source.scan([wrong]).refs[0])
    change(wrong, set_attribute("what", "object", np.bytes_("PVOL")))
    with pytest.raises(DataError, match=r"volume\.h5: /what object is 'PVOL'"):
        source.scan([wrong.rename(tmp_path / "volume.h5")])
    with pytest.raises(DataError, match="no radar files in"):
        source.scan([])


image = partial(replace_dataset, f"{IMAGE}/data")


def many_groups(file: Any) -> None:
    for number in range(300):
        file.create_group(f"x{number}")


def few_bits(file: Any) -> None:
    del file[f"{IMAGE}/data"]
    kind = h5py.h5t.STD_U16LE.copy()
    kind.set_precision(12)
    space = h5py.h5s.create_simple((ROWS, COLS))
    h5py.Dataset(h5py.h5d.create(file[IMAGE].id, b"data", kind, space))[...] = np.ones((ROWS, COLS), np.uint16)


def projection(text: str) -> Callable[[Any], None]:
    return set_attribute("where", "projdef", np.bytes_(text))


BROKEN: list[tuple[Callable[[Any], None], str]] = [
    (lambda file: file.pop("what"), "/what is missing"),
    (lambda file: file.pop("where"), "where is missing"),
    (lambda file: file.pop("dataset1"), "it holds nothing; expected one of RATE, ACRR, DBZH"),
    (lambda file: file.pop(f"{IMAGE}/data"), "/data is missing"),
    (lambda file: file.pop(f"{IMAGE}/what"), "attribute quantity of /what is missing"),
    (drop_attribute("what", "object"), "attribute object of /what is missing"),
    (drop_attribute("dataset1/what", "endtime"), "attribute endtime"),
    (drop_attribute("where", "projdef"), "attribute projdef of /where is missing"),
    (drop_attribute("what", "source"), "attribute source of /what is missing; .*: give --name"),
    (
        set_attribute("what", "object", np.bytes_("PVOL")),
        "'PVOL'; expected COMP or IMAGE: make a composite",
    ),
    (second_image("RATE"), "RATE in /dataset1/data1/data, RATE in /dataset2/data1/data; .*: remove the file"),
    (set_attribute(f"{IMAGE}/what", "undetect", np.nan), "attribute undetect .* expected a number"),
    (set_attribute("what", "time", np.bytes_("256100")), "date, time are '20180824256100'"),
    (set_attribute("what", "date", np.bytes_("2018-08-24")), "expected YYYYMMDD, HHMMSS"),
    (set_attribute("dataset1/what", "enddate", np.bytes_("20180825")), "at most 60 min between them"),
    (set_attribute(f"{IMAGE}/what", "quantity", np.bytes_("TH")), "it holds TH; expected one of RATE"),
    (set_attribute(f"{IMAGE}/what", "gain", 0.0), "has gain 0"),
    (set_attribute(f"{IMAGE}/what", "gain", -1.0), "expected a gain above 0"),
    (set_attribute(f"{IMAGE}/what", "gain", np.nan), "attribute gain .* expected a number"),
    (set_attribute(f"{IMAGE}/what", "offset", "eval('1')"), "attribute offset .* expected a number"),
    (set_attribute(f"{IMAGE}/what", "undetect", -9999000.0), r"kept apart from unseen ones \(nodata\)"),
    (set_attribute("where", "xsize", 21), "24 x 20 pixels; where says 24 x 21"),
    (set_attribute("where", "xscale", 1000.0), "pixels of 1000 by 2000 m; expected square ones"),
    (set_attribute("where", "yscale", np.inf), "yscale .* expected a number"),
    (set_attribute("where", "LR_lat", 60.0), "the corners are .* km apart; expected 40 by 48 km"),
    (projection("+proj=longlat +ellps=WGS84"), "expected one projection in metres"),
    (projection("+proj=laea +nadgrids=/etc/passwd"), "expected one projection in metres, of plain"),
    (projection("+init=/etc/passwd:3035"), "expected one projection in metres, of plain"),
    (projection("EPSG:999999"), "a code that PROJ does not know"),
    (projection("EPSG:4326"), "'EPSG:4326'; expected one projection in metres"),
    (projection("EPSG:3035 +nadgrids=x.gsb"), "of plain"),
    (projection("+proj=laea +nadgrids=@null,x.gsb"), "of plain"),
    (projection("+proj=laea +towgs84=0,0"), "of plain"),
    (projection("+proj=laea +geoidgrids=x"), "of plain"),
    (projection("+proj=pipeline +step +proj=laea"), "of plain \\+key=value terms"),
    (projection("+proj=nonsense"), "does not place"),
    (projection("EPSG:2056"), "the corners are .* km apart"),
    (projection("+proj=laea +lat_0=1\x1b[2J"), "expected text that can be printed"),
    (image(data=np.zeros((ROWS, COLS, 1))), "float64 .24, 20, 1.; expected uint8, uint16"),
    (image(shape=(ROWS, COLS), dtype=h5py.string_dtype()), "object .*expected uint8"),
    (few_bits, "uses some bits of its 16 only"),
    (replace_by_virtual(f"{IMAGE}/data"), "keeps its values in other files"),
    (replace_by_link("where", h5py.SoftLink("/what")), r"/where is a link \(SoftLink\)"),
    (replace_by_link("what", h5py.ExternalLink("/etc/passwd", "/")), r"/what is a link \(ExternalLink\)"),
    (replace_by_link(f"{IMAGE}/data", h5py.ExternalLink("other.h5", "/x")), r"/data is a link \(ExternalLink\)"),
    (many_groups, "no group of at most 256 members"),
]


@pytest.mark.parametrize(("edit", "message"), BROKEN)
def test_broken_files_are_refused_by_name(radar_file: Path, edit: Callable[[Any], None], message: str) -> None:
    header_of(radar_file)
    change(radar_file, edit)
    with pytest.raises(DataError, match=message) as caught:
        header_of(radar_file)
    assert str(radar_file) in str(caught.value)
