"""Formats that pysteps imports: the same pixels as our own readers of KNMI and ODIM files; what cannot be, refused."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.frames import Crop
from rainspark.data.pack.__main__ import main
from rainspark.data.shards.contact_sheet import read_frame
from rainspark.data.shards.index import load_index
from rainspark.data.sources.importer import ImporterSource
from rainspark.data.sources.knmi import KnmiSource
from rainspark.data.sources.odim import ZR, OdimSource
from rainspark.data.sources.source import Source
from rainspark.data.store.storage import open_storage
from tests.data.radar_files import write_series

pytest.importorskip("pysteps", reason="pysteps (extra nowcast) is not installed")

KNMI_NAMES = "RAD_NL25_RAP_5min_%Y%m%d%H%M.h5"
ZR_200 = ZR(a=200, b=1.6)
PAIRS: list[tuple[str, Source, ImporterSource]] = [
    (
        "odim/T_PAAH*",
        OdimSource(),
        ImporterSource(importer="odim_hdf5", time_patterns=("T_PAAH21_C_EUOC_%Y%m%d%H%M%S.hdf",)),
    ),
    (
        "odim/T_PABV*",
        OdimSource(zr=ZR_200),
        ImporterSource(
            importer="odim_hdf5",
            time_patterns=("T_PABV21_C_EUOC_%Y%m%d%H%M%S.hdf",),
            arguments={"qty": "DBZH"},
            zr=ZR_200,
        ),
    ),
    (
        "knmi/*010*",
        KnmiSource(),
        ImporterSource(importer="knmi_hdf5", time_patterns=(KNMI_NAMES,), arguments={"accutime": "5"}),
    ),
]


@pytest.mark.parametrize(("names", "ours", "theirs"), PAIRS)
def test_importers_give_what_our_own_readers_give(
    shared_dir: Path, names: str, ours: Source, theirs: ImporterSource
) -> None:
    paths = sorted((shared_dir / "data").glob(names))[:2]
    our_refs, their_refs = ours.scan(paths).refs, theirs.scan(paths).refs
    assert [ref.end_time_s for ref in our_refs] == [ref.end_time_s for ref in their_refs]
    for our_ref, their_ref in zip(our_refs[:1], their_refs[:1], strict=True):
        header, imported = ours.survey(our_ref).header, theirs.survey(their_ref).header
        assert imported.grid == header.grid
        crop = Crop(row0=0, row1=header.grid.rows, col0=0, col1=header.grid.cols)
        counts, rain = ours.read(our_ref, crop).counts, theirs.read(their_ref, crop).counts
        np.testing.assert_array_equal(counts == 65535, rain == 65535)
        seen = counts != 65535
        np.testing.assert_allclose(counts[seen] * header.scale_mmh, rain[seen] * 0.01, atol=0.005 + 1e-9)


def test_the_command_packs_through_an_importer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_series(tmp_path / "radar", range(4), size=(765, 700))
    (tmp_path / "radar" / "README.txt").write_text("other")
    command = ["importer", str(tmp_path / "radar"), "--importer", "knmi_hdf5", "--time-pattern", KNMI_NAMES]
    command += ["--argument", "accutime=5", "--window", "2", "--crop", "0:64,0:64", "--licence", "CC0-1.0"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    written = capsys.readouterr()
    assert "1 files have other names and are not read" in written.err
    assert "by pysteps' knmi_hdf5 (CC0-1.0)" in written.out
    assert main([*command, "--argument", "x", "--out", str(tmp_path / "x")]) == 3
    assert "--argument 'x': expected NAME=VALUE" in capsys.readouterr().err
    assert main([*command, "--argument", "accutime=60", "--out", str(tmp_path / "x")]) == 3
    assert "--argument accutime is given twice" in capsys.readouterr().err


def field(**changes: Any) -> tuple[npt.NDArray[np.float64], None, dict[str, Any]]:
    metadata: dict[str, Any] = {"unit": "mm/h", "transform": None, "accutime": 5.0, "zerovalue": 0.0, "threshold": 0.1}
    metadata |= {"x1": 0.0, "x2": 3000.0, "y1": 0.0, "y2": 2000.0, "yorigin": "upper", "cartesian_unit": "m"}
    metadata |= {"projection": "+proj=laea", "institution": "nobody"}
    return np.array([[1.0, np.nan, 0.0], [2.5, 3.25, 0.05]]), None, {**metadata, **changes}


WHOLE = Crop(row0=0, row1=2, col0=0, col1=3)


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let an importer of a plain field stand in for pysteps', whose formats need files that we cannot make."""
    (tmp_path / "x_202001010000.bin").write_bytes(b"field")

    def read(answer: Any, zr: ZR | None = None) -> Any:
        monkeypatch.setattr("rainspark.data.sources.importer._pysteps_method", lambda _: lambda _, **__: answer)
        source = ImporterSource(importer="any", time_patterns=("x_%Y%m%d%H%M.bin",), zr=zr)
        (ref,) = source.scan([tmp_path]).refs
        return source.survey(ref).header, source.read(ref, WHOLE)

    return read


