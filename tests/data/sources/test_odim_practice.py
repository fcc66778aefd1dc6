"""ODIM_H5 as it is in practice: attributes left out, corners stated in other ways, several products in a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyproj
import pytest

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop, Grid
from rainspark.data.pack.archive import pack
from rainspark.data.pack.survey import PackOptions, survey
from rainspark.data.shards.decode import decode_frame, read_sequence
from rainspark.data.sources.hdf5 import ChoiceError
from rainspark.data.sources.odim import ZR, OdimSource
from rainspark.data.sources.odim_grid import plain_projection
from rainspark.data.sources.source import Found, Surveyed
from rainspark.data.store.storage import open_storage
from tests.data.radar_files import FIRST_S, LAEA, change, odim_name, rates, set_attribute, write_odim_file

ROWS, COLS = 24, 20
WHOLE = Crop(row0=0, row1=ROWS, col0=0, col1=COLS)
WHAT = "dataset1/data1/what"
CORNERS = {"UL": (0, 0), "UR": (COLS, 0), "LL": (0, ROWS), "LR": (COLS, ROWS)}
Edit = Callable[[Any], None]


def write(folder: Path, raw_hw: npt.NDArray[Any], *edits: Edit, number: int = 0, **options: Any) -> Path:
    """Write a file of one frame and edit it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / options.pop("name", odim_name(FIRST_S + 300 * number))
    write_odim_file(path, raw_hw, FIRST_S + 300 * number, **options)
    for edit in edits:
        change(path, edit)
    return path


def drop(member: str, *names: str) -> Edit:
    """Make an edit that removes attributes."""

    def edit(file: Any) -> None:
        for name in names:
            del file[member].attrs[name]

    return edit


def surveyed(path: Path, source: OdimSource | None = None) -> Surveyed:
    source = source or OdimSource()
    return source.survey(source.scan([path]).refs[0])


def counts_of(path: Path, source: OdimSource | None = None) -> npt.NDArray[np.uint16]:
    source = source or OdimSource()
    return source.read(source.scan([path]).refs[0], WHOLE).counts


def names_of(found: Found) -> list[str]:
    return [Path(str(ref)).name for ref in found.refs]


def with_nan(seed: int = 1, dtype: Any = np.float32) -> npt.NDArray[Any]:
    """Make rates with NaN where nothing was measured and 0 where it is dry, as RMI writes them."""
    raw_hw = rates(seed, ROWS, COLS)
    raw_hw[raw_hw == -9999000.0] = np.nan
    raw_hw[raw_hw == -8888000.0] = 0.0
    return raw_hw.astype(dtype)


def slow_counts(raw_hw: npt.NDArray[Any], factor: float = 1.0) -> npt.NDArray[np.uint16]:
    """Requantise one pixel at a time."""
    counts = np.empty(raw_hw.shape, np.uint16)
    for at, raw in np.ndenumerate(raw_hw):
        counts[at] = 65535 if raw != raw else round(float(raw) * factor / 0.01)
    return counts


# Attributes that are optional in practice.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("absent", "said"),
    [
        (("gain", "offset", "nodata", "undetect"), "gain 1, offset 0, NaN missing, 0 dry"),
        (("gain", "offset"), "gain 1, offset 0"),
        (("nodata",), "NaN missing"),
        (("undetect",), "0 dry"),
    ],
)
def test_floats_need_no_levels(tmp_path: Path, dtype: Any, absent: tuple[str, ...], said: str) -> None:
    raw_hw = with_nan(dtype=dtype)
    path = write(tmp_path, raw_hw, drop(WHAT, *absent))
    np.testing.assert_array_equal(counts_of(path), slow_counts(raw_hw))
    assert surveyed(path).notes == (f"RATE: the files do not state {', '.join(absent)}: read as {said}",)