def test_units_become_rates(imported: Any) -> None:
    header, reading = imported(field())
    assert reading.counts.tolist() == [[100, 65535, 0], [250, 325, 5]]
    assert (header.grid.pixel_km, header.grid.x0_km, header.grid.y0_km) == (1.0, 0.0, 2.0)
    assert imported(field(unit="mm"))[1].counts.tolist() == [[1200, 65535, 0], [3000, 3900, 60]]
    assert imported(field(yorigin="lower"))[1].counts.tolist() == [[250, 325, 5], [100, 65535, 0]]
    masked = np.ma.masked_equal(field()[0], 2.5)
    assert imported((masked, None, field()[2]))[1].counts.tolist() == [[100, 65535, 0], [65535, 325, 5]]


def test_no_rain_in_decibels_is_dry(imported: Any) -> None:
    decibel = np.array([[10.0, np.nan, -15.0], [0.0, -10.0, -15.0]])
    metadata = field(transform="dB", zerovalue=-15.0, threshold=-10.0)[2]
    assert imported((decibel, None, metadata))[1].counts.tolist() == [[1000, 65535, 0], [100, 10, 0]]
    dbz = np.array([[23.0, np.nan, 8.0], [33.0, 23.0, 8.0]])
    metadata = field(unit="dBZ", transform="dB", zerovalue=8.0, threshold=15.0)[2]
    assert imported((dbz, None, metadata), ZR_200)[1].counts.tolist() == [[100, 65535, 0], [421, 100, 0]]


def test_codes_among_reflectivities_are_no_dry_weather(imported: Any) -> None:
    dbz = np.array([[23.0, np.nan, -9999.0], [33.0, -np.inf, -32.0]])
    metadata = field(unit="dBZ", transform="dB", zerovalue=-32.0, threshold=-31.5)[2]
    reading = imported((dbz, None, metadata), ZR_200)[1]
    assert reading.counts.tolist() == [[100, 65535, 65535], [421, 0, 0]]
    assert reading.rounding.discarded == 1


def test_degrees_are_a_plate_carree(imported: Any) -> None:
    header, _ = imported(field(cartesian_unit="degrees", x1=-130.0, x2=-129.97, y1=54.98, y2=55.0))
    assert header.grid.pixel_km == pytest.approx(6371 * np.pi / 180 / 100, abs=1e-6)
    assert header.grid.projection.startswith("+proj=eqc")
    assert header.grid.x0_km == pytest.approx(-130 * 6371 * np.pi / 180, abs=1e-3)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (field(unit="K"), "the field is in 'K'"),
        (field(unit="dBZ", transform="dB"), "or dBZ with one"),
        (field(transform="Box-Cox"), "transform 'Box-Cox'"),
        (field(unit="mm", accutime=None), "accutime is None"),
        (field(x1=None), "expected numbers"),
        (field(y2=np.nan), "expected numbers"),
        (field(yorigin="left"), "yorigin 'left'"),
        (field(cartesian_unit="miles"), "cartesian_unit 'miles'"),
        (field(y2=9000.0), "pixels of 1 by 4.5 km; expected square ones"),
        (field(projection=""), "projection is ''"),
        (field(projection="\x1b[2J"), "projection is "),
        ((np.zeros(3), None, {}), "the field has shape"),
        ((np.full((2, 3), -1.0), None, field()[2]), r"pixel \(0, 0\) is -1 mm/h \(one of 6\)"),
        ((np.zeros((2, 3)), None), "gives no field with metadata"),
    ],
)
def test_fields_that_cannot_be_packed_are_refused(imported: Any, answer: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"x_202001010000\.bin: .*{message}"):
        imported(answer)


def test_the_stated_size_of_pixels_counts(imported: Any) -> None:
    # Edges that are edges; edges that are the outer pixels' centres; sizes to 1e-4.
    sizes = {"xpixelsize": 1000.0, "ypixelsize": 1000.0}
    cases: list[tuple[dict[str, Any], dict[str, float]]] = [
        (sizes, {}),
        (sizes, {"x1": 500.0, "x2": 2500.0, "y1": 500.0, "y2": 1500.0}),
        (sizes, {"x2": 3000.2, "y1": -0.1}),
        ({"xpixelsize": np.float32(1000), "ypixelsize": np.int64(-1000)}, {}),
        ({"xpixelsize": None, "ypixelsize": 1000.0}, {}),
    ]
    for stated, edges in cases:
        grid = imported(field(**stated, **edges))[0].grid
        assert (grid.pixel_km, grid.x0_km, grid.y0_km) == (1.0, 0.0, 2.0)
    with pytest.raises(DataError, match=r"3 pixels are stated to be 1 km wide each, .* edges are 3\.001 km apart"):
        imported(field(**sizes, x2=3001.0))
    with pytest.raises(DataError, match=r"2 pixels are stated to be 0.5 km wide .* expected 1 km: the file is damaged"):
        imported(field(xpixelsize=1000.0, ypixelsize=500.0))
    # Degrees beyond 180 east are west.
    degrees = {"cartesian_unit": "degrees", "x1": 230.0, "x2": 230.03, "y1": 54.98, "y2": 55.0, "xpixelsize": 0.01}
    assert imported(field(**degrees))[0].grid.x0_km == pytest.approx(-130 * 6371 * np.pi / 180, abs=1e-3)


def test_the_period_is_stated_where_the_importer_knows_it(
    imported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert imported(field())[0].period_s == 300
    assert imported(field(unit="mm", accutime=np.int64(60)))[0].period_s == 3600
    assert imported(field(accutime=None))[0].period_s is None
    assert imported(field(unit="dBZ", transform="dB"), ZR_200)[0].period_s == 0

    # Some importers write the same minutes whatever the file says.
    monkeypatch.setattr("rainspark.data.sources.importer._pysteps_method", lambda _: lambda _, **__: field())
    source = ImporterSource(importer="odim_hdf5", time_patterns=("x_%Y%m%d%H%M.bin",))
    (ref,) = source.scan([tmp_path]).refs
    assert source.survey(ref).header.period_s is None
    monkeypatch.setattr("rainspark.data.sources.importer._pysteps_method", lambda _: lambda _, **__: field(unit="mm"))
    with pytest.raises(DataError, match=r"accutime is 5.0, which it writes whatever the file says: ODIM_H5 is read by"):
        source.survey(ref)


def test_single_codes_are_missing_and_counted(imported: Any) -> None:
    codes = np.array([[1.0, -0.1, 0.0], [2.5, np.nan, np.inf]])
    with pytest.raises(DataError, match=r"x_202001010000\.bin: pixel \(0, 1\) is -0.1 mm/h \(one of 2\)"):
        imported((codes, None, field()[2]))
    codes[1, 2] = 0.05
    reading = imported((codes, None, field()[2]))[1]
    assert (reading.counts.tolist(), reading.rounding.discarded) == ([[100, 65535, 0], [250, 65535, 5]], 1)


def pack_case(shared_dir: Path, out: Path, case: str, importer: str, pattern: str, *options: str) -> int:
    command = ["importer", str(shared_dir / "cases" / case), "--importer", importer, "--time-pattern", pattern]
    return main([*command, "--window", "2", "--out", str(out), *options])


def test_case_of_a_negative_code(shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = "66_%Y%m%d_%H%M%S.prcp-c10.nc"
    assert pack_case(shared_dir, tmp_path / "out", "bom_negative_code", "bom_rf3", pattern, "--cadence-min", "10") == 0
    assert "; 1 pixel no rain rate (negative, infinite), now missing" in capsys.readouterr().out

    # Every pixel, the file's own packed values read without pysteps.
    storage = open_storage(tmp_path / "out")
    index = load_index(storage)
    (origin,) = index.origins
    assert (origin.grid.pixel_km, origin.grid.x0_km, origin.grid.y0_km) == (0.5, -16.0, 16.0)
    paths = sorted((shared_dir / "cases/bom_negative_code").glob("*.nc"))
    codes = 0
    for entry in index.sequences:
        for i in range(entry.num_starts):
            with h5py.File(paths[(entry.start_s - index.sequences[0].start_s) // 600 + i]) as file:
                raw_hw = file["precipitation"][:]
                codes += int((raw_hw == -2).sum())
            # 0.05 mm in 10 minutes a unit; the fill value is -1.
            expected_hw = np.where(raw_hw < 0, 65535, raw_hw.astype(int) * 30)
            np.testing.assert_array_equal(read_frame(storage, index, entry, i), expected_hw)
    assert codes == 1


def test_case_of_a_zone_in_the_name(shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = "time_pattern_with_zone"
    assert pack_case(shared_dir, tmp_path / "out", case, "odim_hdf5", "r_%Y%m%d%H%M%z.h5") == 0
    assert "every 5 min, 2023-12-31T22:00:00Z to 2023-12-31T23:05:00Z" in capsys.readouterr().out
    # Without %z nothing is packed by another clock.
    assert pack_case(shared_dir, tmp_path / "no", case, "odim_hdf5", "r_%Y%m%d%H%M*.h5") == 4
    assert "+0200, which --time-pattern 'r_%Y%m%d%H%M*.h5' leaves to a wildcard" in capsys.readouterr().err
    assert pack_case(shared_dir, tmp_path / "no", case, "odim_hdf5", "r_%Y%m%d%H%M+0200.h5") == 3
    assert "a zone stands in it as text" in capsys.readouterr().err


def test_case_of_a_name_that_does_not_exist(
    shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("odim_hdf5", "comp_%Y%m%d%H%M.h5", "--argument", "qtty=DBZH")
    assert pack_case(shared_dir, tmp_path / "out", "odim_plain", *options) == 3
    assert "not one of odim_hdf5; expected one of: qty (RATE or ACRR or DBZH" in capsys.readouterr().err
    assert pack_case(shared_dir, tmp_path / "out", "radolan", "dwd_radolan", "raa01-r?_10000-%y%m%d%H%M-*") == 3
    assert "use rainspark pack xarray FILES --engine radolan --variable RW" in capsys.readouterr().err


def test_case_of_names_that_vary(shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["mch_gif", "AQC%y%j%H%M?_00005.801.gif", "--licence", "CC BY 4.0"]
    for argument in ("product=AQC", "unit=mm", "accutime=5"):
        options += ["--argument", argument]
    assert pack_case(shared_dir, tmp_path / "out", "file_name_suffix_varies", *options) == 0
    written = capsys.readouterr()
    assert "frames        2 every 5 min, 2017-01-31T11:45:00Z to 2017-01-31T11:50:00Z" in written.out
    assert "pysteps' mch_gif reads with product='AQC', unit='mm', accutime=5.0" in written.err
    assert pack_case(shared_dir, tmp_path / "no", "file_name_suffix_varies", *options[:2]) == 3
    assert "mch_gif needs --argument product=... --argument unit=... --argument accutime=..." in capsys.readouterr().err


def test_several_folders_patterns_and_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_series(tmp_path / "a", range(3), size=(765, 700))
    write_series(tmp_path / "b", range(2, 4), size=(765, 700))
    for path in (tmp_path / "b").iterdir():
        path.rename(path.with_name(path.name.replace("RAD_NL25_RAP_5min_", "copy-")))
    command = ["importer", str(tmp_path / "a"), str(tmp_path / "b"), "--importer", "knmi_hdf5", "--window", "2"]
    command += ["--time-pattern", KNMI_NAMES, "--time-pattern", "copy-%Y%m%d%H%M.*", "--crop", "0:64,0:64"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    written = capsys.readouterr()
    assert "1 file is a copy of another, byte for byte, and is not read: " in written.err
    assert "frames        4 every 5 min" in written.out

    # Two of one time that differ are named.
    other = next((tmp_path / "b").iterdir())
    other.write_bytes(other.read_bytes() + b"0")
    twin = tmp_path / "a" / other.name
    twin.write_bytes(other.read_bytes()[:-1])
    assert main([*command, "--out", str(tmp_path / "no")]) == 4
    assert "two frames of one time: " in capsys.readouterr().err


def test_a_package_that_an_importer_lacks_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x_202001010000.bin").write_bytes(b"field")

    def read(*_: Any, **__: Any) -> Any:
        raise ModuleNotFoundError("No module named 'pygrib'")

    monkeypatch.setattr("rainspark.data.sources.importer._pysteps_method", lambda _: read)
    source = ImporterSource(importer="mrms_grib", time_patterns=("x_%Y%m%d%H%M.bin",))
    with pytest.raises(DataError, match="No module named 'pygrib'; install the package that it asks for"):
        source.survey(source.scan([tmp_path]).refs[0])


def test_importers_and_names_that_do_not_fit_are_named(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, [0])
    with pytest.raises(ConfigError, match="pysteps knows no importer 'nonsense'"):
        ImporterSource(importer="nonsense", time_patterns=(KNMI_NAMES,)).scan([tmp_path])
    with pytest.raises(DataError, match=f"{path}: its name does not fit --time-pattern"):
        ImporterSource(importer="knmi_hdf5", time_patterns=("%Y%m%d%H%M.h5",)).scan([path])
    with pytest.raises(DataError, match=r"no file in .* has a name like"):
        ImporterSource(importer="knmi_hdf5", time_patterns=("%Y%m%d%H%M.h5",)).scan([tmp_path])
    (tmp_path / "day.tar").touch()
    with pytest.raises(DataError, match="pysteps reads no archives: take the files out first"):
        ImporterSource(importer="knmi_hdf5", time_patterns=("%Y%m%d%H%M.h5",)).scan([tmp_path / "day.tar"])
    source = ImporterSource(importer="knmi_hdf5", time_patterns=(KNMI_NAMES,))
    path.write_bytes(b"no radar")
    with pytest.raises(DataError, match=f"{path}: pysteps' importer knmi_hdf5 failed: OSError"):
        source.survey(source.scan([path]).refs[0])