def test_accumulations_and_reflectivity_need_no_levels_either(tmp_path: Path) -> None:
    raw_hw = with_nan()
    levels = ("gain", "offset", "nodata", "undetect")
    depth = write(tmp_path / "depth", raw_hw, drop(WHAT, *levels), quantity="ACRR", period_s=900)
    np.testing.assert_array_equal(counts_of(depth), slow_counts(raw_hw, 4.0))
    echo_hw = np.where(raw_hw > 0, np.float32(23), raw_hw)
    echo = write(tmp_path / "echo", echo_hw, drop(WHAT, *levels), quantity="DBZH")
    counts = counts_of(echo, OdimSource(zr=ZR(a=200, b=1.6)))
    # 23 dBZ is 0.9986 mm/h; 0 is no echo and no drizzle of 0.04 mm/h.
    expected = np.where(np.isnan(raw_hw), 65535, np.where(raw_hw > 0, 100, 0))
    np.testing.assert_array_equal(counts, expected)


def test_integers_have_the_manuals_gain_but_no_codes(tmp_path: Path) -> None:
    raw_hw = np.random.default_rng(2).integers(0, 90, (ROWS, COLS)).astype(np.uint8)
    raw_hw[0] = 255
    levels = (1.0, 0.0, 255.0, 0.0)
    path = write(tmp_path / "gain", raw_hw, drop(WHAT, "gain", "offset"), levels=levels)
    np.testing.assert_array_equal(counts_of(path), np.where(raw_hw == 255, 65535, raw_hw.astype(int) * 100))
    assert surveyed(path).notes == ("RATE: the files do not state gain, offset: read as gain 1, offset 0",)
    for name, kind in (("nodata", "missing"), ("undetect", "dry")):
        path = write(tmp_path / name, raw_hw, drop(WHAT, name), levels=levels)
        with pytest.raises(DataError, match=f"{path}: attribute {name} .*integers .uint8.*which pixels are {kind}"):
            surveyed(path)


def test_the_note_comes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        write(tmp_path / "in", with_nan(number), drop(WHAT, "gain", "undetect"), number=number)
    pack([tmp_path / "in"], tmp_path / "out", PackOptions(window=2), source=OdimSource())
    assert capsys.readouterr().err.count("the files do not state gain, undetect") == 1


def test_what_an_option_replaces_need_not_be_stated(tmp_path: Path) -> None:
    path = write(tmp_path, rates(1, ROWS, COLS), drop("what", "source"), drop(WHAT, "quantity"))
    with pytest.raises(DataError, match="attribute quantity of /what is missing"):
        surveyed(path)
    with pytest.raises(ChoiceError, match=r"attribute source of /what is missing.*give --name"):
        surveyed(path, OdimSource(quantity="RATE"))
    assert surveyed(path, OdimSource(quantity="RATE", name="mine")).header.source == "mine"


def test_rates_need_no_period_and_sums_do(tmp_path: Path) -> None:
    period = ("startdate", "starttime", "enddate", "endtime")
    rate = write(tmp_path / "rate", rates(1, ROWS, COLS), drop("dataset1/what", *period))
    assert (surveyed(rate).header.end_time_s, surveyed(rate).header.period_s) == (FIRST_S, 0)
    depth = write(tmp_path / "sum", rates(1, ROWS, COLS), drop("dataset1/what", *period), quantity="ACRR")
    with pytest.raises(DataError, match="attribute startdate"):
        surveyed(depth)


@pytest.mark.parametrize(
    ("quantity", "period_s", "stated_s"),
    [("RATE", 900, 0), ("DBZH", 300, 0), ("ACRR", 3600, 3600), ("ACRR", 300, 300), ("ACRR", 86400, 86400)],
)
def test_the_period_is_that_of_sums_only(tmp_path: Path, quantity: str, period_s: int, stated_s: int) -> None:
    path = write(tmp_path, rates(1, ROWS, COLS), quantity=quantity, period_s=period_s)
    zr = ZR(a=200, b=1.6) if quantity == "DBZH" else None
    assert surveyed(path, OdimSource(zr=zr)).header.period_s == stated_s


# Projections.


@pytest.mark.parametrize(
    "more",
    [
        "+towgs84=0,0,0,0,0,0,0",
        "+towgs84=0.0,-0,0e0",
        "+lon_wrap=180",
        "+type=crs +no_defs",
        "+nadgrids=@null",
        "+pm=0",
    ],
)
def test_harmless_terms_move_no_corner(tmp_path: Path, more: str) -> None:
    plain = surveyed(write(tmp_path / "a", rates(1, ROWS, COLS))).header.grid
    edit = set_attribute("where", "projdef", np.bytes_(f"{LAEA} {more} "))
    grid = surveyed(write(tmp_path / "b", rates(1, ROWS, COLS), edit)).header.grid
    assert (grid.x0_km, grid.y0_km, grid.pixel_km) == (plain.x0_km, plain.y0_km, plain.pixel_km)


def at(projection: str, left_m: float, upper_m: float) -> Edit:
    """Make an edit that moves the grid to another projection."""
    to_degrees = pyproj.Proj(pyproj.CRS(projection).to_proj4() if "epsg" in projection.lower() else projection)

    def edit(file: Any) -> None:
        where = file["where"].attrs
        where["projdef"] = np.bytes_(projection)
        for name, (col, row) in CORNERS.items():
            lon, lat = to_degrees(left_m + col * 2000, upper_m - row * 2000, inverse=True)
            where[f"{name}_lon"], where[f"{name}_lat"] = lon, lat

    return edit


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("code", "left_m", "upper_m"),
    [("EPSG:3035", 4e6, 3e6), ("epsg:28992", 1e4, 6e5), ("+init=epsg:3067", 3e5, 7e6), ("EPSG:2056", 2.6e6, 1.2e6)],
)
def test_codes_of_plain_projections_are_read(tmp_path: Path, code: str, left_m: float, upper_m: float) -> None:
    grid = surveyed(write(tmp_path, rates(1, ROWS, COLS), at(code, left_m, upper_m))).header.grid
    assert (grid.x0_km, grid.y0_km) == (left_m / 1000, upper_m / 1000)
    # An archive carries the terms themselves: whoever reads it needs no database.
    assert grid.projection.startswith("+proj=")
    assert plain_projection(grid.projection) == grid.projection


def test_terms_may_lack_their_sign(tmp_path: Path) -> None:
    lcc = "+proj=lcc +lat_1=49 +lat_2=51 +lat_0=50 +lon_0=4 +ellps=GRS80 +x_0=0 y_0=0"
    grid = surveyed(write(tmp_path, rates(1, ROWS, COLS), at(lcc, -1e4, 2e4))).header.grid
    assert (grid.x0_km, grid.y0_km) == (-10.0, 20.0)


# Corners.


def only(*names: str) -> Edit:
    """Make an edit that leaves these corners alone, in degrees."""
    return drop("where", *(f"{name}_{axis}" for name in CORNERS if name not in names for axis in ("lon", "lat")))


def in_metres(name: str, *, off_m: float = 0.0) -> Edit:
    """Make an edit that states a corner in metres."""
    col, row = CORNERS[name]

    def edit(file: Any) -> None:
        file["where"].attrs.update({f"{name}_x": col * 2000.0 + off_m, f"{name}_y": -row * 2000.0})

    return edit


def corners_at(inset: float = 0.0, *, digits: int | None = None, stretch: float = 1.0) -> Edit:
    """Make an edit that states corners inside the grid, rounded, or of another pixel size."""
    to_degrees = pyproj.Proj(LAEA)

    def edit(file: Any) -> None:
        where = file["where"].attrs
        for name, (col, row) in CORNERS.items():
            x = (col + (inset if col == 0 else -inset)) * 2000 * stretch
            y = -(row + (inset if row == 0 else -inset)) * 2000 * stretch
            degrees = to_degrees(x, y, inverse=True)
            for axis, value in zip(("lon", "lat"), degrees, strict=True):
                where[f"{name}_{axis}"] = value if digits is None else round(value, digits)

    return edit


def grid_with(folder: Path, *edits: Edit) -> Grid:
    return surveyed(write(folder, rates(1, ROWS, COLS), *edits)).header.grid


@pytest.mark.parametrize(
    "edits",
    [
        (only("UL", "LR"),),
        (only("LL", "UR"),),
        (only("UL", "UR", "LL"),),
        (in_metres("UL"),),
        (only(), in_metres("UL")),
        (only(), in_metres("LR")),
        (only("LL"), in_metres("UL")),
        (corners_at(digits=4),),
        (corners_at(stretch=1.00005),),
    ],
)
def test_corners_may_be_stated_in_any_way(tmp_path: Path, edits: tuple[Edit, ...]) -> None:
    grid = grid_with(tmp_path, *edits)
    assert (grid.x0_km, grid.y0_km, grid.pixel_km) == pytest.approx((0.0, 0.0, 2.0), abs=0.006)
    assert grid.pixel_km == 2.0


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ((only(),), "of its corners it states none; expected two opposite ones"),
        ((only("UL"),), "it states UL; expected two opposite ones"),
        ((only("UL", "UR"),), "it states UL, UR; expected two opposite"),
        ((corners_at(stretch=1.0005),), r"the corners are 40\.020 km by 48\.024 km apart; expected 40 by 48 km"),
        ((corners_at(stretch=0.999),), "expected 40 by 48 km, as sizes and scales say"),
        ((corners_at(inset=0.25),), "expected 40 by 48 km"),
        ((in_metres("UL", off_m=700.0),), r"the corners are 0\.700 km by 0\.000 km apart.*.UL and UL,"),
        ((only("LL", "UR"), in_metres("UL", off_m=-300.0)), "km apart"),
    ],
)
def test_corners_that_disagree_are_refused(tmp_path: Path, edits: tuple[Edit, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        grid_with(tmp_path, *edits)


def test_corners_of_pixels_centres_are_half_a_pixel_inside(tmp_path: Path) -> None:
    path = write(tmp_path, rates(1, ROWS, COLS), corners_at(inset=0.5))
    grid = surveyed(path).header.grid
    assert (grid.x0_km, grid.y0_km) == (0.0, 0.0)
    assert surveyed(path).notes == (
        "RATE: its corners are those of the corner pixels' centres: the grid reaches half a pixel beyond them",
    )


def test_rounded_degrees_are_no_other_pixel_size(tmp_path: Path) -> None:
    # Two digits are 1.1 km: half a pixel of difference passes, and no more.
    grid = grid_with(tmp_path, corners_at(digits=3))
    assert (grid.x0_km, grid.y0_km) == pytest.approx((0.0, 0.0), abs=0.06)


# Choice before identity.


def rate_and_sum(folder: Path, numbers: range = range(2)) -> None:
    """Write two products of the same times, as OPERA delivers them."""
    for number in numbers:
        time = odim_name(FIRST_S + 300 * number)[-18:]
        write(folder, rates(number, ROWS, COLS), number=number, name=f"T_PAAH22_C_EUOC_{time}")
        depth = write(folder, rates(number + 50, ROWS, COLS), number=number, name=f"T_PASH22_C_EUOC_{time}")
        change(depth, set_attribute(WHAT, "quantity", np.bytes_("ACRR")))


def test_the_quantity_chooses_among_files(tmp_path: Path) -> None:
    rate_and_sum(tmp_path)
    chosen = OdimSource(quantity="RATE").scan([tmp_path])
    assert [name[:8] for name in names_of(chosen)] == ["T_PAAH22", "T_PAAH22"]
    (note,) = chosen.notes
    assert note.startswith("2 files hold ACRR and are not read, such as ")
    assert [name[:8] for name in names_of(OdimSource(quantity="ACRR").scan([tmp_path]))] == ["T_PASH22", "T_PASH22"]
    with pytest.raises(ChoiceError, match=r"PAAH22.* holds RATE and .*PASH22.* holds ACRR; .*--quantity RATE or ACRR"):
        OdimSource().scan([tmp_path])
    with pytest.raises(ChoiceError, match=r"it holds RATE; expected DBZH.*of 4 files, 2 hold RATE, 2 hold ACRR"):
        OdimSource(quantity="DBZH").scan([tmp_path])


def test_the_relation_chooses_between_echo_and_rain(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path, rates(number, ROWS, COLS), number=number, name=f"rate_20200101000{5 * number}.h5")
        write(tmp_path, rates(9, ROWS, COLS), number=number, name=f"echo_20200101000{5 * number}.h5", quantity="DBZH")
    assert [name[:4] for name in names_of(OdimSource().scan([tmp_path]))] == ["rate", "rate"]
    found = OdimSource(zr=ZR(a=200, b=1.6)).scan([tmp_path])
    assert [name[:4] for name in names_of(found)] == ["echo", "echo"]
    assert "2 files hold RATE (which takes no --zr) and are not read" in found.notes[0]


@pytest.mark.parametrize("kind", ["PVOL", "SCAN", "VP"])
def test_what_is_no_composite_is_counted(tmp_path: Path, kind: str) -> None:
    for number in range(3):
        write(tmp_path, rates(number, ROWS, COLS), number=number)
        for quantity in ("dbzh", "rhohv"):
            edit = set_attribute("what", "object", np.bytes_(kind))
            name = f"2020010100000{number}.rad.xx.pvol.{quantity}.hdf"
            write(tmp_path, rates(number, ROWS, COLS), edit, number=number, name=name)
    found = OdimSource().scan([tmp_path])
    assert len(found.refs) == 3
    assert found.notes[0].startswith("6 files hold polar " if kind != "VP" else "6 files hold vertical profiles (VP)")


def test_polar_volumes_alone_are_refused_by_what_they_are(tmp_path: Path) -> None:
    edit = set_attribute("what", "object", np.bytes_("PVOL"))
    for quantity in ("dbzh", "rhohv"):
        write(tmp_path, rates(1, ROWS, COLS), edit, name=f"20191231235000.pvol.{quantity}.hdf")
    with pytest.raises(ChoiceError, match=r"'PVOL'; .*make a composite of it first .of 2 files, 2 hold polar volumes"):
        OdimSource().scan([tmp_path])


def test_copies_are_read_once(tmp_path: Path) -> None:
    originals = [write(tmp_path / "a", rates(number, ROWS, COLS), number=number) for number in range(3)]
    for folder, number in (("b", 1), ("c", 1), ("b", 2)):
        copy = tmp_path / folder / originals[number].name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(originals[number].read_bytes())
    source = OdimSource()
    found = source.scan([tmp_path / "b", tmp_path / "a", tmp_path / "c"])
    assert [Path(str(ref)) for ref in found.refs] == originals
    assert found.notes == (
        f"3 files are copies of others, byte for byte, and are not read, such as {tmp_path / 'b' / originals[1].name}",
    )
    # Another file of the same time is no copy, whatever it holds.
    other = write(tmp_path / "d", rates(7, ROWS, COLS), number=1)
    with pytest.raises(DataError, match=f"two frames of one time: {originals[1]} and {other}; expected one"):
        source.scan([tmp_path])


def test_names_suffice_where_they_tell_times_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("2019", "2020"):
        for number in range(20):
            write(tmp_path / folder, rates(1, ROWS, COLS), number=number + 100 * (folder == "2020"))
    opened: list[str] = []
    real = h5py.File

    class Counting(real):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            opened.append("file")
            super().__init__(*arguments, **options)

    monkeypatch.setattr(h5py, "File", Counting)
    assert len(OdimSource().scan([tmp_path]).refs) == 40
    # One a folder, to see what it holds.
    assert len(opened) == 2


@pytest.mark.parametrize("name", ["OPERA@20191231T2350@0@DBZH.h5", "x_20191231T235000Z.h5", "x_201912312350_v2.h5"])
def test_times_in_names_of_several_kinds(tmp_path: Path, name: str) -> None:
    assert surveyed(write(tmp_path, rates(1, ROWS, COLS), name=name)).header.end_time_s == FIRST_S


def test_wildcards_are_expanded(tmp_path: Path) -> None:
    for folder, numbers in (("2019", (0, 1)), ("2020", (2,)), ("other", (3,))):
        for number in numbers:
            write(tmp_path / folder, rates(number, ROWS, COLS), number=number)
    source = OdimSource()
    assert len(source.scan([tmp_path / "20*"]).refs) == 3
    assert len(source.scan([tmp_path / "20[1]9" / "*.hdf", tmp_path / "other"]).refs) == 3
    assert len(source.scan([tmp_path / "**" / "*.hdf"]).refs) == 4
    with pytest.raises(DataError, match=r"none\*\.h5 matches nothing; expected radar files"):
        source.scan([tmp_path / "none*.h5"])
    # A file that is called so is itself.
    literal = (tmp_path / "other" / odim_name(FIRST_S + 900)).rename(tmp_path / "other" / "a[1]_201912312350.h5")
    change(literal, set_attribute("what", "time", np.bytes_("235000")))
    change(literal, set_attribute("what", "date", np.bytes_("20191231")))
    assert len(source.scan([literal]).refs) == 1


# Real files and the given cases.


@pytest.mark.parametrize(
    ("case", "source", "num_frames", "note"),
    [
        ("odim_no_gain", OdimSource(), 14, "do not state gain, offset, nodata, undetect"),
        ("odim_lon_wrap", OdimSource(), 14, None),
        ("identical_duplicates", OdimSource(), 14, "1 file is a copy of another, byte for byte"),
        ("rate_and_accumulation_in_one_folder", OdimSource(quantity="RATE"), 2, "2 files hold ACRR"),
    ],
)
def test_the_given_cases_are_packed(
    shared_dir: Path, case: str, source: OdimSource, num_frames: int, note: str | None
) -> None:
    job = survey([shared_dir / "cases" / case], PackOptions(window=2), source)
    assert len(job.supplies[0].refs) == num_frames
    assert note is None or any(note in line for line in job.notes)


def test_the_given_polar_volumes_are_named(shared_dir: Path) -> None:
    with pytest.raises(ChoiceError, match="of 2 files, 2 hold polar volumes"):
        OdimSource().scan([shared_dir / "cases" / "polar_volumes_in_folder"])


def test_the_given_sums_state_their_hour(shared_dir: Path) -> None:
    source = OdimSource()
    ref = source.scan([shared_dir / "cases" / "accumulation_longer_than_cadence"]).refs[0]
    assert source.survey(ref).header.period_s == 3600


REAL: list[tuple[str, OdimSource, int, tuple[float, float, float]]] = [
    ("odim/T_PAAH21*", OdimSource(), 900, (0.0, 0.0, 2.0)),
    ("odim/T_PABV21*", OdimSource(zr=ZR(a=200, b=1.6)), 300, (0.0, 0.0, 1.0)),
    ("rmi/*.hdf", OdimSource(), 300, (300.0, 1000.0, 1.0)),
]


@pytest.mark.parametrize(("names", "source", "cadence_s", "where"), REAL)
def test_real_files_are_packed_as_h5py_reads_them(
    shared_dir: Path, tmp_path: Path, names: str, source: OdimSource, cadence_s: int, where: tuple[float, float, float]
) -> None:
    # A part that radars see, of OPERA's larger grid further inside.
    row0, col0 = (2000, 1800) if source.zr is not None else (300, 200)
    crop = Crop(row0=row0, row1=row0 + 128, col0=col0, col1=col0 + 128)
    options = PackOptions(crop=crop, window=3, cadence_s=cadence_s)
    index = pack([shared_dir / "data" / names], tmp_path, options, source=source)
    (origin,) = index.origins
    assert (origin.grid.x0_km, origin.grid.y0_km, origin.grid.pixel_km) == where

    paths = sorted((shared_dir / "data").glob(names))
    (entry,) = index.sequences
    stored = read_sequence(open_storage(tmp_path), index, entry)
    assert entry.num_frames == len(paths)
    for number, path in enumerate(paths):
        counts = np.empty((crop.rows, crop.cols), np.uint16)
        decode_frame(index, entry, stored, number, counts)
        with h5py.File(path) as file:
            raw = file["dataset1/data1/data"][crop.row0 : crop.row1, crop.col0 : crop.col1].astype(np.float64)
        rain_mmh = np.where(raw <= -8888000.0, 0.0, raw)
        if source.zr is not None:
            rain_mmh = np.where(raw <= -8888000.0, 0.0, (10 ** (raw / 10) / 200) ** (1 / 1.6))
        missing = np.isnan(raw) | (raw == -9999000.0)
        expected = np.where(missing, 65535, np.rint(np.where(missing, 0, rain_mmh) * 100))
        np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("quantity", ["TH", "rate", "BRDR"])
def test_advice_names_no_quantity_that_is_not_there(tmp_path: Path, quantity: str) -> None:
    write_odim_file(tmp_path / odim_name(FIRST_S), np.ones((4, 4)), FIRST_S, quantity=quantity)
    with pytest.raises(DataError, match=f"it holds {quantity}; expected one of RATE, ACRR, DBZH: remove the file"):
        OdimSource().scan([tmp_path])
